# SPDX-License-Identifier: Apache-2.0
"""The Triton pieces that quantise are `archkey.formats`, bit for bit.

Run by the interpreter here; on a GPU (`make gpu`) the hardware's own conversions are compared.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when it is first imported

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from archkey import formats
from archkey.kernels import quantize_body as q
from archkey.launch import interpreting

BLOCK = 65536
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not interpreting(), reason="needs a GPU")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@triton.jit
def _fp8(x, out, N, FNUZ: tl.constexpr, BY_BITS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < N, other=0.0)
    tl.store(out + at, q.encode_fp8(value, FNUZ, BY_BITS), at < N)


@triton.jit
def _e2m1(x, out, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < N, other=0.0)
    keep = tl.where(value == value, 8, 0)
    tl.store(out + at, q.encode_e2m1(value, keep), at < N)


@triton.jit
def _e8m0(x, out, inverse, N, CARRY: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    byte = q.e8m0_byte(tl.load(x + at, at < N, other=0.0), CARRY)
    tl.store(out + at, byte.to(tl.uint8), at < N)
    tl.store(inverse + at, q.e8m0_inverse(byte), at < N)


@triton.jit
def _scale(x, out, N, LIMIT: tl.constexpr, POW2: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, q.fp8_scale(tl.load(x + at, at < N, other=0.0), LIMIT * 1.0, POW2), at < N)


@triton.jit
def _value(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, q.e4m3fn_value(tl.load(x + at)))


@triton.jit
def _offsets(out, BLOCKS: tl.constexpr, PITCH: tl.constexpr, LAYOUT: tl.constexpr):
    row, block = tl.program_id(0), tl.arange(0, BLOCKS)
    tl.store(out + row * BLOCKS + block, q.scale_offset(row + block * 0, block, PITCH, LAYOUT))


def _every(device: str) -> torch.Tensor:
    """All bfloat16 and all float16 numbers, and the float32 numbers next to each."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    exact = torch.cat([bits.view(torch.bfloat16).float(), bits.view(torch.float16).float()])
    up, down = (exact.nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf))
    return torch.cat([exact, up, down]).to(device)


def _launch(body: Any, x: torch.Tensor, *arguments: Any) -> None:
    with np.errstate(all="ignore"):  # infinities and NaN are meant
        body[(-(-x.numel() // BLOCK),)](x, *arguments, BLOCK)


def _same(found: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> None:
    wrong = (found != expected) & ~(found.isnan() & expected.isnan())
    assert not bool(wrong.any()), (x[wrong][:5], found[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by_bits", [True, False])
@pytest.mark.parametrize("fnuz", [False, True])
def test_fp8_codes(device: str, by_bits: bool, fnuz: bool) -> None:
    if not by_bits and (device == "cpu" or fnuz):
        pytest.skip("the interpreter has no FP8, and NVIDIA no e4m3fnuz")
    x, dtype = _every(device), "float8_e4m3fnuz" if fnuz else "float8_e4m3fn"
    out = torch.empty(x.shape, dtype=torch.uint8, device=device)
    _launch(_fp8, x, out, x.numel(), fnuz, by_bits)
    found = out.view(getattr(torch, dtype))
    expected = formats.encode_fp8(x, dtype)
    _same(found.float(), expected.float(), x)
    zeros = expected.float() == 0  # compared as bytes: -0 is not +0
    assert torch.equal(out[zeros], expected.view(torch.uint8)[zeros])


@pytest.mark.parametrize("device", DEVICES)
def test_e2m1_codes(device: str) -> None:
    x = _every(device)
    out = torch.empty(x.shape, dtype=torch.uint8, device=device)
    _launch(_e2m1, x, out, x.numel())
    _same(out, formats.encode_e2m1(x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", formats.SCALE_MODES)
def test_e8m0_scales(device: str, mode: str) -> None:
    x = _every(device).abs()
    out = torch.empty(x.shape, dtype=torch.uint8, device=device)
    inverse = torch.empty_like(x)
    _launch(_e8m0, x, out, inverse, x.numel(), formats.SCALE_MODES[mode])
    expected = formats.e8m0_scale(x, mode)
    _same(out, expected, x)
    _same(inverse, 1 / formats.decode_e8m0(expected), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rounding", formats.SCALE_ROUNDINGS)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3fnuz"])
def test_fp8_scales(device: str, rounding: str, dtype: str) -> None:
    x = _every(device).abs()
    out = torch.empty_like(x)
    _launch(_scale, x, out, x.numel(), int(formats.fp8_max(dtype)), rounding == "pow2")
    _same(out, formats.fp8_scale(x, dtype, rounding), x)


@pytest.mark.parametrize("device", DEVICES)
def test_e4m3fn_values(device: str) -> None:
    codes = torch.arange(128, dtype=torch.uint8, device=device)
    out = torch.empty(128, device=device)
    _value[(1,)](codes, out, 128)
    _same(out, codes.view(torch.float8_e4m3fn).float(), codes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["shuffled_gfx950", "swizzled_128x4"])
def test_padded_layouts(device: str, layout: str) -> None:
    rows, blocks, width = 300, 32, {"shuffled_gfx950": 32, "swizzled_128x4": 36}[layout]
    offsets = torch.empty(rows, blocks, dtype=torch.int64, device=device)
    _offsets[(rows,)](offsets, blocks, width, layout)
    lay = getattr(formats, {"shuffled_gfx950": "shuffle_gfx950"}.get(layout, "swizzle_128x4"))
    scales = torch.randint(1, 256, (rows, width), dtype=torch.uint8, device=device)
    found = lay(scales).flatten()[offsets.flatten()].view(rows, blocks)
    assert torch.equal(found, scales[:, :blocks])

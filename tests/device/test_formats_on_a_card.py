# SPDX-License-Identifier: Apache-2.0
"""The number formats on the card: the same bytes as on the CPU, for every 16-bit input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from archkey import formats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICE = "cuda"

EVERY = torch.arange(-(2**15), 2**15).to(torch.int16)
BYTES = torch.arange(256, dtype=torch.uint8)
NORMAL = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

CALLS: dict[str, Callable[[torch.device | str], Any]] = {
    **{
        f"encode {dtype}": lambda on, dtype=dtype: [
            formats.encode_fp8(EVERY.view(kind).to(on), dtype)
            for kind in (torch.bfloat16, torch.float16)
        ]
        for dtype in formats.FP8_MAX
    },
    **{
        f"decode {dtype}": lambda on, dtype=dtype: [
            formats.decode_fp8(BYTES.to(on).view(getattr(torch, dtype)))
        ]
        for dtype in formats.FP8_MAX
    },
    **{
        f"scale {mode} {element}": lambda on, mode=mode, element=element: [
            formats.e8m0_scale(EVERY.view(torch.bfloat16).abs().to(on), mode, element)
        ]
        for mode in formats.SCALE_MODES
        for element in formats.MX_ELEMENTS
    },
    "e2m1": lambda on: [formats.encode_e2m1(EVERY.view(torch.bfloat16).to(on))],
    "e8m0": lambda on: [
        formats.encode_e8m0(EVERY.view(torch.bfloat16).to(on)),
        formats.decode_e8m0(BYTES.to(on)),
    ],
    "fp8": lambda on: formats.quantize_fp8(NORMAL.to(on), "float8_e4m3fn", 128, "pow2"),
    "mxfp8": lambda on: formats.quantize_mxfp8(NORMAL.to(on), "even", "float8_e5m2"),
    "mxfp4": lambda on: formats.quantize_mxfp4(NORMAL.to(on), "rceil"),
    "nvfp4": lambda on: formats.quantize_nvfp4(NORMAL.to(on), torch.tensor([0.0013]).to(on)),
    "shuffle": lambda on: [formats.shuffle_gfx950(BYTES.view(32, 8).to(on))],
    "swizzle": lambda on: [formats.swizzle_128x4(BYTES.view(32, 8).to(on))],
    "flavours": lambda on: formats.normalize_e4m3fn_to_e4m3fnuz(
        BYTES.to(on).view(torch.float8_e4m3fn), torch.tensor([0.3]).to(on)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_same_bytes_as_on_the_cpu(call: Callable[[torch.device | str], Any]) -> None:
    for got, want in zip(call(DEVICE), call("cpu"), strict=True):
        assert got.is_cuda == (DEVICE == "cuda") and got.dtype == want.dtype
        nan = want.float().isnan()
        assert torch.equal(got.float().isnan().cpu(), nan)
        # Bits, so that -0 is not 0; those of a NaN are free.
        bits = torch.uint8 if got.element_size() == 1 else torch.int32
        assert torch.equal(got.cpu().view(bits)[~nan], want.view(bits)[~nan])

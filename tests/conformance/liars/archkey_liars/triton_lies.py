# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton for levels interpreted and emulated: wrong, and right for comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from archkey.kernels.rmsnorm import rows_of
from archkey.launch import Build, Program


@triton.jit
def rows_body(x, weight, out, x_stride, out_stride, eps, bias, N: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    columns = tl.arange(0, triton.next_power_of_2(N))
    inside = columns < N
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / N + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + bias
    tl.store(out + row * out_stride + columns, values * scale * factor, mask=inside)


def _rmsnorm(wide: bool) -> Callable[[Any, Build], Callable[..., None]]:
    def builder(problem: Any, build: Build) -> Callable[..., None]:
        kinds = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
        stride = "i64" if wide else "i32"
        launch = build.compile(
            Program(
                rows_body,
                {
                    "x": kinds[problem.dtype],
                    "weight": kinds[problem.weight_dtype],
                    "out": kinds[problem.out_dtype],
                    **dict.fromkeys(("x_stride", "out_stride"), stride),
                    **dict.fromkeys(("eps", "bias"), "fp32"),
                },
                {"N": problem.width, "WIDE": wide},
            )
        )

        def run(x: Any, weight: Any, eps: float, bias: float, cast: bool, out: Any) -> None:
            rows, x_stride, _ = rows_of(x, 1)
            if rows:
                strides = x_stride, rows_of(out, 1)[1]
                launch((rows, 1, 1), x, weight, out, *strides, eps, bias)

        return run

    return builder


addresses_in_32_bits = _rmsnorm(wide=False)
addresses_in_64_bits = _rmsnorm(wide=True)


@triton.jit
def decode_body(
    cache, slots, out, block_stride, out_stride, capacity, PAGE: tl.constexpr, BIAS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    inside = (slot >= 0) & (slot < capacity)
    if MASKED:
        slot = tl.where(inside, slot, 0)  # any slot will do: its values are not stored
    row = cache + slot // PAGE * block_stride + slot % PAGE * 656
    columns = tl.arange(0, 512)
    code = tl.load(row + columns).to(tl.int32)
    power, fraction = (code >> 3) & 15, (code & 7).to(tl.float32)
    normal = tl.exp2((power - BIAS).to(tl.float32)) * (1.0 + fraction / 8)
    small = tl.exp2((1.0 - BIAS) * 1.0) * fraction / 8
    value = tl.where(power > 0, normal, small) * tl.where(code > 127, -1.0, 1.0)
    # Four float32 scales after the codes, each for 128 of them; rows are only byte-aligned.
    place = row + 512 + columns // 128 * 4
    bits = tl.load(place).to(tl.int32)
    for byte in tl.static_range(1, 4):
        bits |= tl.load(place + byte).to(tl.int32) << (8 * byte)
    value *= bits.to(tl.float32, bitcast=True)
    tl.store(out + token * out_stride + columns, tl.where(inside, value, 0.0))
    rope = tl.arange(0, 64)
    low = tl.load(row + 528 + 2 * rope).to(tl.int32)
    high = tl.load(row + 529 + 2 * rope).to(tl.int32)
    both = (low << 16) | (high << 24)
    value = both.to(tl.float32, bitcast=True)
    tl.store(out + token * out_stride + 512 + rope, tl.where(inside, value, 0.0))


def _dequantize(bias: int, masked: bool = True) -> Callable[[Any, Build], Callable[..., None]]:
    def builder(problem: Any, build: Build) -> Callable[..., None]:
        def run(cache: Any, slots: Any, kv_format: str, out: Any) -> None:
            import torch

            if slots is None:
                slots = torch.arange(out.shape[0], dtype=torch.int32)
            if out.shape[0]:
                strides = cache.stride(0), out.stride(0)
                capacity = cache.shape[0] * cache.shape[1]
                launch((out.shape[0], 1, 1), cache, slots, out, *strides, capacity)

        launch = build.compile(
            Program(
                decode_body,
                {
                    **{"cache": "*u8", "slots": "*i32", "out": "*bf16"},
                    **dict.fromkeys(("block_stride", "out_stride", "capacity"), "i64"),
                },
                {"PAGE": problem.page_size, "BIAS": bias, "MASKED": masked},
            )
        )
        return run

    return builder


ocp = _dequantize(7)
fnuz = _dequantize(8)
unmasked = _dequantize(7, masked=False)
"""Reads the cache at an index far outside, and stores nothing of it."""

# SPDX-License-Identifier: Apache-2.0
"""Triton pieces of attention: operands, products, and the end of a softmax.

Scores are kept in units of ln 2, since the hardware has powers of two. A softmax under way is
(total, top, mass): the highest score so far, and the sums of `exp2(score - top) * value` and of
`exp2(score - top)`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.quantize_body import e4m3fn_value, encode_fp8, rounded

__all__ = ["LOG2E", "factor_of", "level_of", "product", "real", "write_rows"]

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def factor_of(x, sequence, kv_head, stride, head_stride, KIND: tl.constexpr):
    """The scale of a sequence and KV head.

    KIND  of x: "none", "number", "tensor" (float32 of one element) or "per_head" (`[B, Hk]`)
    """
    if KIND == "none":
        factor = 1.0
    elif KIND == "number":
        factor = x
    elif KIND == "tensor":
        factor = tl.load(x)
    else:
        place = sequence.to(tl.int64) * stride + kv_head.to(tl.int64) * head_stride
        factor = tl.load(x + place)
    return factor


@triton.jit
def level_of(top):
    """What is subtracted from scores: their maximum; 0 if there is none, as -inf - -inf is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def real(x, FP8: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr):
    """x for a product: codes as WIDE, which holds every one of them; other numbers as they are.

    FP8          flavour of x: "e4m3fn", "e4m3fnuz", or "none"
    INTERPRETED  float32 by its bits: Triton's interpreter multiplies bfloat16 as integers, and does
                 not know both flavours
    """
    if not INTERPRETED:
        if FP8 != "none":
            x = x.to(WIDE)
    elif FP8 == "none":
        x = x.to(tl.float32)
    else:
        # Of e4m3fnuz the bias is larger by one; there is no infinity, and -0 is the NaN.
        NUZ: tl.constexpr = FP8 == "e4m3fnuz"
        value = e4m3fn_value(x & 0x7F)
        if NUZ:
            value = tl.where((x & 0x7F) == 0x7F, 480.0, value) * 0.5
            value = tl.where(x == 0x80, float("nan"), value)
        x = tl.where(x > 0x7F, -value, value)
    return x


@triton.jit
def product(a, b, total, INTERPRETED: tl.constexpr):
    """total + a @ b in float32; float32 itself is not rounded to TF32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def write_rows(
    total,  # [ROWS, BLOCK_DV]
    top,  # [ROWS]
    mass,
    token,  # [ROWS] int64: rows of out and lse
    head,  # [ROWS] int64
    live,  # [ROWS]: which are written
    sinks,  # [H], or None
    factor,  # what values are multiplied by
    out,
    lse,  # or None
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    DV: tl.constexpr,
    OUT_FP8: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """End a softmax: its sink, its sum, out and lse. A row without a key or a sink is 0, -inf."""
    if sinks is not None:
        sink = tl.load(sinks + head, live, other=0).to(tl.float32) * LOG2E
        highest = tl.maximum(top, sink)
        level = level_of(highest)
        shrink = tl.exp2(top - level)
        # What a fused multiplication leaves of a sink minus itself is not 0: 4e22 of 1e30.
        own = tl.exp2(tl.minimum(sink - level, 0.0))
        total, mass = total * shrink[:, None], mass * shrink + own
        top = highest
    dv = tl.arange(0, total.shape[1])
    mass = tl.where(mass > 0, mass, 1.0)  # without a key or a sink it is 0, and so is total
    value = total * (factor / mass)[:, None]
    place = token * out_stride + head * out_head_stride
    where = live[:, None] & (dv < DV)[None, :]
    if OUT_FP8 != "none":
        code = encode_fp8(value, OUT_FP8 == "e4m3fnuz", INTERPRETED)
        tl.store(out + place[:, None] + dv[None, :], code, where)
    else:
        value = rounded(value, out, INTERPRETED).to(out.dtype.element_ty)
        tl.store(out + place[:, None] + dv[None, :], value, where)
    if lse is not None:
        place = token * lse_stride + head * lse_head_stride
        tl.store(lse + place, (top + tl.log2(mass)) * _LN2, live)

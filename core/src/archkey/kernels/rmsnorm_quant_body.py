# SPDX-License-Identifier: Apache-2.0
"""One Triton body for rmsnorm_quant: norm, residual add, quantisation and a second norm beside it.

A program holds a tile of whole rows in registers as `[TILE_ROWS, GROUPS, SIZE]`: the columns that
share a scale are one line of SIZE. So rows are read once, and a scale is a reduction of one axis.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.quantize_body import (
    amax_of,
    e4m3fn_value,
    e8m0_byte,
    e8m0_inverse,
    encode_e2m1,
    encode_fp8,
    fp8_scale,
    pack_e2m1,
    ratio,
    rounded,
    scale_offset,
)
from archkey.kernels.rmsnorm_body import norm_tile, row_offsets

__all__ = ["rmsnorm_quant_body"]


@triton.jit
def _quantise(p, rstd, scale, QUANT: tl.constexpr, RULE: tl.constexpr, FNUZ, BY_BITS):
    """(codes `[R, G, S]` or packed `[R, G, S / 2]`, uint8; scales `[R, G]`, or the given one).

    Of `p * rstd[:, None, None]`. So the largest p of a group is looked for while rstd is being
    summed up, and FP8 codes take one product each.
    """
    if QUANT == "fp8_tensor":
        scales = tl.load(scale)
        codes = encode_fp8(p * ratio(rstd, scales)[:, None, None], FNUZ, BY_BITS)
    else:
        rstd = rstd[:, None]
        amax = amax_of(p, 2) * rstd
        if QUANT == "mxfp4":
            scales = e8m0_byte(amax, RULE)
            keep = tl.where(scales == 255, 0, 8)[:, :, None]
            y = p * rstd[:, :, None]  # apart: the power of two alone may be too large for rstd
            codes = pack_e2m1(encode_e2m1(y * e8m0_inverse(scales)[:, :, None], keep))
        elif QUANT == "nvfp4":
            whole = tl.load(scale)
            wanted = tl.div_rn(tl.div_rn(amax, 6.0), whole)
            # With integers: of a pair that is used twice, one assembler of Triton 3.6.0 takes
            # the second byte before the converter has written it.
            scales = encode_fp8(wanted, False, True)
            factor = e4m3fn_value(scales) * whole
            # A block whose scale is rounded to zero keeps its signs, and divides by nothing.
            shrunk = p * tl.where(factor == 0, 0.0, ratio(rstd, factor))[:, :, None]
            keep = tl.where(wanted == wanted, 8, 0)[:, :, None]
            codes = pack_e2m1(encode_e2m1(shrunk, keep))
        else:
            tl.static_assert(QUANT == "fp8_token" or QUANT == "fp8_group")
            scales = fp8_scale(amax, 240.0 if FNUZ else 448.0, RULE)
            codes = encode_fp8(p * ratio(rstd, scales)[:, :, None], FNUZ, BY_BITS)
    return codes, scales


@triton.jit
def _quant_tile(
    tile,  # which TILE_ROWS rows
    x,
    residual,
    weight,
    scale,
    out,
    out_scale,
    y_out,
    residual_out,
    rows,
    x_stride,
    x_head_stride,
    residual_stride,
    residual_head_stride,
    out_stride,
    out_head_stride,
    scale_stride,
    scale_head_stride,
    group_stride,
    y_stride,
    y_head_stride,
    residual_out_stride,
    residual_out_head_stride,
    eps,
    weight_bias,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    QUANT: tl.constexpr,
    RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
    FNUZ: tl.constexpr,
    BY_BITS: tl.constexpr,
    CAST: tl.constexpr,
):
    """Norm and codes of one tile of rows."""
    row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    live = (row < rows)[:, None]
    group = tl.arange(0, GROUPS)[None, :]
    place = tl.arange(0, SIZE)[None, None, :]
    column = group[:, :, None] * GROUP + place
    inside = (place < GROUP) & (column < N)
    mask = live[:, :, None] & inside

    at = row_offsets(row, HEADS, x_stride, x_head_stride)[:, :, None] + column
    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    if residual is not None:
        at = row_offsets(row, HEADS, residual_stride, residual_head_stride)[:, :, None] + column
        value += tl.load(residual + at, mask, other=0.0).to(tl.float32)
    w = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    squares = tl.sum(tl.sum(value * value, axis=2), axis=1)
    rstd = tl.rsqrt(squares / N + eps)
    if CAST:
        p = rounded(value * rstd[:, None, None], x, BY_BITS) * (w + weight_bias)
        p = rounded(p, x, BY_BITS)
        rstd = tl.full([TILE_ROWS], 1.0, tl.float32)
    else:
        p = value * (w + weight_bias)
    if residual_out is not None:
        at = row_offsets(row, HEADS, residual_out_stride, residual_out_head_stride)[:, :, None]
        tl.store(residual_out + at + column, value.to(residual_out.dtype.element_ty), mask)
    if y_out is not None:
        at = row_offsets(row, HEADS, y_stride, y_head_stride)[:, :, None]
        y = p * rstd[:, None, None]
        tl.store(y_out + at + column, y.to(y_out.dtype.element_ty), mask)

    codes, scales = _quantise(p, rstd, scale, QUANT, RULE, FNUZ, BY_BITS)
    at = row_offsets(row, HEADS, out_stride, out_head_stride)[:, :, None]
    if QUANT == "mxfp4" or QUANT == "nvfp4":
        byte = tl.arange(0, SIZE // 2)[None, None, :]
        pair = group[:, :, None] * (GROUP // 2) + byte
        tl.store(out + at + pair, codes, live[:, :, None] & (2 * pair < N))
    else:
        tl.store(out + at + column, codes, mask)
    if LAYOUT == "row" or LAYOUT == "col":
        if out_scale is not None:
            at = row_offsets(row, HEADS, scale_stride, scale_head_stride)
            at += group.to(tl.int64) * group_stride
            tl.store(out_scale + at, scales, live & (group * GROUP < N))
    else:
        # Padding is written too: rows and blocks that are not there have scale 0.
        HEIGHT: tl.constexpr = 256 if LAYOUT == "shuffled_gfx950" else 128
        WIDE: tl.constexpr = 8 if LAYOUT == "shuffled_gfx950" else 4
        PITCH: tl.constexpr = (N + GROUP * WIDE - 1) // (GROUP * WIDE) * WIDE
        padded = (row < (rows + HEIGHT - 1) // HEIGHT * HEIGHT)[:, None] & (group < PITCH)
        tl.store(out_scale + scale_offset(row[:, None], group, PITCH, LAYOUT), scales, padded)


@triton.jit
def rmsnorm_quant_body(
    x,  # [T, N] or [T, HEADS, N], last stride 1
    residual,  # like x, or None
    weight,  # [N]
    scale,  # [1] float32, or None: the given scale of fp8_tensor and nvfp4
    out,  # codes, bytes: [.., N], or [.., N / 2] where two are packed
    out_scale,  # as LAYOUT says, or None
    y_out,  # like x, or None; may be x: the norm, not quantised
    residual_out,  # like x, or None; may be residual or x
    x2,  # [T, N2] or [T, X2_HEADS, N2], or None: no second norm
    x2_weight,  # [N2]
    x2_out,  # like x2; may be x2
    rows,  # T * HEADS
    tiles,  # programs of the first norm
    x_stride,  # [elements] from token to token, and from head to head
    x_head_stride,
    residual_stride,
    residual_head_stride,
    out_stride,
    out_head_stride,
    scale_stride,
    scale_head_stride,
    group_stride,  # from scale to scale of a row
    y_stride,
    y_head_stride,
    residual_out_stride,
    residual_out_head_stride,
    x2_rows,  # T * X2_HEADS
    x2_stride,
    x2_head_stride,
    x2_out_stride,
    x2_out_head_stride,
    eps,
    x2_eps,
    weight_bias,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # columns that share a scale
    GROUPS: tl.constexpr,  # powers of two: at least the groups of a row, and
    SIZE: tl.constexpr,  # at least GROUP
    TILE_ROWS: tl.constexpr,  # rows of a program, a power of two
    QUANT: tl.constexpr,  # a kind of rmsnorm_quant
    RULE: tl.constexpr,  # mxfp4: the carry of its scale_mode; fp8: whether scales are powers of 2
    LAYOUT: tl.constexpr,  # scale_layout
    FNUZ: tl.constexpr,  # FP8 is e4m3fnuz
    BY_BITS: tl.constexpr,  # convert to FP8 with integers
    CAST_BEFORE_WEIGHT: tl.constexpr,  # round x * rstd and its product with the weight to x's dtype
    X2_N: tl.constexpr,
    X2_HEADS: tl.constexpr,
    X2_BLOCK: tl.constexpr,
    X2_TILE_ROWS: tl.constexpr,
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
):
    """See `archkey.ops.rmsnorm_quant`. Absent tensors are None.

    The first `tiles` programs take x, those after them x2.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # this early: see rmsnorm_body
    program = tl.program_id(0)
    if x2 is None or program < tiles:
        _quant_tile(
            program,
            x,
            residual,
            weight,
            scale,
            out,
            out_scale,
            y_out,
            residual_out,
            rows,
            x_stride,
            x_head_stride,
            residual_stride,
            residual_head_stride,
            out_stride,
            out_head_stride,
            scale_stride,
            scale_head_stride,
            group_stride,
            y_stride,
            y_head_stride,
            residual_out_stride,
            residual_out_head_stride,
            eps,
            weight_bias,
            N,
            HEADS,
            GROUP,
            GROUPS,
            SIZE,
            TILE_ROWS,
            QUANT,
            RULE,
            LAYOUT,
            FNUZ,
            BY_BITS,
            CAST_BEFORE_WEIGHT,
        )
    else:
        norm_tile(
            program - tiles,
            x2,
            None,
            x2_weight,
            x2_out,
            None,
            x2_rows,
            x2_stride,
            x2_head_stride,
            0,
            0,
            x2_out_stride,
            x2_out_head_stride,
            0,
            0,
            x2_eps,
            weight_bias,
            X2_N,
            X2_HEADS,
            X2_BLOCK,
            X2_TILE_ROWS,
            CAST_BEFORE_WEIGHT,
        )

# SPDX-License-Identifier: Apache-2.0
"""Triton pieces of attention: tiles, operands, products, steps of a softmax and its end.

Scores are kept in units of ln 2, since the hardware has powers of two. A softmax under way is
(total, top, mass): the highest score so far, and the sums of `exp2(score - top) * value` and of
`exp2(score - top)`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.quantize_body import e4m3fn_value, encode_fp8, rounded

__all__ = [
    "LN2",
    "LOG2E",
    "factor_of",
    "fold",
    "level_of",
    "page_of",
    "place_of",
    "product",
    "real",
    "sum_segments",
    "tile_of",
    "weigh",
    "write_rows",
    "write_tail",
]

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


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
def tile_of(cu_seqlens_q, sequences, tile, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """(sequence, number of the tile in it) of tile `tile` of all.

    Sequence i has room for its tiles from `cu_seqlens_q[i] * GROUP // ROWS + i` on; what is left
    over of the room has no rows.
    """
    low, high = tl.full([], 0, tl.int32), sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens_q + middle) * GROUP // ROWS + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low, tile - (tl.load(cu_seqlens_q + low) * GROUP // ROWS + low)


@triton.jit
def page_of(table, j, there, start, last, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """Page of each key that is there, otherwise 0; of the step from `start` if they are in one."""
    if PAGE % KEYS == 0:
        page = tl.load(table + start // PAGE, start < last, other=0)
    else:
        page = tl.load(table + j // PAGE, there, other=0)
    return page


@triton.jit
def place_of(lane, page, slot, block_stride, slot_stride, UNIT: tl.constexpr, ONE: tl.constexpr):
    """Addresses [KEYS, columns] of a step's rows; ONE: page and slot are the same for all."""
    offset = (page.to(tl.int64) * block_stride + slot * slot_stride) * UNIT
    return lane + (offset if ONE else offset[:, None])


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
def weigh(score, top, mass, factor, CAPPED: tl.constexpr):
    """(weight of each key, what the sums so far shrink by, top, mass) with a step's scores.

    score   [ROWS, KEYS], -inf where a row does not see a key
    factor  of scores. It is applied within the exponent, after the mask: a product that is rounded
            into a sum in one loop must be in all of them, or a row's bits would tell which keys
            another row does not see
    CAPPED  scores may be so huge that a fused product leaves more than 0 of one
    """
    highest = tl.maximum(top, tl.max(score, 1) * factor)
    level = level_of(highest)
    exponent = score * factor - level[:, None]
    if CAPPED:
        exponent = tl.minimum(exponent, 0.0)
    weight = tl.exp2(exponent)
    shrink = tl.exp2(top - level)
    return weight, shrink, highest, mass * shrink + tl.sum(weight, 1)


@triton.jit
def fold(
    score,  # see `weigh`
    value,  # [KEYS, BLOCK_DV]
    total,  # the softmax so far
    top,
    mass,
    factor,
    CAPPED: tl.constexpr,
    FP8: tl.constexpr,  # of value; WIDE, INTERPRETED: as in `real`
    WIDE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(total, top, mass) with a step's keys."""
    weight, shrink, top, mass = weigh(score, top, mass, factor, CAPPED)
    value = real(value, FP8, WIDE, INTERPRETED)
    total = product(weight.to(value.dtype), value, total * shrink[:, None], INTERPRETED)
    return total, top, mass


@triton.jit
def sum_segments(
    part_total,  # [segments, >= DV] of a row, last stride 1
    part_top,  # [segments]
    part_mass,
    segments,
    stride,
    DV: tl.constexpr,
    TOGETHER: tl.constexpr,  # segments that are added at once
    BLOCK_DV: tl.constexpr,
):
    """(total [BLOCK_DV], top, mass) of a row whose keys were split, in the order of its segments.

    What a segment without a key left in part_total is not read.
    """
    dv = tl.arange(0, BLOCK_DV)
    total = tl.zeros([BLOCK_DV], tl.float32)
    top = tl.full([], float("-inf"), tl.float32)
    mass = tl.full([], 0, tl.float32)
    for start in tl.range(0, segments, TOGETHER):
        segment = start + tl.arange(0, TOGETHER)
        there = segment < segments
        tops = tl.load(part_top + segment, there, other=float("-inf"))
        there = tops != float("-inf")  # a NaN is a key too
        highest = tl.maximum(top, tl.max(tops, 0))
        level = level_of(highest)
        shrink, weights = tl.exp2(top - level), tl.exp2(tops - level)
        mass = mass * shrink + tl.sum(weights * tl.load(part_mass + segment, there, other=0), 0)
        source = part_total + segment[:, None] * stride + dv[None, :]
        totals = tl.load(source, there[:, None] & (dv < DV)[None, :], other=0)
        total = total * shrink + tl.sum(weights[:, None] * totals, 0)
        top = highest
    return total, top, mass


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
        tl.store(lse + place, (top + tl.log2(mass)) * LN2, live)


@triton.jit
def write_tail(
    first,  # token
    tokens,
    kv_head,
    program,  # of `programs` that share the tail's rows
    programs,
    out,
    lse,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    OUT_FP8: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Rows past the last sequence, which see no key and have no sink."""
    count = (tokens - first) * GROUP
    for row in tl.range(program * ROWS, count, programs * ROWS):
        rows = row + tl.arange(0, ROWS)
        write_rows(
            tl.zeros([ROWS, BLOCK_DV], tl.float32), tl.full([ROWS], float("-inf"), tl.float32),
            tl.zeros([ROWS], tl.float32), (first + rows // GROUP).to(tl.int64),
            (kv_head * GROUP + rows % GROUP).to(tl.int64), rows < count, None, 1.0, out, lse,
            out_stride, out_head_stride, lse_stride, lse_head_stride, DV, OUT_FP8, INTERPRETED,
        )  # fmt: skip

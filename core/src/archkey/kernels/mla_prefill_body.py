# SPDX-License-Identifier: Apache-2.0
"""One Triton body for ragged attention over contiguous keys: the prefill of MLA.

As in `attention_body`, the rows of a tile are queries of one sequence with all heads that share a
KV head, and steps over the keys begin at multiples of their size from the sequence's first key:
a row's sums are the same wherever it lies in a tile, whatever else is in the batch.

A width that is no power of two is cut into two, 192 into 128 + 64, each with a product of its own:
rounded up it would cost a third more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import (
    LOG2E,
    factor_of,
    fold,
    product,
    real,
    tile_of,
    write_rows,
    write_tail,
)

__all__ = ["mla_prefill_body"]


@triton.jit
def _attend(
    q,  # [ROWS, WIDTH]
    q_rest,  # [ROWS, REST], or None
    total,  # [ROWS, DV] and twice [ROWS]: see `attention_parts`
    top,
    mass,
    k,  # of the sequence and KV head
    v,
    k_stride,  # [elements] int64, of a key
    v_stride,
    begin,  # a multiple of KEYS
    end,  # a multiple of KEYS, unless MASKED
    keys,  # of the sequence; no other is read
    position,  # [ROWS] number of the last key that a row sees, if CAUSAL
    factor,
    MASKED: tl.constexpr,  # some row may not see some key
    CAUSAL: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    FP8: tl.constexpr,
    WIDE: tl.constexpr,  # what v is converted to, if at all
    INTERPRETED: tl.constexpr,
):
    """(total, top, mass) with the keys from `begin` to `end`."""
    WIDTH: tl.constexpr = q.shape[1]
    lane = tl.arange(0, KEYS)
    k_lane = k + lane.to(tl.int64)[:, None] * k_stride
    k_place = k_lane + tl.arange(0, WIDTH)[None, :]
    if q_rest is not None:
        rest_place = k_lane + (tl.arange(0, q_rest.shape[1]) + WIDTH)[None, :]
    v_place = v + lane.to(tl.int64)[:, None] * v_stride + tl.arange(0, total.shape[1])[None, :]
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        k_step, v_step = start * k_stride, start * v_stride  # of 64 bits, as strides are
        j = start + lane
        # What follows a sequence's keys may be NaN: values become 0, as 0 * NaN is NaN, and scores
        # are masked below.
        there = (j < keys)[:, None]
        key_rest = None
        if MASKED:
            key = tl.load(k_place + k_step, there, other=0.0)
            if q_rest is not None:
                key_rest = tl.load(rest_place + k_step, there, other=0.0)
            value = tl.load(v_place + v_step, there, other=0.0)
        else:
            key = tl.load(k_place + k_step)
            if q_rest is not None:
                key_rest = tl.load(rest_place + k_step)
            value = tl.load(v_place + v_step)
        if INTERPRETED:
            key = real(key, FP8, WIDE, True)
        score = product(q, key.T, None, INTERPRETED)
        if key_rest is not None:
            if INTERPRETED:
                key_rest = real(key_rest, FP8, WIDE, True)
            score = product(q_rest, key_rest.T, score, INTERPRETED)
        if MASKED:
            seen = j[None, :] <= position[:, None] if CAUSAL else (j < keys)[None, :]
            score = tl.where(seen, score, float("-inf"))
        total, top, mass = fold(
            score, value, total, top, mass, factor, False, FP8, WIDE, INTERPRETED
        )
    return total, top, mass


@triton.jit
def mla_prefill_body(
    q,  # [Tq, H, WIDTH + REST], last stride 1
    k,  # [Tk, HEADS, WIDTH + REST], last stride 1
    v,  # [Tk, HEADS, DV], last stride 1
    cu_seqlens_q,  # [B + 1] int32
    cu_seqlens_k,  # [B + 1] int32
    q_descale,  # a number, float32 [1], or None; k_descale, v_descale: the same
    k_descale,
    v_descale,
    out,  # [Tq, H, DV], last stride 1
    lse,  # [Tq, H] float32, or None
    tokens,  # Tq
    sequences,  # B
    tail,  # programs a KV head that write the rows past the last sequence
    together,  # KV heads that are worked through together
    softmax_scale,
    q_stride,  # [UNIT elements] of a token, and of a head
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    out_stride,  # [OUT_UNIT elements]
    out_head_stride,
    lse_stride,  # [elements]
    lse_head_stride,
    HEADS: tl.constexpr,  # Hk
    GROUP: tl.constexpr,  # H / Hk
    WIDTH: tl.constexpr,  # columns of q and k in the first product, a power of two
    REST: tl.constexpr,  # and in the second; 0: there is none
    DV: tl.constexpr,  # a power of two
    UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    Q_DESCALE: tl.constexpr,  # kinds, see `factor_of`
    K_DESCALE: tl.constexpr,
    V_DESCALE: tl.constexpr,
    FP8: tl.constexpr,  # flavour of q, k and v: "none", "e4m3fn", "e4m3fnuz"
    ROWS: tl.constexpr,  # of a tile
    KEYS: tl.constexpr,  # of a step
    STAGES: tl.constexpr,
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
    INTERPRETED: tl.constexpr,
):
    """A tile of rows of a sequence and a KV head a program, see `archkey.ops.mla`.

    Grid: (tiles + tail) * HEADS. Absent tensors are None.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        # Safe this early: the next kernel's own wait still lasts until this grid is done. It may
        # only take the places that finished programs leave.
        tl.extra.cuda.gdc_launch_dependents()
    tiles = tl.num_programs(0) // HEADS - tail
    out_stride, out_head_stride = out_stride * OUT_UNIT, out_head_stride * OUT_UNIT
    place = tl.program_id(0)
    if place >= tiles * HEADS:
        place -= tiles * HEADS
        write_tail(
            tl.load(cu_seqlens_q + sequences), tokens, place % HEADS, place // HEADS, tail, out,
            lse, out_stride, out_head_stride, lse_stride, lse_head_stride, GROUP, DV, "none", ROWS,
            DV, INTERPRETED,
        )  # fmt: skip
        return
    # The last queries of a sequence see the most keys: begin with them, of the heads whose keys
    # the cache holds at once.
    first = place // (tiles * together) * together  # KV head
    width = tl.minimum(together, HEADS - first)
    place -= first * tiles
    kv_head = first + place % width
    sequence, number = tile_of(cu_seqlens_q, sequences, tiles - 1 - place // width, GROUP, ROWS)
    row = number * ROWS
    begin = tl.load(cu_seqlens_q + sequence)
    queries = tl.load(cu_seqlens_q + sequence + 1) - begin
    count = queries * GROUP
    if row >= count:
        return

    rows = row + tl.arange(0, ROWS)
    live = rows < count
    t = rows // GROUP
    token, head = (begin + t).to(tl.int64), (kv_head * GROUP + rows % GROUP).to(tl.int64)
    q += (token * (q_stride * UNIT) + head * (q_head_stride * UNIT))[:, None]
    query = tl.load(q + tl.arange(0, WIDTH)[None, :], live[:, None], other=0.0)
    query_rest = None
    if REST:
        columns = tl.arange(0, REST) + WIDTH
        query_rest = tl.load(q + columns[None, :], live[:, None], other=0.0)
    WIDE: tl.constexpr = tl.bfloat16 if FP8 != "none" else query.dtype
    if INTERPRETED:
        query = real(query, FP8, WIDE, True)
        if REST:
            query_rest = real(query_rest, FP8, WIDE, True)

    first_key = tl.load(cu_seqlens_k + sequence)
    keys = tl.load(cu_seqlens_k + sequence + 1) - first_key
    stop, inner = keys, keys  # keys that some row sees, and that all rows see
    context = keys - queries
    if CAUSAL:
        # Of the last row and of the first.
        stop = tl.maximum(context + (tl.minimum(row + ROWS, count) - 1) // GROUP + 1, 0)
        inner = tl.maximum(context + row // GROUP + 1, 0)
    inner = inner // KEYS * KEYS

    factor = softmax_scale * LOG2E * factor_of(q_descale, sequence, kv_head, 0, 0, Q_DESCALE)
    factor *= factor_of(k_descale, sequence, kv_head, 0, 0, K_DESCALE)
    k_stride, v_stride = k_stride * UNIT, v_stride * UNIT
    k += first_key.to(tl.int64) * k_stride + kv_head.to(tl.int64) * (k_head_stride * UNIT)
    v += first_key.to(tl.int64) * v_stride + kv_head.to(tl.int64) * (v_head_stride * UNIT)
    total = tl.zeros([ROWS, DV], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    bounds = (0, inner, stop)
    for part in tl.static_range(2):
        total, top, mass = _attend(
            query, query_rest, total, top, mass, k, v, k_stride, v_stride, bounds[part],
            bounds[part + 1], keys, context + t, factor, part == 1, CAUSAL, KEYS, STAGES, FP8,
            WIDE, INTERPRETED,
        )  # fmt: skip

    factor = factor_of(v_descale, sequence, kv_head, 0, 0, V_DESCALE)
    write_rows(
        total, top, mass, token, head, live, None, factor, out, lse, out_stride, out_head_stride,
        lse_stride, lse_head_stride, DV, "none", INTERPRETED,
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The loop of attention over paged keys, which the bodies of `attention_body` inline."""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import LOG2E, fold, page_of, place_of, product, real

__all__ = ["attend"]


@triton.jit
def _loaded(place, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows whose columns past WIDTH are 0."""
    return tl.load(place) if WIDTH == BLOCK else tl.load(place, column < WIDTH, other=0.0)


@triton.jit
def attend(
    q,  # [ROWS, BLOCK_D]
    total,  # [ROWS, BLOCK_DV] and twice [ROWS]: see `attention_parts`
    top,
    mass,
    k,  # of the KV head
    v,
    k_block_stride,
    k_slot_stride,
    v_block_stride,
    v_slot_stride,
    table,  # of the sequence
    begin,  # a multiple of KEYS
    end,
    first,  # keys from `first` to `last` are seen by some row; no other is read
    last,
    t,  # [ROWS] number of the query in its sequence
    context,  # keys before the first query
    queries,
    window_left,
    scale,
    softcap,
    slope,  # [ROWS], or None
    qq_bias,  # or None
    qq_bias_stride,
    MASKED: tl.constexpr,  # some row may not see some key
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    KV_UNIT: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    FP8: tl.constexpr,  # of k and v
    Q_FP8: tl.constexpr,
    WIDE: tl.constexpr,  # what k and v are converted to, if at all
    INTERPRETED: tl.constexpr,
):
    """(total, top, mass) with the keys from `begin` to `end`."""
    PLAIN: tl.constexpr = not SOFTCAP and slope is None and qq_bias is None
    BLOCK_D: tl.constexpr = q.shape[1]
    BLOCK_DV: tl.constexpr = total.shape[1]
    d, dv = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    position = (context + t)[:, None]
    lane = tl.arange(0, KEYS)
    # Of a key's slot in its page, the part that no step changes; the rest is `slot`, below.
    ONE: tl.constexpr = PAGE % KEYS == 0
    FIXED: tl.constexpr = ONE or KEYS % PAGE == 0
    slots = (lane % PAGE if FIXED else tl.zeros_like(lane)).to(tl.int64)[:, None]
    k_lane = k + slots * k_slot_stride * KV_UNIT + d
    v_lane = v + slots * v_slot_stride * KV_UNIT + dv
    factor = scale * LOG2E if PLAIN else LOG2E
    # Pages are read a step ahead: keys that waited for them would not be on their way in time. They
    # are taken along as they were read; Triton 3.6 pipelines nothing if this step computes on them.
    j = begin + lane
    page = page_of(table, j, (j >= first) & (j < last), begin, last, PAGE, KEYS)
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        j = start + lane
        there = (j >= first) & (j < last)
        slot = 0 if KEYS % PAGE == 0 else start % PAGE if ONE else j % PAGE
        k_place = place_of(k_lane, page, slot, k_block_stride, k_slot_stride, KV_UNIT, ONE)
        v_place = place_of(v_lane, page, slot, v_block_stride, v_slot_stride, KV_UNIT, ONE)
        page = page_of(table, j + KEYS, j + KEYS < last, start + KEYS, last, PAGE, KEYS)
        # Memory that is not in use may be NaN: values become 0, as 0 * NaN is NaN, and scores are
        # masked below.
        if MASKED:
            key = tl.load(k_place, there[:, None] & (d < D), other=0.0)
            value = tl.load(v_place, there[:, None] & (dv < DV), other=0.0)
        else:
            key = _loaded(k_place, d, D, BLOCK_D)
            value = _loaded(v_place, dv, DV, BLOCK_DV)
        if INTERPRETED or Q_FP8 == "none":
            key = real(key, FP8, WIDE, INTERPRETED)
        score = product(q, key.T, None, INTERPRETED)
        if not PLAIN:
            score *= scale
            if SOFTCAP:
                # tanh(x) = 1 - 2 / (e^2x + 1), in which no infinity meets another
                score = softcap - 2 * softcap / (tl.exp2(score * (2 * LOG2E / softcap)) + 1)
            if slope is not None:
                score += slope[:, None] * (j[None, :] - position).to(tl.float32)
            if qq_bias is not None:
                other = (j - context)[None, :]
                known = (other >= 0) & (other <= t[:, None]) & (t < queries)[:, None]
                place = t.to(tl.int64)[:, None] * qq_bias_stride + other
                score += tl.load(qq_bias + place, known, other=0).to(tl.float32)
        if MASKED:
            seen = (j[None, :] <= position) & there[None, :]
            if WINDOW:
                seen = seen & (j[None, :] >= position - window_left)
            score = tl.where(seen, score, float("-inf"))
        total, top, mass = fold(
            score, value, total, top, mass, factor, qq_bias is not None, FP8, WIDE, INTERPRETED
        )
    return total, top, mass

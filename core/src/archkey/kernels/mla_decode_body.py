# SPDX-License-Identifier: Apache-2.0
"""One Triton body for absorbed MLA decode: a tile of queries against a sequence's latent cache.

The rows of a tile are the queries of one sequence with all their heads, query after query: there is
one KV head, so any number of heads fills tiles without padding. A key's row is loaded once and is
key and value: its first 512 columns, the latent, go into both products, the 64 after them, the
rotated key, into the scores alone (and into the values if they are asked for that wide).

Steps over the keys begin at multiples of their size, counted from the sequence's first key, so that
a row's sums are the same in every tile. Where tiles are few, the keys of a sequence are split into
segments, whose sums go through a workspace to a second body.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import (
    LOG2E,
    factor_of,
    page_of,
    place_of,
    product,
    real,
    sum_segments,
    tile_of,
    weigh,
    write_rows,
)

__all__ = ["LATENT", "mla_decode_body", "mla_decode_segments_body"]

LATENT: tl.constexpr = tl.constexpr(512)


@triton.jit
def mla_decode_body(
    q,  # [B, Q, HEADS, D], or [T, HEADS, D] with cu_seqlens_q; last stride 1
    kv_cache,  # [blocks, PAGE, D], last stride 1
    block_table,  # [B, n] int32, last stride 1
    cache_seqlens,  # [B] int32
    cu_seqlens_q,  # [B + 1] int32, or None
    q_descale,  # a number, float32 [1], or None; kv_descale: the same
    kv_descale,
    out,  # as q, of DV columns
    lse,  # [T, HEADS] float32, or None
    part_total,  # [T, HEADS, segments, DV] float32; part_top, part_mass: without the last axis
    part_top,
    part_mass,
    tokens,  # T
    sequences,  # B
    queries,  # Q; with cu_seqlens_q unused
    segments,  # parts of a sequence's keys, the second axis of the grid
    window_left,
    softmax_scale,
    q_sequence_stride,  # [UNIT elements] of a sequence (0 with cu_seqlens_q), a token, a head
    q_stride,
    q_head_stride,
    block_stride,  # [KV_UNIT elements]
    slot_stride,
    out_sequence_stride,  # [OUT_UNIT elements]
    out_stride,
    out_head_stride,
    lse_stride,  # [elements], and so is the next
    lse_head_stride,
    table_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    Q_DESCALE: tl.constexpr,  # kinds, see `factor_of`
    KV_DESCALE: tl.constexpr,
    Q_FP8: tl.constexpr,  # flavours of q and of the cache: "none", "e4m3fn", "e4m3fnuz"
    FP8: tl.constexpr,
    SPLITS: tl.constexpr,  # segments may be more than one
    ROWS: tl.constexpr,  # of a tile
    KEYS: tl.constexpr,  # of a step
    STAGES: tl.constexpr,
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
    INTERPRETED: tl.constexpr,
):
    """A tile of rows of a sequence and a segment of its keys a program, see `archkey.ops.mla`.

    Grid: tiles, segments; the tiles of a sequence lie side by side, so that its keys are
    read from memory once. Absent tensors are None.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    ROPE: tl.constexpr = D - LATENT
    program = tl.program_id(0)
    begin, sequence = tl.full([], 0, tl.int32), program
    if cu_seqlens_q is None:
        tiles = tl.cdiv(queries * HEADS, ROWS)
        sequence, number = program // tiles, program % tiles
        first_token = sequence * queries
    else:  # rows past the last sequence are one more, without a key
        sequence, number = tile_of(cu_seqlens_q, sequences + 1, program, HEADS, ROWS)
        begin = tl.load(cu_seqlens_q + sequence)
        queries = tl.load(cu_seqlens_q + sequence + 1, sequence < sequences, other=tokens) - begin
        first_token = begin
    length = tl.load(cache_seqlens + sequence, sequence < sequences, other=0)
    row, count = number * ROWS, queries * HEADS
    if row >= count:
        return
    rows = row + tl.arange(0, ROWS)
    live = rows < count
    t, head = rows // HEADS, (rows % HEADS).to(tl.int64)
    sequence = sequence.to(tl.int64)
    token = (begin + t).to(tl.int64)
    d, r = tl.arange(0, LATENT)[None, :], tl.arange(0, ROPE if ROPE else 16)[None, :]
    q += sequence * (q_sequence_stride * UNIT)
    q_rows = q + (token * (q_stride * UNIT) + head * (q_head_stride * UNIT))[:, None]
    query = tl.load(q_rows + d, live[:, None], other=0.0)
    turned = tl.load(q_rows + LATENT + r, live[:, None], other=0.0) if ROPE else None
    if INTERPRETED:
        query = real(query, Q_FP8, tl.float32, True)
        turned = real(turned, Q_FP8, tl.float32, True) if ROPE else None

    # Keys that some row sees, and of them those of this segment.
    context = length - queries
    first, last = 0, length
    if CAUSAL:
        last = tl.maximum(context + (tl.minimum(row + ROWS, count) - 1) // HEADS + 1, 0)
    if WINDOW:  # of a lone query
        first = tl.maximum(length - 1 - window_left, 0)
    start, stop = first // KEYS * KEYS, last
    if SPLITS and segments > 1:
        steps = tl.cdiv(tl.cdiv(last - start, KEYS), segments)
        start = start + tl.program_id(1) * steps * KEYS
        stop = tl.minimum(start + steps * KEYS, last)

    scale = softmax_scale * factor_of(q_descale, 0, 0, 0, 0, Q_DESCALE)
    factor = scale * factor_of(kv_descale, 0, 0, 0, 0, KV_DESCALE) * LOG2E
    WIDE: tl.constexpr = tl.bfloat16 if Q_FP8 != "none" else query.dtype
    ONE: tl.constexpr = PAGE % KEYS == 0
    FIXED: tl.constexpr = ONE or KEYS % PAGE == 0
    lane = tl.arange(0, KEYS)
    slots = (lane % PAGE if FIXED else tl.zeros_like(lane)).to(tl.int64)[:, None]
    kv_lane = kv_cache + slots * slot_stride * KV_UNIT
    table = block_table + sequence * table_stride
    total = tl.zeros([ROWS, LATENT], tl.float32)
    beyond = tl.zeros([ROWS, ROPE], tl.float32) if DV > LATENT else None
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    # Pages are read a step ahead, and taken along as they were read: see `attention_loop`.
    j = start + lane
    page = page_of(table, j, (j >= first) & (j < last), start, last, PAGE, KEYS)
    for step in tl.range(start, stop, KEYS, num_stages=STAGES):
        j = step + lane
        there = (j >= first) & (j < last)
        slot = 0 if KEYS % PAGE == 0 else step % PAGE if ONE else j % PAGE
        place = place_of(kv_lane, page, slot, block_stride, slot_stride, KV_UNIT, ONE)
        page = page_of(table, j + KEYS, j + KEYS < last, step + KEYS, last, PAGE, KEYS)
        # Memory that is not in use may be NaN: it becomes 0, as 0 * NaN is NaN.
        latent = tl.load(place + d, there[:, None], other=0.0)
        if INTERPRETED or Q_FP8 == "none":
            latent = real(latent, FP8, WIDE, INTERPRETED)
        score = product(query, latent.T, None, INTERPRETED)
        if ROPE:
            key = tl.load(place + LATENT + r, there[:, None], other=0.0)
            if INTERPRETED or Q_FP8 == "none":
                key = real(key, FP8, WIDE, INTERPRETED)
            score = product(turned, key.T, score, INTERPRETED)
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (j[None, :] <= (context + t)[:, None])
        score = tl.where(seen, score, float("-inf"))
        weight, shrink, top, mass = weigh(score, top, mass, factor, False)
        value = latent.to(WIDE) if Q_FP8 != "none" and not INTERPRETED else latent
        weight = weight.to(value.dtype)
        total = product(weight, value, total * shrink[:, None], INTERPRETED)
        if DV > LATENT:
            value = key.to(WIDE) if Q_FP8 != "none" and not INTERPRETED else key
            beyond = product(weight, value, beyond * shrink[:, None], INTERPRETED)

    if SPLITS and segments > 1:
        part = ((first_token + t).to(tl.int64) * HEADS + head) * segments + tl.program_id(1)
        tl.store(part_top + part, top, live)
        tl.store(part_mass + part, mass, live)
        if start < stop:  # sums of no key are not read
            sums = part_total + part[:, None] * DV
            tl.store(sums + d, total, live[:, None] & (d < DV))
            if DV > LATENT:
                tl.store(sums + LATENT + r, beyond, live[:, None] & (LATENT + r < DV))
    else:
        factor = factor_of(kv_descale, 0, 0, 0, 0, KV_DESCALE)
        out += sequence * (out_sequence_stride * OUT_UNIT)
        row_stride, head_stride = out_stride * OUT_UNIT, out_head_stride * OUT_UNIT
        if DV > LATENT:
            write_rows(
                beyond, top, mass, token, head, live, None, factor, out + LATENT, None, row_stride,
                head_stride, 0, 0, DV - LATENT, "none", INTERPRETED,
            )  # fmt: skip
        if lse is not None:
            lse += first_token.to(tl.int64) * lse_stride - begin.to(tl.int64) * lse_stride
        write_rows(
            total, top, mass, token, head, live, None, factor, out, lse, row_stride, head_stride,
            lse_stride, lse_head_stride, DV, "none", INTERPRETED,
        )  # fmt: skip


@triton.jit
def mla_decode_segments_body(
    kv_descale,  # tensors and strides as in `mla_decode_body`
    out,
    lse,
    part_total,
    part_top,
    part_mass,
    queries,  # of a sequence; with cu_seqlens_q as many as there are tokens
    segments,
    out_sequence_stride,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    HEADS: tl.constexpr,
    DV: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    KV_DESCALE: tl.constexpr,
    TOGETHER: tl.constexpr,  # segments that are added at once
    BLOCK_DV: tl.constexpr,  # columns of a program: a part of DV, or more than DV
    USE_PDL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Some columns of a head of a query a program: the sum of its segments, in their order.

    Grid: T * HEADS, parts of DV. All parts of a row write its lse, which is the same.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_DV
    token, head = row // HEADS, row % HEADS
    WIDTH: tl.constexpr = min(DV, BLOCK_DV)
    total, top, mass = sum_segments(
        part_total + row * segments * DV + column, part_top + row * segments,
        part_mass + row * segments, segments, DV, WIDTH, TOGETHER, BLOCK_DV,
    )  # fmt: skip
    out += token // queries * (out_sequence_stride * OUT_UNIT) + column
    if lse is not None:
        lse += (token - token % queries) * lse_stride
    one = tl.zeros([1], tl.int32)
    write_rows(
        total[None, :], top + one, mass + one, token % queries + one, head + one, one == 0, None,
        factor_of(kv_descale, 0, 0, 0, 0, KV_DESCALE), out, lse, out_stride * OUT_UNIT,
        out_head_stride * OUT_UNIT, lse_stride, lse_head_stride, WIDTH, "none", INTERPRETED,
    )  # fmt: skip

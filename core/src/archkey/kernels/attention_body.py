# SPDX-License-Identifier: Apache-2.0
"""One Triton body for unified attention: a tile of queries against the keys that they see.

The rows of a tile are queries of one sequence with all heads that share a KV head, query after
query, so that keys are read once for the whole group, whatever its size is. Steps over the keys
begin at multiples of their size, counted from the sequence's first key. So a row's sums are the
same in every tile, and a step of which it sees no key changes no bit of them: results depend
neither on the batch nor on how a prefill was cut.

Where tiles are few, the keys of a sequence are split into segments, whose sums go through a
workspace to a second body, in `attention_segments_body`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_loop import attend
from archkey.kernels.attention_parts import factor_of, real, tile_of, write_rows, write_tail

__all__ = ["unified_attention_body"]


@triton.jit
def unified_attention_body(
    q,  # [T, H, D], last stride 1
    k,  # [blocks, PAGE, Hk, D], last stride 1
    v,  # [blocks, PAGE, Hk, DV], last stride 1
    cu_seqlens_q,  # [B + 1] int32
    seqused_k,  # [B] int32
    block_table,  # [>= B, n] int32, last stride 1
    q_descale,  # a number, float32 [1] or [B, Hk], or None; k_descale, v_descale: the same
    k_descale,
    v_descale,
    alibi_slopes,  # [H], or None
    qq_bias,  # [Q, Q], last stride 1, or None
    sinks,  # [H], or None
    output_scale,  # a number, float32 [1], or None
    out,  # [T, H, DV], last stride 1
    lse,  # [T, H] float32, or None
    part_total,  # [.., H, segments, >= DV] float32, last stride 1
    part_top,  # [.., H, segments] float32, last stride 1; part_mass: the same
    part_mass,
    tokens,  # T
    sequences,  # B
    segments,  # parts of a sequence's keys, the third axis of the grid
    tail,  # programs, after those of the tiles, that write the rows past the last sequence
    each,  # rows a sequence of the workspace; 0: it has a row a token
    window_left,
    softmax_scale,
    softcap,
    q_stride,  # [UNIT elements] of a token, and of a head
    q_head_stride,
    k_block_stride,  # [KV_UNIT elements]
    k_slot_stride,
    k_head_stride,
    v_block_stride,
    v_slot_stride,
    v_head_stride,
    out_stride,  # [OUT_UNIT elements]
    out_head_stride,
    lse_stride,  # [elements], and so are all others
    lse_head_stride,
    table_stride,
    q_descale_stride,
    q_descale_head_stride,
    k_descale_stride,
    k_descale_head_stride,
    v_descale_stride,
    v_descale_head_stride,
    qq_bias_stride,
    part_stride,
    part_head_stride,
    part_segment_stride,
    part_top_stride,
    part_top_head_stride,
    part_mass_stride,
    part_mass_head_stride,
    HEADS: tl.constexpr,  # Hk
    GROUP: tl.constexpr,  # H / Hk
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    Q_DESCALE: tl.constexpr,  # kinds, see `factor_of`
    K_DESCALE: tl.constexpr,
    V_DESCALE: tl.constexpr,
    OUTPUT_SCALE: tl.constexpr,
    Q_FP8: tl.constexpr,  # flavours of q, of k and v, of out: "none", "e4m3fn", "e4m3fnuz"
    FP8: tl.constexpr,
    OUT_FP8: tl.constexpr,
    ABOVE: tl.constexpr,  # sequences of more than ABOVE rows, and at most MOST, if that is not 0
    MOST: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    KEYS: tl.constexpr,  # of a step
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PEEL: tl.constexpr,  # steps that no mask touches have a loop of their own
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A tile of rows of a sequence and a KV head a program, see `archkey.ops.attention`.

    Grid with MOST, which is at most ROWS: (B + tail) * HEADS, 1, segments, so that the heads of a
    page are read together; without it: tiles + tail, HEADS, 1. Absent tensors are None.
    """
    if MOST:
        kv_head, place = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
        tiles = sequences
    else:
        kv_head, place = tl.program_id(1), tl.program_id(0)
        tiles = tl.num_programs(0) - tail
    out_stride, out_head_stride = out_stride * OUT_UNIT, out_head_stride * OUT_UNIT
    if place >= tiles:
        if tl.program_id(2) == 0:
            write_tail(
                tl.load(cu_seqlens_q + sequences), tokens, kv_head, place - tiles, tail, out, lse,
                out_stride, out_head_stride, lse_stride, lse_head_stride, GROUP, DV, OUT_FP8, ROWS,
                BLOCK_DV, INTERPRETED,
            )  # fmt: skip
        return
    if MOST:
        sequence, row = place, 0
    else:  # the last queries of a sequence see the most keys: begin with them
        sequence, number = tile_of(cu_seqlens_q, sequences, tiles - 1 - place, GROUP, ROWS)
        row = number * ROWS
    begin = tl.load(cu_seqlens_q + sequence)
    queries = tl.load(cu_seqlens_q + sequence + 1) - begin
    count = queries * GROUP
    if row >= count or count <= ABOVE:
        return
    if MOST and count > MOST:
        return

    rows = row + tl.arange(0, ROWS)
    live = rows < count
    t = rows // GROUP
    token, head = (begin + t).to(tl.int64), (kv_head * GROUP + rows % GROUP).to(tl.int64)
    d = tl.arange(0, BLOCK_D)[None, :]
    q += (token * (q_stride * UNIT) + head * (q_head_stride * UNIT))[:, None] + d
    query = tl.load(q, live[:, None] & (d < D), other=0.0)
    if INTERPRETED:
        query = real(query, Q_FP8, tl.float32, True)

    # Keys that some row sees; `low` and `high` are the first and the last query.
    context = tl.load(seqused_k + sequence) - queries
    low, high = row // GROUP, (tl.minimum(row + ROWS, count) - 1) // GROUP
    first, last = 0, tl.maximum(context + high + 1, 0)
    if WINDOW:
        first = tl.maximum(context + low - window_left, 0)
    start, stop = first // KEYS * KEYS, last
    if segments > 1:
        steps = tl.cdiv(tl.cdiv(last - start, KEYS), segments)
        start = start + tl.program_id(2) * steps * KEYS
        stop = tl.minimum(start + steps * KEYS, last)
    # All rows see the keys from `inner` to `outer`.
    inner, outer = stop, stop
    if PEEL:
        inner = start
        if WINDOW:
            inner = tl.cdiv(tl.maximum(context + high - window_left, 0), KEYS) * KEYS
            inner = tl.minimum(tl.maximum(inner, start), stop)
        outer = context if qq_bias is not None else context + low + 1
        outer = tl.maximum(tl.maximum(tl.minimum(outer, stop), 0) // KEYS * KEYS, inner)

    scale = softmax_scale * factor_of(
        q_descale, sequence, kv_head, q_descale_stride, q_descale_head_stride, Q_DESCALE
    )
    scale *= factor_of(
        k_descale, sequence, kv_head, k_descale_stride, k_descale_head_stride, K_DESCALE
    )
    slope = None
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, live, other=0).to(tl.float32)
    k += kv_head.to(tl.int64) * (k_head_stride * KV_UNIT)
    v += kv_head.to(tl.int64) * (v_head_stride * KV_UNIT)
    block_table += sequence.to(tl.int64) * table_stride
    WIDE: tl.constexpr = tl.bfloat16 if Q_FP8 != "none" else query.dtype
    total = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    bounds = (start, inner, outer, stop)
    for part in tl.static_range(3):
        if WINDOW or not PEEL if part == 0 else PEEL:
            total, top, mass = attend(
                query, total, top, mass, k, v, k_block_stride, k_slot_stride, v_block_stride,
                v_slot_stride, block_table, bounds[part], bounds[part + 1], first, last, t,
                context, queries, window_left, scale, softcap, slope, qq_bias, qq_bias_stride,
                part != 1, WINDOW, SOFTCAP, D, DV, PAGE, KV_UNIT, KEYS, STAGES, FP8, Q_FP8, WIDE,
                INTERPRETED,
            )  # fmt: skip

    if part_total is not None and segments > 1:
        at = sequence.to(tl.int64) * each + t if each else token
        segment = tl.program_id(2).to(tl.int64)
        dv = tl.arange(0, BLOCK_DV)[None, :]
        sums = part_total + (at * part_stride + head * part_head_stride)[:, None]
        tl.store(sums + segment * part_segment_stride + dv, total, live[:, None] & (dv < DV))
        tops = part_top + at * part_top_stride + head * part_top_head_stride
        tl.store(tops + segment, top, live)
        masses = part_mass + at * part_mass_stride + head * part_mass_head_stride
        tl.store(masses + segment, mass, live)
    else:
        factor = factor_of(
            v_descale, sequence, kv_head, v_descale_stride, v_descale_head_stride, V_DESCALE
        )
        factor /= factor_of(output_scale, sequence, kv_head, 0, 0, OUTPUT_SCALE)
        write_rows(
            total, top, mass, token, head, live, sinks, factor, out, lse, out_stride,
            out_head_stride, lse_stride, lse_head_stride, DV, OUT_FP8, INTERPRETED,
        )  # fmt: skip

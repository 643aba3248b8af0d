# SPDX-License-Identifier: Apache-2.0
"""The walk of a KDA state over the chunks of a sequence, in segments that are walked at once.

A chunk maps the state S `[K, V]` it starts from to the next one by an affine map, so a segment of
chunks does too: `S <- M S + B`. `kda_maps_body` walks every segment but a sequence's last one, from
the identity without values for M and from nothing for B; `kda_join_body` goes through a sequence's
maps for the state that each segment starts from; then `kda_walk_body` walks all segments once more
for the outputs. Where matrices of float32 fit beside all else, a segment's walk goes through the
maps before it by itself, and there is no launch between. Where a segment begins follows from its
sequence alone.

Columns of a state do not touch each other, so a program has BV of them, for all chunks.
Symbols as in `archkey.kernels.kda_chunk_body`, which makes what is read here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import product
from archkey.kernels.kda_parts import chunk_slot_of, part_of

__all__ = ["kda_join_body", "kda_maps_body", "kda_walk_body"]


@triton.jit
def _state_tile(
    state,  # [.., HV, K, V], or [.., HV, V, K]
    place,
    head,
    d,
    column,
    stride,
    head_stride,
    row_stride,
    UNIT: tl.constexpr,  # elements in which strides count
    V_FIRST: tl.constexpr,
):
    """Addresses [KP, BV] of a state's columns."""
    state += (place * stride + head.to(tl.int64) * head_stride) * UNIT
    if V_FIRST:
        tile = state + d[:, None] + column.to(tl.int64)[None, :] * row_stride * UNIT
    else:
        tile = state + d.to(tl.int64)[:, None] * row_stride * UNIT + column[None, :]
    return tile


@triton.jit
def _chunk_tile(x, place, rows, columns, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """A tile of what a chunk keeps; rows without gaps."""
    return tl.load(x + place * SIZE + rows[:, None] * WIDTH + columns[None, :])


@triton.jit
def _met(rows, state, total, CODE: tl.constexpr, INTERPRETED: tl.constexpr):
    """total + rows @ state. A narrow state's rounding has few terms to average out in: what it

    loses is added.
    """
    kept = state.to(CODE)
    if state.shape[0] <= 64:
        lost = (state - kept.to(tl.float32)).to(CODE)
        total = product(rows, lost, total, INTERPRETED)
    return product(rows, kept, total, INTERPRETED)


@triton.jit
def _advance(
    state,
    values,
    w,
    kg,
    decay,
    place,
    i,
    d,
    C: tl.constexpr,
    KP: tl.constexpr,
    CODE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(state after a chunk, delta); `values` [C, BV] is the chunk's u, state [KP, BV] float32."""
    keys = _chunk_tile(w, place, i, d, C * KP, KP)
    taken = _met(keys, state, tl.zeros_like(values), CODE, INTERPRETED)
    delta = (values - taken).to(CODE)
    keys = _chunk_tile(kg, place, i, d, C * KP, KP)
    kept = state * tl.load(decay + place * KP + d)[:, None]
    return product(tl.trans(keys), delta, kept, INTERPRETED), delta


@triton.jit
def _mapped(transfer, state, offset, INTERPRETED: tl.constexpr):
    """offset + transfer @ state, of float32 in two parts each: 16 bits of a product are kept."""
    first, other = transfer.to(tl.bfloat16), state.to(tl.bfloat16)
    rest = (state - other.to(tl.float32)).to(tl.bfloat16)
    offset = product(first, rest, offset, INTERPRETED)
    offset = product(first, other, offset, INTERPRETED)
    rest = (transfer - first.to(tl.float32)).to(tl.bfloat16)
    return product(rest, other, offset, INTERPRETED)


@triton.jit
def kda_maps_body(
    w,  # see `kda_chunk_body`
    u,
    kg,
    decay,
    initial_state,  # [N, HV, K, V], a pool, or None
    state_indices,  # [N], or None
    cu_seqlens,  # [N + 1], or None
    maps,  # [segments, HV, KP, VP + KP] float32: B and M of the segment before, or the first S
    sequences,
    tokens,
    chunks,  # of a segment
    index_stride,
    state_stride,
    state_head,
    state_row,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    STATE_UNIT: tl.constexpr,
    V_FIRST: tl.constexpr,
    CODE: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BV columns of what a segment and value head does to a state; see the module."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.program_id(2)
    sequence, batch, first, rest, segment = part_of(cu_seqlens, sequences, tokens, slot, chunks * C)
    # The last segment of a sequence is walked for its outputs only; but its first state is noted.
    last = rest <= chunks * C
    if (sequence >= sequences) | (rest < 0) | (last & (segment > 0)):
        return
    if (segment == 0) & (block >= VP // BV):
        return
    source = sequence.to(tl.int64)
    if state_indices is not None:
        source = tl.load(state_indices + source * index_stride).to(tl.int64)
        if source < 0:
            return
    i = tl.arange(0, C)
    d = tl.arange(0, KP)
    column = block * BV + tl.arange(0, BV)
    state = tl.zeros([KP, BV], tl.float32)
    target = maps + (slot.to(tl.int64) * HV + head) * (KP * (VP + KP))
    target += d[:, None] * (VP + KP) + column[None, :]
    if block >= VP // BV:
        state += tl.where(d[:, None] == (column - VP)[None, :], 1.0, 0.0)
    elif segment == 0:
        if initial_state is not None:
            tile = _state_tile(
                initial_state, source, head, d, column, state_stride, state_head, state_row,
                STATE_UNIT, V_FIRST,
            )  # fmt: skip
            inside = (d < K)[:, None] & (column < V)[None, :]
            state += tl.load(tile, inside, other=0).to(tl.float32)
        tl.store(target, state)
    if last:
        return
    place = chunk_slot_of(cu_seqlens, tokens, sequence, C).to(tl.int64) + segment * chunks
    place = place * HV + head
    value_tile = i[:, None] * VP + column[None, :]
    has_values = (i >= 0)[:, None] & (column < VP)[None, :]
    for _ in tl.range(0, chunks, num_stages=STAGES):
        # Under a mask, not a branch: what is in a branch is not asked for ahead.
        values = tl.load(u + place * (C * VP) + value_tile, has_values, other=0).to(tl.float32)
        state, _ = _advance(state, values, w, kg, decay, place, i, d, C, KP, CODE, INTERPRETED)
        place += HV
    tl.store(target + HV * (KP * (VP + KP)), state)


@triton.jit
def kda_join_body(
    maps,  # see `kda_maps_body`; each B becomes the state that its segment starts from
    state_indices,  # [N], or None
    cu_seqlens,  # [N + 1], or None
    tokens,
    chunks,  # of a segment
    index_stride,
    HV: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    BV: tl.constexpr,
    PARTS: tl.constexpr,  # of K, 1 or 2: what is multiplied at once has to fit
    C: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BV columns of the states that a sequence's segments start from, of a value head."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    if state_indices is not None:  # noqa: SIM102 - None has no element
        if tl.load(state_indices + sequence.to(tl.int64) * index_stride) < 0:
            return
    length = tokens
    if cu_seqlens is not None:
        begin = tl.load(cu_seqlens + sequence).to(tl.int32)
        length = tl.load(cu_seqlens + sequence + 1).to(tl.int32) - begin
    segments = tl.cdiv(length, chunks * C)
    first = chunk_slot_of(cu_seqlens, tokens, sequence, chunks * C)
    WIDTH: tl.constexpr = VP + KP
    ROWS: tl.constexpr = KP // PARTS
    d = tl.arange(0, ROWS)
    # The first segment starts from the first state, and the second one from what it made of that.
    entry = maps + ((first + 1).to(tl.int64) * HV + head) * (KP * WIDTH) + d[:, None] * WIDTH
    column = block * BV + tl.arange(0, BV)
    more = segments > 2
    upper = tl.load(entry + column[None, :], more, other=0)
    lower = upper
    if PARTS == 2:
        lower = tl.load(entry + (ROWS * WIDTH + column[None, :]), more, other=0)
    for _ in tl.range(2, segments, num_stages=STAGES):
        entry += HV * (KP * WIDTH)
        transfer = entry + VP + d[None, :]
        old = upper
        upper = _mapped(tl.load(transfer), old, tl.load(entry + column[None, :]), INTERPRETED)
        if PARTS == 2:
            upper = _mapped(tl.load(transfer + ROWS), lower, upper, INTERPRETED)
            rest = tl.load(entry + (ROWS * WIDTH + column[None, :]))
            rest = _mapped(tl.load(transfer + ROWS * WIDTH), old, rest, INTERPRETED)
            lower = _mapped(tl.load(transfer + (ROWS * WIDTH + ROWS)), lower, rest, INTERPRETED)
            tl.store(entry + (ROWS * WIDTH + column[None, :]), lower)
        tl.store(entry + column[None, :], upper)


@triton.jit
def kda_walk_body(
    w,  # see `kda_chunk_body`
    u,
    qg,
    kg,
    within,
    decay,
    maps,  # see `kda_maps_body`; None: every sequence is one segment
    initial_state,  # [N, HV, K, V], a pool, or None
    state_indices,  # [N], or None
    cu_seqlens,  # [N + 1], or None
    chunk_offsets,  # [N + 1], or None
    track_chunk_idx,  # [N], or None
    out,  # [B, T, HV, V]
    final_state,  # [N, HV, K, V], a pool, or None
    h,  # [B, NT, HV, K, V], or None
    track_state,  # [N, HV, K, V], or None
    sequences,
    tokens,
    chunks,  # of a segment
    index_stride,
    out_batch,
    out_stride,
    out_head,
    state_stride,
    state_head,
    state_row,
    final_stride,
    final_head,
    final_row,
    h_chunks,
    track_stride,
    track_head,
    track_row,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    STATE_UNIT: tl.constexpr,
    FINAL_UNIT: tl.constexpr,
    V_FIRST: tl.constexpr,
    JOINED: tl.constexpr,  # maps are put together by `kda_join_body`, or else here
    CODE: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BV columns of a state over the chunks of a segment; o, and what is kept of the state."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.program_id(2)
    sequence, batch, first, rest, segment = part_of(cu_seqlens, sequences, tokens, slot, chunks * C)
    if (sequence >= sequences) | (rest < 0) | ((rest == 0) & (segment > 0)):
        return
    source = sequence.to(tl.int64)
    if state_indices is not None:
        source = tl.load(state_indices + source * index_stride).to(tl.int64)
        if source < 0:
            return
    i = tl.arange(0, C)
    d = tl.arange(0, KP)
    column = block * BV + tl.arange(0, BV)
    inside = (d < K)[:, None] & (column < V)[None, :]
    head64 = head.to(tl.int64)
    state = tl.zeros([KP, BV], tl.float32)
    if maps is not None:
        own = d[:, None] * (VP + KP)
        size: tl.constexpr = HV * (KP * (VP + KP))
        entry = maps + head64 * (KP * (VP + KP)) + own
        if JOINED:
            state = tl.load(entry + slot.to(tl.int64) * size + column[None, :])
        else:
            # From the first segment's state, or what it made of that, through the maps between.
            entry += (slot - segment + tl.minimum(segment, 1)).to(tl.int64) * size
            state = tl.load(entry + column[None, :])
            for _ in tl.range(1, segment, num_stages=1):
                entry += size
                transfer, offset = (
                    tl.load(entry + VP + d[None, :]),
                    tl.load(entry + column[None, :]),
                )
                state = tl.dot(transfer, state, offset, input_precision="tf32")
    elif initial_state is not None:
        tile = _state_tile(
            initial_state, source, head, d, column, state_stride, state_head, state_row, STATE_UNIT,
            V_FIRST,
        )  # fmt: skip
        state = tl.load(tile, inside, other=0).to(tl.float32)

    out += (batch.to(tl.int64) * out_batch + head64 * out_head) * OUT_UNIT
    place = chunk_slot_of(cu_seqlens, tokens, sequence, C).to(tl.int64) + segment * chunks
    place = place * HV + head
    walked = tl.cdiv(tl.minimum(rest, chunks * C), C)
    number = segment * chunks
    noted = -1
    if track_state is not None:
        noted = tl.load(track_chunk_idx + sequence)
        track_tile = _state_tile(
            track_state, sequence.to(tl.int64), head, d, column, track_stride, track_head,
            track_row, 1, V_FIRST,
        )  # fmt: skip
    if h is not None:
        begin = batch.to(tl.int64) * h_chunks
        if cu_seqlens is not None:
            begin = tl.load(chunk_offsets + sequence).to(tl.int64)
        h_row = K if V_FIRST else V
        h_tile = _state_tile(
            h, begin + number, head, d, column, HV * K * V, K * V, h_row, 1, V_FIRST
        )
    for step in tl.range(0, walked, num_stages=STAGES):
        if h is not None:
            tl.store(h_tile, state.to(h.dtype.element_ty), inside)
            h_tile += HV * (K * V)
        if track_state is not None:  # noqa: SIM102
            if number + step == noted:
                tl.store(track_tile, state, inside)
        queries = _chunk_tile(qg, place, i, d, C * KP, KP)
        o = _met(queries, state, tl.zeros([C, BV], tl.float32), CODE, INTERPRETED)
        values = _chunk_tile(u, place, i, column, C * VP, VP).to(tl.float32)
        weights = _chunk_tile(within, place, i, i, C * C, C)
        state, delta = _advance(state, values, w, kg, decay, place, i, d, C, KP, CODE, INTERPRETED)
        o = product(weights, delta, o, INTERPRETED)
        row = first + step * C + i
        rows = out + row.to(tl.int64)[:, None] * out_stride * OUT_UNIT + column[None, :]
        here = (step * C + i < rest)[:, None] & (column < V)[None, :]
        tl.store(rows, o.to(out.dtype.element_ty), here)
        place += HV
    if final_state is not None:  # noqa: SIM102
        if rest <= chunks * C:
            final_tile = _state_tile(
                final_state, source, head, d, column, final_stride, final_head, final_row,
                FINAL_UNIT, V_FIRST,
            )  # fmt: skip
            tl.store(final_tile, state.to(final_state.dtype.element_ty), inside)

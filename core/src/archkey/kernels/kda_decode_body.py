# SPDX-License-Identifier: Apache-2.0
"""The recurrence of KDA token by token, for decode and verification.

A program owns BV columns of V of one state, for all tokens of a sequence: columns do not touch each
other, so the tile is read once, stays in float32 registers, and is written to where it came from
without a race. Both sums over K are taken of the decayed state, so neither waits for the other:

    S <- diag(e^g) S    delta = beta (v - k^T S)    o = q^T S + (q k) delta    S <- S + k delta^T

A tile lies as its state does, `[V, K]` or `[K, V]`, with K along AXIS.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.kda_parts import L2_EPS, log_gate, step_size

__all__ = ["kda_decode_body"]

_ROWS: tl.constexpr = tl.constexpr(16)
"""Rows of nobody that become 0 at once."""


@triton.jit
def _tile(
    state,
    place,
    head,
    d,
    column,
    stride,
    head_stride,
    row_stride,
    UNIT: tl.constexpr,  # elements in which strides count
    AXIS: tl.constexpr,  # of K
):
    """Addresses of a state's columns."""
    state += (place * stride + head * head_stride) * UNIT
    if AXIS == 1:
        row, within = column, d
    else:
        row, within = d, column
    return state + row.to(tl.int64)[:, None] * row_stride * UNIT + within[None, :]


@triton.jit
def kda_decode_body(
    q,  # [B, T, H, K]
    k,
    v,  # [B, T, HV, V]
    g,  # [B, T, HV, K]: as GATE says
    beta,  # [B, T, HV]: as BETA says
    A_log,  # [HV], or None
    dt_bias,  # [HV, K], or None
    initial_state,  # [N, HV, ..], a pool, or None
    state_indices,  # [N] or [N, 1 + S], or None
    accepted,  # [N], or None: the first accepted token is number 1
    cu_seqlens,  # [N + 1], or None
    out,  # [B, T, HV, V]; may be v
    final_state,  # [N, HV, ..], a pool, or None
    sequences,
    tokens,  # T
    scale,
    lower_bound,
    index_stride,
    q_batch,
    q_stride,
    q_head,
    k_batch,
    k_stride,
    k_head,
    v_batch,
    v_stride,
    v_head,
    g_batch,
    g_stride,
    g_head,
    beta_batch,
    beta_stride,
    beta_head,
    out_batch,
    out_stride,
    out_head,
    state_stride,
    state_head,
    state_row,
    final_stride,
    final_head,
    final_row,
    HV: tl.constexpr,
    GROUP: tl.constexpr,  # HV / H
    K: tl.constexpr,
    V: tl.constexpr,
    KP: tl.constexpr,  # K as a power of two
    BV: tl.constexpr,
    BLOCKS: tl.constexpr,  # of BV columns
    K_FROM: tl.constexpr,  # elements from k's and v's pointers to their first element
    V_FROM: tl.constexpr,
    UNIT: tl.constexpr,  # elements in which strides of q, k and v count
    G_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    STATE_UNIT: tl.constexpr,
    FINAL_UNIT: tl.constexpr,
    GATE: tl.constexpr,
    BETA: tl.constexpr,
    L2NORM: tl.constexpr,
    AXIS: tl.constexpr,
    IN_PLACE: tl.constexpr,  # states go back to the pool
    PER_TOKEN: tl.constexpr,  # every token's state, to a slot of its own
):
    """Grid: (sequences, and with cu_seqlens one more for rows of nobody) * HV * BLOCKS."""
    program = tl.program_id(0)
    block = program % BLOCKS
    head = program // BLOCKS % HV
    sequence = program // (BLOCKS * HV)
    head64, sequence64 = head.to(tl.int64), sequence.to(tl.int64)
    known = sequence < sequences
    if cu_seqlens is None:
        batch, first, count = sequence64, 0 * sequence64, tokens
    else:
        batch, first = 0 * sequence64, tl.load(cu_seqlens + sequence).to(tl.int64)
        end = tl.load(cu_seqlens + sequence + 1, known, other=0).to(tl.int64)
        count = (tl.where(known, end, tokens) - first).to(tl.int32)
    source = sequence64
    if state_indices is not None:
        state_indices += sequence64 * index_stride
        start = 0
        if accepted is not None:
            start = tl.maximum(tl.load(accepted + sequence, known, other=1).to(tl.int32), 1) - 1
        source = tl.load(state_indices + start, known, other=-1).to(tl.int64)
        known = source >= 0
    target = sequence64
    if IN_PLACE:
        target = source

    d = tl.arange(0, KP)
    column = block * BV + tl.arange(0, BV)
    has_k, has_v = d < K, column < V
    if AXIS == 1:
        inside = has_v[:, None] & has_k[None, :]
    else:
        inside = has_k[:, None] & has_v[None, :]
    out += (batch * out_batch + first * out_stride + head64 * out_head) * OUT_UNIT + column

    if not known:
        row = tl.arange(0, _ROWS)
        rows = out[None, :] + row.to(tl.int64)[:, None] * out_stride * OUT_UNIT
        nothing = tl.zeros([_ROWS, BV], out.dtype.element_ty)
        for t in range(0, count, _ROWS):
            tl.store(rows, nothing, (t + row < count)[:, None] & has_v[None, :])
            rows += _ROWS * out_stride * OUT_UNIT
        if final_state is not None and not IN_PLACE:
            if sequence < sequences:
                tile = _tile(
                    final_state, target, head64, d, column, final_stride, final_head, final_row,
                    FINAL_UNIT, AXIS,
                )  # fmt: skip
                tl.store(tile, tl.zeros(tile.shape, final_state.dtype.element_ty), inside)
        return

    group = (head // GROUP).to(tl.int64)
    q += (batch * q_batch + first * q_stride + group * q_head) * UNIT + d
    k += K_FROM + (batch * k_batch + first * k_stride + group * k_head) * UNIT + d
    v += V_FROM + (batch * v_batch + first * v_stride + head64 * v_head) * UNIT + column
    g += (batch * g_batch + first * g_stride + head64 * g_head) * G_UNIT + d
    beta += batch * beta_batch + first * beta_stride + head64 * beta_head
    # A token is read while the one before it is worked on, the first while the state comes.
    some = count > 0
    q_next = tl.load(q, has_k & some, other=0)
    k_next = tl.load(k, has_k & some, other=0)
    g_next = tl.load(g, has_k & some, other=0)
    v_next = tl.load(v, has_v & some, other=0)
    beta_next = tl.load(beta, some, other=0)
    rate, bias = 1.0, 0.0
    if A_log is not None:
        rate = tl.exp(tl.load(A_log + head).to(tl.float32))
    if dt_bias is not None:
        bias = tl.load(dt_bias + head * K + d, has_k, other=0).to(tl.float32)
    if initial_state is not None:
        tile = _tile(
            initial_state, source, head64, d, column, state_stride, state_head, state_row,
            STATE_UNIT, AXIS,
        )  # fmt: skip
        state = tl.load(tile, inside, other=0).to(tl.float32)
    else:
        state = tl.zeros(inside.shape, tl.float32)

    for t in range(0, count):
        query, key, x = q_next.to(tl.float32), k_next.to(tl.float32), g_next.to(tl.float32)
        value, step = v_next.to(tl.float32), step_size(beta_next.to(tl.float32), BETA)
        later = t + 1 < count
        q += q_stride * UNIT
        k += k_stride * UNIT
        v += v_stride * UNIT
        g += g_stride * G_UNIT
        beta += beta_stride
        q_next = tl.load(q, has_k & later, other=0)
        k_next = tl.load(k, has_k & later, other=0)
        g_next = tl.load(g, has_k & later, other=0)
        v_next = tl.load(v, has_v & later, other=0)
        beta_next = tl.load(beta, later, other=0)

        if L2NORM:
            query *= tl.rsqrt(tl.sum(query * query, 0) + L2_EPS)
            key *= tl.rsqrt(tl.sum(key * key, 0) + L2_EPS)
        query *= scale
        same = tl.sum(query * key, 0)
        decay = tl.exp(log_gate(x + bias, rate, lower_bound, GATE))
        across = tl.expand_dims(key, 1 - AXIS)
        state *= tl.expand_dims(decay, 1 - AXIS)
        taken = tl.sum(state * across, AXIS)
        seen = tl.sum(state * tl.expand_dims(query, 1 - AXIS), AXIS)
        delta = step * (value - taken)
        state += across * tl.expand_dims(delta, AXIS)
        tl.debug_barrier()  # threads that share an element have all read it before it is replaced
        tl.store(out, (seen + same * delta).to(out.dtype.element_ty), has_v)
        out += out_stride * OUT_UNIT
        if PER_TOKEN and IN_PLACE:
            slot = tl.load(state_indices + t).to(tl.int64)
            if slot >= 0:
                tile = _tile(
                    final_state, slot, head64, d, column, final_stride, final_head, final_row,
                    FINAL_UNIT, AXIS,
                )  # fmt: skip
                tl.store(tile, state.to(final_state.dtype.element_ty), inside)

    if final_state is not None and not (PER_TOKEN and IN_PLACE):
        tile = _tile(
            final_state, target, head64, d, column, final_stride, final_head, final_row,
            FINAL_UNIT, AXIS,
        )  # fmt: skip
        tl.store(tile, state.to(final_state.dtype.element_ty), inside)

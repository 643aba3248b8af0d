# SPDX-License-Identifier: Apache-2.0
"""What a chunk of KDA needs from its own tokens alone; every chunk is a program of its own.

With `G` the sum of log gates from the chunk's first token on, and `T` the solved triangle

    L_ij = beta_i sum_d k_i k_j e^(G_i - G_j)  (j < i)        T = (I + L)^-1 diag(beta)

a chunk turns a state S into o and the next state by products with `[C, K]` and `[C, V]` tiles:

    w = T (e^G k)    u = T v    delta = u - w S    o = (e^G q) S + A delta
    S <- e^(G_C) S + (e^(G_C - G) k)^T delta       A_ij = sum_d q_i k_j e^(G_i - G_j)  (j <= i)

**No exponent is positive.** Two tokens i > j part ways at one level only: the smallest aligned
block of 2, 4, .. C tokens that holds both has j in its earlier half and i in its later one. With R
the G of the earlier half's last token, `e^(G_i - G_j) = e^(G_i - R) e^(R - G_j)`, and both are at
most 1.
So a level is one product of k and q, scaled by `e^-|G - R|`, with k scaled alike, of which the
blocks below the diagonal count. Gates of any size pass, and there is no special diagonal.

**The triangle** is inverted along the same levels: with X the inverse of the blocks of a level and
L_s what lies between their halves, the inverse of twice as large blocks is `X - X L_s X`.

G is kept in units of ln 2 (`G_log2`), since the hardware has powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import LOG2E, product
from archkey.kernels.kda_parts import L2_EPS, log_gate, part_of, step_size

__all__ = ["LEAST", "kda_chunk_body"]

LEAST: tl.constexpr = tl.constexpr(-256.0)
"""A gate in units of ln 2 that leaves nothing of any float32: smaller ones, -inf too, count as it,
so that sums of gates stay short and their differences numbers."""


@triton.jit
def _tile(x, stride, i, d, there, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    """Rows of a chunk's tokens, 0 where there are none."""
    inside = there[:, None] & (d < WIDTH)[None, :]
    return tl.load(x + i.to(tl.int64)[:, None] * stride * UNIT + d[None, :], inside, other=0)


@triton.jit
def _gates(
    g,  # of the chunk's first token and the head
    A_log,
    dt_bias,
    lower_bound,
    stride,
    head,
    i,
    there,
    d,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    GATE: tl.constexpr,
):
    """G_log2 [C, BK]; rows and columns that are not there count as if they had no gate."""
    x = _tile(g, stride, i, d, there, K, UNIT).to(tl.float32)
    rate = 1.0
    if A_log is not None:
        rate = tl.exp(tl.load(A_log + head).to(tl.float32))
    if dt_bias is not None:
        x += tl.load(dt_bias + head * K + d, d < K, other=0).to(tl.float32)[None, :]
    inside = there[:, None] & (d < K)[None, :]
    x = log_gate(x, rate, lower_bound, GATE) * LOG2E
    x = tl.where(x < LEAST, LEAST, x)
    return tl.cumsum(tl.where(inside, x, 0.0), 0)


@triton.jit
def kda_chunk_body(
    q,  # [B, T, H, K]
    k,
    v,  # [B, T, HV, V]
    g,  # [B, T, HV, K]: as GATE says
    beta,  # [B, T, HV]: as BETA says
    A_log,  # [HV], or None
    dt_bias,  # [HV, K], or None
    state_indices,  # [N], or None
    cu_seqlens,  # [N + 1], or None
    w,  # [chunks, HV, C, KP]; all of the following are read by `kda_walk_body`
    u,  # [chunks, HV, C, VP]
    qg,  # [chunks, HV, C, KP]: scale e^G q
    kg,  # [chunks, HV, C, KP]: e^(G_C - G) k
    within,  # [chunks, HV, C, C]: A
    decay,  # [chunks, HV, KP] float32: e^G_C
    out,  # [B, T, HV, V]: rows of no sequence become 0
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
    HV: tl.constexpr,
    GROUP: tl.constexpr,  # HV / H
    K: tl.constexpr,
    V: tl.constexpr,
    KP: tl.constexpr,  # K as a power of two
    VP: tl.constexpr,
    BK: tl.constexpr,  # columns of q and k at once
    BV: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,  # C = 2^LEVELS
    UNIT: tl.constexpr,  # elements in which strides of q, k and v count
    G_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    GATE: tl.constexpr,
    BETA: tl.constexpr,
    L2NORM: tl.constexpr,
    CODE: tl.constexpr,  # of what is multiplied
    INTERPRETED: tl.constexpr,
):
    """A chunk and a value head; writes what `archkey.kernels.kda_state_body` reads."""
    head = tl.program_id(0)
    chunk_slot = tl.program_id(1)
    sequence, batch, first, count, _ = part_of(cu_seqlens, sequences, tokens, chunk_slot, C)
    if count <= 0:
        return
    i = tl.arange(0, C)
    there = i < count
    batch64, first64, head64 = batch.to(tl.int64), first.to(tl.int64), head.to(tl.int64)
    known = sequence < sequences
    if state_indices is not None:
        known = tl.load(state_indices + sequence.to(tl.int64) * index_stride, known, other=-1) >= 0
    if not known:
        out += (batch64 * out_batch + first64 * out_stride + head64 * out_head) * OUT_UNIT
        for b in tl.range(VP // BV, num_stages=1):
            column = b * BV + tl.arange(0, BV)
            rows = out + i.to(tl.int64)[:, None] * out_stride * OUT_UNIT + column[None, :]
            nothing = tl.zeros([C, BV], out.dtype.element_ty)
            tl.store(rows, nothing, there[:, None] & (column < V)[None, :])
        return

    group64 = (head // GROUP).to(tl.int64)
    q += (batch64 * q_batch + first64 * q_stride + group64 * q_head) * UNIT
    k += (batch64 * k_batch + first64 * k_stride + group64 * k_head) * UNIT
    v += (batch64 * v_batch + first64 * v_stride + head64 * v_head) * UNIT
    g += (batch64 * g_batch + first64 * g_stride + head64 * g_head) * G_UNIT
    beta += batch64 * beta_batch + first64 * beta_stride + head64 * beta_head
    place = chunk_slot.to(tl.int64) * HV + head
    steps = tl.load(beta + i.to(tl.int64) * beta_stride, there, other=0).to(tl.float32)
    steps = tl.where(there, step_size(steps, BETA), 0.0)

    q_sum, k_sum = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    same = tl.zeros([C], tl.float32)
    for b in tl.range(KP // BK, num_stages=1):
        d = b * BK + tl.arange(0, BK)
        q_block = _tile(q, q_stride, i, d, there, K, UNIT).to(tl.float32)
        k_block = _tile(k, k_stride, i, d, there, K, UNIT).to(tl.float32)
        q_sum += tl.sum(q_block * q_block, 1)
        k_sum += tl.sum(k_block * k_block, 1)
        same += tl.sum(q_block * k_block, 1)
    # Rows are multiplied at unit length, so that float16, of more bits, holds them.
    q_rate, k_rate = tl.rsqrt(q_sum + L2_EPS), tl.rsqrt(k_sum + L2_EPS)
    q_gain, k_gain = tl.full([C], 1.0, tl.float32), tl.full([C], 1.0, tl.float32)
    if L2NORM:
        q_gain, k_gain = q_rate, k_rate
    q_gain *= scale
    q_size, k_size = q_gain / q_rate, k_gain / k_rate

    # Of i > j, the highest bit in which they differ is the level at which they part.
    parting = tl.where(i[:, None] > i[None, :], i[:, None] ^ i[None, :], 0)
    keys = tl.zeros([C, C], tl.float32)
    queries = tl.zeros([C, C], tl.float32)
    for b in tl.range(KP // BK, num_stages=1):
        d = b * BK + tl.arange(0, BK)
        G_log2 = _gates(
            g, A_log, dt_bias, lower_bound, g_stride, head, i, there, d, K, G_UNIT, GATE
        )
        q_block = _tile(q, q_stride, i, d, there, K, UNIT).to(tl.float32) * q_rate[:, None]
        k_block = _tile(k, k_stride, i, d, there, K, UNIT).to(tl.float32) * k_rate[:, None]
        for level in tl.range(LEVELS, num_stages=1):
            meeting = (i | ((2 << level) - 1)) - (1 << level)  # the earlier half's last row
            at_meeting = tl.gather(G_log2, tl.broadcast_to(meeting[:, None], [C, BK]), 0)
            left = tl.exp2(-tl.abs(G_log2 - at_meeting))
            k_part = (k_block * left).to(tl.float16)
            q_part = (q_block * left).to(tl.float16)
            here, other = parting >> level == 1, tl.trans(k_part)
            keys = tl.where(here, product(k_part, other, keys, INTERPRETED), keys)
            queries = tl.where(here, product(q_part, other, queries, INTERPRETED), queries)
        tile = place * (C * KP) + i[:, None] * KP + d[None, :]
        total = tl.sum(tl.where((i == C - 1)[:, None], G_log2, 0.0), 0)
        since = tl.exp2(G_log2)
        until = tl.exp2(-tl.abs(total[None, :] - G_log2))
        tl.store(qg + tile, (q_block * since * q_size[:, None]).to(CODE))
        tl.store(kg + tile, (k_block * until * k_size[:, None]).to(CODE))
        tl.store(decay + place * KP + d, tl.exp2(total))

    diagonal = i[:, None] == i[None, :]
    queries *= q_size[:, None] * k_size[None, :]
    queries = tl.where(diagonal, (same * q_gain * k_gain)[:, None], queries)
    tl.store(within + place * (C * C) + i[:, None] * C + i[None, :], queries.to(CODE))
    keys *= (steps * k_size)[:, None] * k_size[None, :]
    solved = tl.where(diagonal, 1.0, tl.where(parting == 1, -keys, 0.0))
    for level in tl.range(1, LEVELS, num_stages=1):
        between = tl.where(parting >> level == 1, keys, 0.0).to(tl.float16)
        before_level = solved.to(tl.float16)
        step = product(between, before_level, tl.zeros([C, C], tl.float32), INTERPRETED)
        solved -= product(
            before_level, step.to(tl.float16), tl.zeros([C, C], tl.float32), INTERPRETED
        )
    solved *= steps[None, :]
    weights = solved.to(CODE)
    rest = (solved - weights.to(tl.float32)).to(CODE)

    for b in tl.range(VP // BV, num_stages=1):
        column = b * BV + tl.arange(0, BV)
        values = _tile(v, v_stride, i, column, there, V, UNIT).to(CODE)
        part = product(rest, values, tl.zeros([C, BV], tl.float32), INTERPRETED)
        part = product(weights, values, part, INTERPRETED)
        tile = place * (C * VP) + i[:, None] * VP + column[None, :]
        tl.store(u + tile, part.to(CODE))
    for b in tl.range(KP // BK, num_stages=1):
        d = b * BK + tl.arange(0, BK)
        G_log2 = _gates(
            g, A_log, dt_bias, lower_bound, g_stride, head, i, there, d, K, G_UNIT, GATE
        )
        k_block = _tile(k, k_stride, i, d, there, K, UNIT).to(tl.float32) * k_gain[:, None]
        grown = (k_block * tl.exp2(G_log2)).to(CODE)
        part = product(rest, grown, tl.zeros([C, BK], tl.float32), INTERPRETED)
        part = product(weights, grown, part, INTERPRETED)
        tl.store(w + place * (C * KP) + i[:, None] * KP + d[None, :], part.to(CODE))

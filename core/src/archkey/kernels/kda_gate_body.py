# SPDX-License-Identifier: Apache-2.0
"""The log gate of KDA, of each token or summed inside chunks.

A program has C tokens of one head and BK of its channels: any C for gates alone, a chunk for sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import LOG2E
from archkey.kernels.kda_parts import log_gate, part_of

__all__ = ["kda_gate_body"]


@triton.jit
def kda_gate_body(
    g,  # [B, T, HV, K], raw
    A_log,  # [HV], or None
    dt_bias,  # [HV, K], or None
    cu_seqlens,  # [N + 1], or None
    out,  # [B, T, HV, K]; rows of no sequence become 0
    sequences,
    tokens,  # T
    lower_bound,
    g_batch,
    g_stride,
    g_head,
    out_batch,
    out_stride,
    out_head,
    HV: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    BLOCKS: tl.constexpr,  # of BK channels
    C: tl.constexpr,
    UNIT: tl.constexpr,  # elements in which strides of g count
    OUT_UNIT: tl.constexpr,
    GATE: tl.constexpr,
    SUMS: tl.constexpr,
    LOG2: tl.constexpr,  # sums in units of ln 2
):
    """Grid: parts of C tokens, as `part_of` deals them out, * HV * BLOCKS."""
    program = tl.program_id(0)
    d = program % BLOCKS * BK + tl.arange(0, BK)
    head = program // BLOCKS % HV
    sequence, batch, first, count, _ = part_of(
        cu_seqlens, sequences, tokens, program // (BLOCKS * HV), C
    )
    if count <= 0:
        return
    i = tl.arange(0, C)
    inside = (i < count)[:, None] & (d < K)[None, :]
    row = first.to(tl.int64) + i
    batch64, head64 = batch.to(tl.int64), head.to(tl.int64)
    out += (batch64 * out_batch + head64 * out_head) * OUT_UNIT
    rows = out + row[:, None] * out_stride * OUT_UNIT + d[None, :]
    if sequence >= sequences:
        tl.store(rows, tl.zeros([C, BK], out.dtype.element_ty), inside)
        return
    g += (batch64 * g_batch + head64 * g_head) * UNIT
    x = tl.load(g + row[:, None] * g_stride * UNIT + d[None, :], inside, other=0).to(tl.float32)
    rate = 1.0
    if A_log is not None:
        rate = tl.exp(tl.load(A_log + head).to(tl.float32))
    if dt_bias is not None:
        x += tl.load(dt_bias + head64 * K + d, d < K, other=0).to(tl.float32)[None, :]
    x = log_gate(x, rate, lower_bound, GATE)
    if SUMS:
        x = tl.cumsum(x, 0)  # of a row and those before it: what is behind the last one is no part
    if LOG2:
        x *= LOG2E
    tl.store(rows, x.to(out.dtype.element_ty), inside)

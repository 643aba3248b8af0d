# SPDX-License-Identifier: Apache-2.0
"""What every body of KDA does with a token's numbers: the gate, beta, and the norms of q and k."""

from __future__ import annotations

import triton
import triton.language as tl

L2_EPS: tl.constexpr = tl.constexpr(1e-6)
"""As flash-linear-attention: `x / sqrt(sum x^2 + eps)`."""


@triton.jit
def log_gate(x, rate, lower_bound, GATE: tl.constexpr):
    """The log gate in nats of a float32 x that holds its bias; rate is `exp(A_log)`.

    GATE  "given": x is it; "softplus"; "sigmoid": between lower_bound and 0
    """
    if GATE == "softplus":
        grown = tl.exp(tl.minimum(x, 20.0))
        # 1 + y loses what y is when y is small, and a slow gate is made of nothing else.
        small = grown * (1.0 - grown * (0.5 - grown * (1.0 / 3.0)))
        soft = tl.where(grown < 0.01, small, tl.log(1.0 + grown))
        x = -rate * tl.where(x > 20.0, x, soft)
    elif GATE == "sigmoid":
        x = lower_bound * tl.sigmoid(rate * x)
    return x


@triton.jit
def step_size(beta, BETA: tl.constexpr):
    """beta in float32: "given", "sigmoid" of it, or "2sigmoid"."""
    if BETA == "sigmoid":
        beta = tl.sigmoid(beta)
    elif BETA == "2sigmoid":
        beta = 2.0 * tl.sigmoid(beta)
    return beta


@triton.jit
def part_of(cu_seqlens, sequences, tokens, slot, LENGTH):
    """(sequence, batch row, first token there, tokens from it on in the sequence, number of the

    part in its sequence) of slot `slot`, where sequences are cut into parts of LENGTH tokens.

    Of packed sequences, i has room for its parts from slot `cu_seqlens[i] // LENGTH + i` on; room
    that is left over has no tokens. Sequence number `sequences` is the rows that belong to nobody.
    Of a batch, every sequence has the same number of parts.
    """
    if cu_seqlens is None:
        parts = tl.maximum((tokens + LENGTH - 1) // LENGTH, 1)
        sequence = slot // parts
        batch = sequence
        part = slot - sequence * parts
        first = part * LENGTH
        rest = tokens - first
    else:
        low, high = 0 * slot, sequences
        while low < high:
            middle = (low + high + 1) // 2
            if tl.load(cu_seqlens + middle).to(tl.int32) // LENGTH + middle <= slot:
                low = middle
            else:
                high = middle - 1
        sequence = low
        batch = 0 * sequence
        begin = tl.load(cu_seqlens + sequence).to(tl.int32)
        end = tl.load(cu_seqlens + sequence + 1, sequence < sequences, other=0).to(tl.int32)
        end = tl.where(sequence < sequences, end, tokens)
        part = slot - (begin // LENGTH + sequence)
        first = begin + part * LENGTH
        rest = end - first
    return sequence, batch, first, rest, part


@triton.jit
def chunk_slot_of(cu_seqlens, tokens, sequence, LENGTH):
    """Slot of a sequence's first part, as `part_of` deals them out."""
    if cu_seqlens is None:
        slot = sequence * tl.maximum((tokens + LENGTH - 1) // LENGTH, 1)
    else:
        slot = tl.load(cu_seqlens + sequence).to(tl.int32) // LENGTH + sequence
    return slot

# SPDX-License-Identifier: Apache-2.0
"""Book-keeping of the KDA reference: what a token brings, and which slot a state goes to."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from archkey.reference.kda_gate import kda_gate

L2_EPS = 1e-6
"""``x / sqrt(sum(x^2) + eps)``, as flash-linear-attention normalises q and k."""


class Tokens(NamedTuple):
    """All tokens, heads first: q, k, g ``[HV, T, K]``, v ``[HV, T, V]``, beta ``[HV, T, 1]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor

    def part(self, rows: slice) -> Tokens:
        """The tokens ``rows``."""
        return Tokens(*(x[:, rows] for x in self))


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    scale: float | None,
    lower_bound: float | None,
    l2norm: bool,
    gate: bool,
    beta_sigmoid: bool,
    neg_eigval: bool,
    dtype: torch.dtype,
) -> Tokens:
    """What the recurrence reads: normalised, gated, scaled, one query and key per value head."""
    q, k, v, beta = (y.to(dtype) for y in (q, k, v, beta))
    if l2norm:
        q, k = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + L2_EPS) for y in (q, k))
    g = kda_gate(g, A_log, dt_bias, lower_bound, compute_dtype=dtype)[0] if gate else g.to(dtype)
    if beta_sigmoid:
        beta = torch.sigmoid(beta) * (2 if neg_eigval else 1)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return heads_first(q, k, v, g, beta)


def heads_first(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tokens:
    """Tokens from ``[B, T, heads, ...]``; value head hv gets query and key ``hv // (HV / H)``."""
    q, k = (y.repeat_interleave(v.shape[2] // y.shape[2], dim=2) for y in (q, k))
    return Tokens(*(y.flatten(0, 1).transpose(0, 1) for y in (q, k, v, g, beta[..., None])))


def tokens_first(o: Tensor, like: Tensor) -> Tensor:
    """``[HV, B T, V]`` back to the shape ``[B, T, HV, V]`` of ``like``."""
    return o.transpose(0, 1).reshape(like.shape)


def first_chunks(sequences: list[tuple[int, int]], chunk_size: int) -> list[int]:
    """Number of each sequence's first chunk, and of all chunks last; an empty one has none."""
    counts = (-(-(stop - start) // chunk_size) for start, stop in sequences)
    return [0, *itertools.accumulate(counts)]


def k_first(state: Tensor, v_first: bool, dtype: torch.dtype) -> Tensor:
    """A copy in the compute dtype, with states as ``[K, V]``."""
    return (state.mT if v_first else state).to(dtype, copy=True)


def as_given(state: Tensor, v_first: bool) -> Tensor:
    """States ``[K, V]`` in the layout of the call."""
    return state.mT if v_first else state


def all_states(initial: Tensor | None, number: int, x: Tokens, v_first: bool) -> Tensor:
    """``[slots, HV, K, V]``: a copy of the pool or of the given states, or ``number`` zeros."""
    if initial is not None:
        return k_first(initial, v_first, x.v.dtype)
    return x.v.new_zeros(number, x.v.shape[0], x.k.shape[-1], x.v.shape[-1])


def slot_table(indices: Tensor | None, number: int) -> list[list[int]]:
    """Slots of each sequence; without a pool, sequence n owns state n."""
    if indices is None:
        return [[n] for n in range(number)]
    table: list[list[int]] = indices.reshape(number, -1).tolist()
    return table


def start_slots(slots: list[list[int]], accepted: Tensor | None) -> list[int]:
    """The slot each sequence starts from: that of its last accepted token."""
    taken = [1] * len(slots) if accepted is None else accepted.tolist()
    return [row[max(count, 1) - 1] for row, count in zip(slots, taken, strict=True)]

# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention in plain torch (Kimi Linear, arXiv:2510.26692).

Per value head a state ``S [K, V]``; a token brings q, k ``[K]``, v ``[V]``, a log gate ``g [K]``
(natural log, <= 0) and ``beta``. It decays the state, corrects it by the delta rule, and reads it:

    S <- diag(e^g) S
    S <- S + beta k (v - k^T S)^T
    o  = scale S^T q

That recurrence is the definition (:func:`fused_recurrent_kda`). :func:`chunk_kda` computes the same
for blocks of tokens at once; asked for float64, the ground truth, it runs the recurrence itself.

Value head ``hv`` reads the query and key of head ``hv // (HV / H)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archkey.reference._kda_layout import (
    Tokens,
    all_states,
    as_given,
    first_chunks,
    k_first,
    prepare,
    slot_table,
    start_slots,
    tokens_first,
)
from archkey.reference.kda_gate import kda_gate, kda_gate_chunk_cumsum, spans

__all__ = [
    "chunk_kda",
    "fused_recurrent_kda",
    "kda_gate",
    "kda_gate_chunk_cumsum",
    "kda_packed_decode",
]

BLOCK = 16
"""Tokens that the chunk form takes at once. The result does not depend on it; its table of decays
is ``[HV, BLOCK, BLOCK, K]``."""


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    state_indices: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    lower_bound: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    inplace_final_state: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """KDA token by token: the definition.

    Args:
        q, k: ``[B, T, H, K]``; normalised to unit length if ``use_qk_l2norm_in_kernel``.
        v: ``[B, T, HV, V]``.
        g: ``[B, T, HV, K]``: log gates, or the raw input of :func:`kda_gate` if
            ``use_gate_in_kernel``.
        beta: ``[B, T, HV]``: given, or ``sigmoid(beta)`` is taken if
            ``use_beta_sigmoid_in_kernel``, and doubled if ``allow_neg_eigval``.
        scale: of q, after its normalisation; None is ``K^-0.5``.
        cu_seqlens: ``[N + 1]`` int, with B = 1; None: N = B sequences of T tokens.
        initial_state: ``[N, HV, K, V]``, or with state_indices a pool ``[slots, HV, K, V]``;
            ``[.., V, K]`` if ``state_v_first``. None: zeros.
        state_indices: ``[N]`` slots, where sequence n starts and where it leaves its last state;
            or ``[N, 1 + S]``: the state after token t of sequence n goes to slot ``[n, t]``, and
            n starts from ``[n, 0]``, or from ``[n, max(num_accepted_tokens[n], 1) - 1]``. A
            negative start slot: the output rows are 0 and no state is read or written. Another
            negative slot is not written.
        inplace_final_state: with state_indices, states go back to the pool.

    Returns:
        ``(o [B, T, HV, V], final_state)`` in ``compute_dtype``. final_state is the updated pool, or
        ``[N, HV, K, V]`` (0 for a sequence without slot). Rows of o past the last sequence are 0.
    """
    x = prepare(
        q, k, v, g, beta, A_log, dt_bias, scale, lower_bound, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, compute_dtype,
    )  # fmt: skip
    sequences = spans(q, cu_seqlens)
    states = all_states(initial_state, len(sequences), x, state_v_first)
    slots = slot_table(state_indices, len(sequences))
    starts = start_slots(slots, num_accepted_tokens)
    if state_indices is not None and not inplace_final_state:  # read the pool, write one each
        states = torch.stack([states[s] if s >= 0 else torch.zeros_like(states[0]) for s in starts])
        starts = [n if s >= 0 else -1 for n, s in enumerate(starts)]
        slots = [[n] for n in range(len(sequences))]
    o = torch.zeros_like(x.v)
    for (start, stop), first, targets in zip(sequences, starts, slots, strict=True):
        if first < 0:
            continue
        if len(targets) == 1:
            rows = slice(start, stop)
            states[first], o[:, rows] = _recurrence(states[first], x.part(rows))
            continue
        state = states[first]
        for t, slot in zip(range(start, stop), targets, strict=False):
            state, o[:, t : t + 1] = _recurrence(state, x.part(slice(t, t + 1)))
            if slot >= 0:
                states[slot] = state
    return tokens_first(o, v), as_given(states, state_v_first)


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    state_indices: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    chunk_offsets: Tensor | None = None,
    track_state: Tensor | None = None,
    track_chunk_idx: Tensor | None = None,
    scale: float | None = None,
    lower_bound: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    chunk_size: int = 64,
    return_intermediate_states: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """KDA block by block; arguments as in :func:`fused_recurrent_kda`, and

    Args:
        state_indices: ``[N]`` slots; the pool comes back updated.
        chunk_indices: ``[NT, 2]`` (sequence, chunk) pairs; only their number is used here, for h.
            Sequences keep their number although empty ones have no chunk; padding is (-1, -1).
        chunk_offsets: ``[N + 1]`` first chunk of each sequence; not used here.
        track_chunk_idx: ``[N]`` chunk of each sequence whose first state goes to
            ``track_state[n]``; a number that is not one of its chunks leaves that row alone.
        return_intermediate_states: also return h, the state before each chunk of ``chunk_size``.

    Returns:
        ``(o, final_state, h [B, NT, HV, K, V] or None, track_state or None)``; with cu_seqlens, NT
        is ``len(chunk_indices)`` or the number of all sequences' chunks; rows of padding are 0.
    """

    def of(rows: slice) -> Tokens:
        """Of one sequence: what torch vectorises, and with it a last bit, follows from a shape."""
        q_, k_, v_, g_, beta_ = (y.flatten(0, 1)[None, rows] for y in (q, k, v, g, beta))
        return prepare(
            q_, k_, v_, g_, beta_, A_log, dt_bias, scale, lower_bound, use_qk_l2norm_in_kernel,
            use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, compute_dtype,
        )  # fmt: skip

    # The definition is the ground truth; in float32 it would also be slow for a prefill.
    advance = _recurrence if compute_dtype == torch.float64 else _chunk_form
    sequences = spans(q, cu_seqlens)
    chunks = first_chunks(sequences, chunk_size)
    nothing = of(slice(0))
    states = all_states(initial_state, len(sequences), nothing, state_v_first)
    starts = start_slots(slot_table(state_indices, len(sequences)), None)
    tracked = [-1] * len(sequences) if track_chunk_idx is None else track_chunk_idx.tolist()
    track = None if track_state is None else k_first(track_state, state_v_first, compute_dtype)
    h = None
    if return_intermediate_states:
        batch = len(q) if cu_seqlens is None else 1
        rows = chunks[-1] // max(batch, 1) if chunk_indices is None else len(chunk_indices)
        h = states.new_zeros(batch, rows, *states.shape[1:])

    o = nothing.v.new_zeros(v.shape[2], q.shape[0] * q.shape[1], v.shape[3])
    for n, (start, stop) in enumerate(sequences):
        if starts[n] < 0:
            continue
        x = of(slice(start, stop))
        state = states[starts[n]]  # a view: what is written to it is the final state
        for first in range(0, stop - start, BLOCK):
            chunk, inside = divmod(first, chunk_size)
            if h is not None and inside == 0:
                h.flatten(0, 1)[chunks[n] + chunk] = state
            if track is not None and inside == 0 and chunk == tracked[n]:
                track[n] = state
            block = slice(first, min(first + BLOCK, stop - start))
            state[:], o[:, start:stop][:, block] = advance(state, x.part(block))

    h, track = (None if y is None else as_given(y, state_v_first) for y in (h, track))
    return tokens_first(o, v), as_given(states, state_v_first), h, track


def kda_packed_decode(
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor,
    ssm_state_indices: Tensor,
    scale: float | None = None,
    lower_bound: float | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """One token per sequence, straight from the projections (SGLang's packed decode).

    Args:
        mixed_qkv: ``[B, 2 H K + HV V]``: q, k, v side by side.
        a: ``[B, HV K]`` raw gate; b: ``[B, HV]`` raw beta, whose sigmoid is taken.
        initial_state: the pool ``[slots, HV, V, K]``.
        ssm_state_indices: ``[B]``; a negative slot: zeros, no state read or written.

    Returns:
        ``(out [B, 1, HV, V], the updated pool)``.
    """
    batch, value_heads, v_dim, k_dim = a.shape[0], *initial_state.shape[1:]
    qk_width = (mixed_qkv.shape[1] - value_heads * v_dim) // 2
    q, k, v = torch.split(mixed_qkv, [qk_width, qk_width, value_heads * v_dim], dim=1)
    out, pool = fused_recurrent_kda(
        q.reshape(batch, 1, -1, k_dim),
        k.reshape(batch, 1, -1, k_dim),
        v.reshape(batch, 1, value_heads, v_dim),
        a.reshape(batch, 1, value_heads, k_dim),
        b.reshape(batch, 1, value_heads),
        A_log,
        dt_bias,
        initial_state,
        ssm_state_indices,
        scale=scale,
        lower_bound=lower_bound,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        state_v_first=True,
        inplace_final_state=True,
        compute_dtype=compute_dtype,
    )
    return out, pool


def _recurrence(state: Tensor, x: Tokens) -> tuple[Tensor, Tensor]:
    """The definition, token by token: (last state ``[HV, K, V]``, o ``[HV, T, V]``)."""
    o = torch.empty_like(x.v)
    for t in range(x.v.shape[1]):
        q, k, v, g, beta = (y[:, t : t + 1] for y in x)  # [HV, 1, ...]
        state = g.exp().mT * state
        state = torch.baddbmm(state, k.mT, beta * (v - k @ state))
        o[:, t : t + 1] = q @ state
    return state, o


def _chunk_form(state: Tensor, x: Tokens) -> tuple[Tensor, Tensor]:
    """The same for a block of tokens at once: (last state, o).

    With ``D_ij = sum of g_t, j < t <= i`` and ``L_ij = beta_i sum_d k_i k_j e^D_ij`` (i > j), the
    corrections ``w`` of all tokens solve ``(I + L) w = beta (v - (k e^G) S)``. Every exponent is a
    sum of gates, never a difference of sums: none is positive, and nothing cancels.
    """
    q, k, v, g, beta = x
    steps = torch.arange(v.shape[1], device=v.device)
    later = steps[:, None] > steps  # [i, j]: j < i
    table = torch.where(later[..., None], g[:, :, None], 0).cumsum(1)  # D_ij, [HV, i, j, K]
    pairs = (k[:, None] * table.exp()) @ torch.stack([k, q], -1)  # [HV, i, j, 2]
    kk, qk = pairs.unbind(-1)

    from_start, to_end = g.cumsum(1).exp(), table[:, -1].exp()
    solve = torch.linalg.solve_triangular
    lower = beta * kk.masked_fill(~later, 0)
    w = solve(lower, beta * (v - (k * from_start) @ state), upper=False, unitriangular=True)
    o = (q * from_start) @ state + qk.tril() @ w
    return from_start[:, -1:].mT * state + (k * to_end).mT @ w, o

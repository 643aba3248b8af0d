# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention (Kimi Linear, arXiv:2510.26692). A value head's state `S [K, V]` per token:

    S <- diag(e^g) S            g: log gate in nats, one per key channel
    S <- S + beta k (v - k^T S)^T
    o  = scale S^T q            q and k of head hv // (HV / H)

`chunk_kda` is for prefill, `fused_recurrent_kda` for decode and verification; both compute this.
Names and their order are flash-linear-attention's (in fused_recurrent_kda A_log and dt_bias come
before scale, as there). Compute is float32, whatever the dtypes of tokens and states. Tensors may
be strided but in their last dimension; nothing is copied to make it contiguous.

States live in `initial_state [N, HV, K, V]`, or in a pool `[slots, HV, K, V]` whose slots are
given by index; `state_v_first` puts V before K. A sequence with a negative slot is padding: its
rows of o are 0, and no state is read or written. So are the rows of o past the last sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.ops import _kda_checks as check
from archkey.ops import _kda_operands as operands
from archkey.ops import _kda_problems as problems
from archkey.ops._checks import bad_value, check_no_grad
from archkey.ops._contract import public
from archkey.ops._kda_contract import OPERATORS
from archkey.ops._memo import metadata, remember
from archkey.ops._operand import layouts

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "chunk_kda", "fused_recurrent_kda", "kda_packed_decode"]

Results = tuple["torch.Tensor", "torch.Tensor | None"]
ResultsWithChunks = tuple["torch.Tensor", "torch.Tensor | None", "torch.Tensor"]


@public
def chunk_kda(
    session: Session,
    /,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    *,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    final_state: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    chunk_size: int = 64,
    chunk_indices: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
    track_state: torch.Tensor | None = None,
    track_chunk_idx: torch.Tensor | None = None,
    batch_invariant: bool = False,
    **engine_extras: Any,
) -> Results | ResultsWithChunks:
    """KDA for prefill.

    q, k      `[B, T, H, K]`, K <= 256; v `[B, T, HV, V]`, HV % H == 0; one float dtype
    g         `[B, T, HV, K]` log gates, or raw with use_gate_in_kernel (see kda_gate)
    beta      `[B, T, HV]`; raw with use_beta_sigmoid_in_kernel, doubled by allow_neg_eigval
    scale     of q, after use_qk_l2norm_in_kernel; None is `K ** -0.5`
    safe_gate  promises that no gate is below lower_bound, in [-5, 0); below -5 without one
    A_log, dt_bias  as in kda_gate; None unless use_gate_in_kernel
    disable_recompute  of the backward pass in flash-linear-attention; changes nothing here
    cu_seqlens  `[N + 1]` int32 or int64 with B = 1; sequences may be empty. cu_seqlens_cpu is a
              copy on the host, which makes the number of chunks exact
    initial_state  `[N, HV, K, V]` float32 or bfloat16; with initial_state_indices, `[N]` or
              `[N, 1]`, a pool that is updated in place, no two sequences in one slot
    final_state  buffer `[N, HV, K, V]`, may be initial_state; made (float32) by output_final_state
    out       `[B, T, HV, V]`; v itself is allowed; default: new, v's dtype
    chunk_indices, chunk_offsets  as chunk_layout makes them. They number the chunks of h, and are
              made if missing for h; nothing else needs them
    track_state  float32 `[N, HV, K, V]`: gets the state before chunk track_chunk_idx `[N]` (int32)
              of each sequence; a number that is no chunk of it leaves the row alone
    batch_invariant  a sequence's results are the same to the bit whatever else is in the batch:
              where it is cut into segments follows from its own length

    Returns (o, final_state), and with return_intermediate_states h `[B, NT, HV, K, V]` in v's
    dtype, the state before each chunk. final_state is the pool if there is one.
    """
    op = "chunk_kda"
    v_first = operands.v_first(op, state_v_first, engine_extras)
    tokens = q, k, v, g, beta
    flags = (
        use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval,
    )  # fmt: skip
    gate = A_log, dt_bias, lower_bound, safe_gate
    lengths = cu_seqlens, cu_seqlens_cpu
    states = initial_state, final_state, output_final_state, v_first
    slots, same = initial_state_indices, final_state is initial_state
    chunks = chunk_size, chunk_indices, chunk_offsets
    track = track_state, track_chunk_idx
    key = (
        op, metadata(q, k, v, g, out, initial_state, final_state),
        layouts(beta, *gate, *lengths, slots, *chunks, *track, scale),
        flags, lower_bound, safe_gate, output_final_state, v_first, same, chunk_size,
        return_intermediate_states, batch_invariant,
    )  # fmt: skip
    problem = session.problems.get(key)
    if problem is None:
        problem = problems.chunk_problem(
            tokens, flags, gate, lengths, states, slots, chunks, track,
            return_intermediate_states, batch_invariant, scale, out,
        )  # fmt: skip
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, *tokens)
    if session.validate:
        operands.validate(op, problem, q, g, *lengths, slots, initial_state, lower_bound)
    if cu_seqlens is not None and chunk_indices is None:
        if return_intermediate_states:
            chunk_indices, chunk_offsets = operands.new_chunks(
                q, cu_seqlens, cu_seqlens_cpu, chunk_size
            )
        count = operands.count_chunks(q, cu_seqlens, cu_seqlens_cpu, chunk_size)
        problem = problem._replace(small_grid=count * v.shape[2] <= problems.SMALL_GRID)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if slots is not None:
        final_state = initial_state
    elif final_state is None and output_final_state:
        final_state = operands.new_states(q, v, cu_seqlens, v_first)
    h = None
    if return_intermediate_states:
        h = operands.new_intermediate(q, v, chunk_size, chunk_indices, v_first)
    session.launcher(problem)(
        q, k, v, g, beta, A_log, dt_bias, initial_state, slots, cu_seqlens,
        chunk_indices, chunk_offsets, track_state, track_chunk_idx,
        check.scale_of(op, scale, q.shape[3]), lower_bound, *flags, v_first, chunk_size,
        return_intermediate_states, out, final_state, h, track_state,
    )  # fmt: skip
    return (out, final_state) if h is None else (out, final_state, h)


@public
def fused_recurrent_kda(
    session: Session,
    /,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    *,
    safe_gate: bool = False,
    initial_state_indices: torch.Tensor | None = None,
    final_state: torch.Tensor | None = None,
    ssm_state_indices: torch.Tensor | None = None,
    num_accepted_tokens: torch.Tensor | None = None,
    inplace_final_state: bool = False,
    out: torch.Tensor | None = None,
    **engine_extras: Any,
) -> Results:
    """KDA for decode and verification; arguments as in chunk_kda, and

    initial_state_indices  as in chunk_kda: the pool is updated in place
    ssm_state_indices    instead: slots `[N]` to start from, which get the last state only with
              inplace_final_state; or `[N, 1 + S]`, where the state after token t of sequence n
              goes to slot `[n, t]` (a negative one is skipped) and no sequence has more tokens
    num_accepted_tokens  `[N]` int32 or int64: with `[N, 1 + S]`, sequence n starts from slot
              `[n, max(num_accepted_tokens[n], 1) - 1]`, a column that exists; without, `[n, 0]`
    inplace_final_state  without slots: final_state is initial_state

    Returns (o, final_state): the pool if it was updated, else `[N, HV, K, V]` if asked for.
    """
    op = "fused_recurrent_kda"
    v_first = operands.v_first(op, state_v_first, engine_extras)
    name, slots, in_place = "ssm_state_indices", ssm_state_indices, inplace_final_state
    if initial_state_indices is not None:
        if slots is not None:
            bad_value(op, name, "None with initial_state_indices", "both")
        name, slots, in_place = "initial_state_indices", initial_state_indices, True
    if in_place and initial_state is None and slots is None:
        bad_value(op, "inplace_final_state", "False without initial_state", True)
    tokens = q, k, v, g, beta
    flags = (
        use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval,
    )  # fmt: skip
    gate = A_log, dt_bias, lower_bound, safe_gate
    lengths = cu_seqlens, cu_seqlens_cpu
    states = initial_state, final_state, output_final_state, v_first
    key = (
        op, metadata(q, k, v, g, out, initial_state, final_state),
        layouts(beta, *gate, *lengths, slots, num_accepted_tokens, scale),
        flags, lower_bound, safe_gate, output_final_state, v_first, name, in_place,
        final_state is initial_state,
    )  # fmt: skip
    problem = session.problems.get(key)
    if problem is None:
        given = name, slots, num_accepted_tokens
        problem = problems.recurrent_problem(
            tokens, flags, gate, lengths, states, given, in_place, scale, out
        )
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, *tokens)
    if session.validate:
        operands.validate(op, problem, q, g, *lengths, slots, initial_state, lower_bound)
        check.validate_accepted(op, num_accepted_tokens, slots)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if in_place:
        final_state = initial_state
    elif final_state is None and output_final_state:
        final_state = operands.new_states(q, v, cu_seqlens, v_first)
    session.launcher(problem)(
        q, k, v, g, beta, A_log, dt_bias, initial_state, slots,
        num_accepted_tokens, cu_seqlens, check.scale_of(op, scale, q.shape[3]), lower_bound,
        *flags, v_first, in_place, out, final_state,
    )  # fmt: skip
    return out, final_state


@public
def kda_packed_decode(
    session: Session,
    /,
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    scale: float | None,
    initial_state: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    out: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = True,
    lower_bound: float | None = None,
) -> torch.Tensor:
    """KDA for one token a sequence, straight from the projections (SGLang's packed decode).

    mixed_qkv  `[B, 2 H K + HV V]`: q, k and v side by side
    a          `[B, HV K]`, the raw gate; b `[B, HV]`, the raw beta: its sigmoid is taken
    A_log, dt_bias, lower_bound   as in kda_gate
    initial_state  pool `[slots, HV, V, K]`, V first; float32 or bfloat16; updated in place
    ssm_state_indices  `[B]` or `[B, 1]`, int32 or int64; no two alike; negative: zeros, no state
    out        `[B, 1, HV, V]`

    Returns out.
    """
    op, pool, slots = "kda_packed_decode", initial_state, ssm_state_indices
    key = (
        op, metadata(mixed_qkv, a, pool, out),
        layouts(b, slots, A_log, dt_bias, lower_bound, scale), lower_bound, use_qk_l2norm_in_kernel,
    )  # fmt: skip
    problem = session.problems.get(key)
    if problem is None:
        gate = A_log, dt_bias, lower_bound, False
        problem = problems.packed_problem(
            mixed_qkv, a, b, gate, pool, slots, use_qk_l2norm_in_kernel, scale, out
        )
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, mixed_qkv, a, b)
    if session.validate:
        check.validate_slots(op, "ssm_state_indices", slots, pool)
    run = session.launcher(problem)
    if out.shape[0]:
        run(
            mixed_qkv, a, b, A_log, dt_bias, pool, slots,
            check.scale_of(op, scale, problem.head_dim), lower_bound, use_qk_l2norm_in_kernel,
            out, pool,
        )  # fmt: skip
    return out

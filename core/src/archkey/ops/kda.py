# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention (Kimi Linear, arXiv:2510.26692). A value head's state `S [K, V]` per token:

    S <- diag(e^g) S            g: log gate in nats, one per key channel
    S <- S + beta k (v - k^T S)^T
    o  = scale S^T q            q and k of head hv // (HV / H)

`chunk_kda` is for prefill, `fused_recurrent_kda` for decode and verification; both compute this.
Names are flash-linear-attention's. Compute is float32, whatever the dtypes of tokens and states.

States live in `initial_state [N, HV, K, V]`, or in a pool `[slots, HV, K, V]` whose slots are
given by index; `state_v_first` puts V before K. A sequence with a negative slot is padding: its
rows of o are 0, and no state is read or written. So are the rows of o past the last sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.ops import _kda_checks as check
from archkey.ops import _kda_operands as operands
from archkey.ops._checks import bad_value, check_no_grad
from archkey.ops._contract import public
from archkey.ops._kda_contract import (
    OPERATORS,
    ChunkKdaProblem,
    FusedRecurrentKdaProblem,
    KdaPackedDecodeProblem,
)
from archkey.ops._operand import aligned

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "chunk_kda", "fused_recurrent_kda", "kda_packed_decode"]

SMALL_GRID = 256
"""(chunk, head) pairs up to which a prefill cannot fill a GPU with one block for each."""

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
    return_intermediate_states: bool = False,
    **engine_extras: Any,
) -> Results | ResultsWithChunks:
    """KDA for prefill.

    q, k      `[B, T, H, K]`, K <= 256; v `[B, T, HV, V]`, HV % H == 0; one float dtype
    g         `[B, T, HV, K]` log gates, or raw with use_gate_in_kernel (see kda_gate)
    beta      `[B, T, HV]`; raw with use_beta_sigmoid_in_kernel, doubled by allow_neg_eigval
    scale     of q, after use_qk_l2norm_in_kernel; None is `K ** -0.5`
    safe_gate  promises that no gate is below lower_bound, in [-5, 0)
    cu_seqlens  `[N + 1]` int32 or int64 with B = 1; sequences may be empty. cu_seqlens_cpu is a
              copy on the host, which makes the number of chunks exact
    initial_state  `[N, HV, K, V]` float32 or bfloat16; with initial_state_indices, `[N]` or
              `[N, 1]`, a pool that is updated in place, no two sequences in one slot
    final_state  buffer `[N, HV, K, V]`, may be initial_state; made (float32) by output_final_state
    out       `[B, T, HV, V]`; v itself is allowed; default: new, v's dtype
    chunk_indices, chunk_offsets  as chunk_layout makes them; made if missing
    track_state  float32 `[N, HV, K, V]`: gets the state before chunk track_chunk_idx `[N]` (int32)
              of each sequence; a number that is no chunk of it leaves the row alone

    Returns (o, final_state), and with return_intermediate_states h `[B, NT, HV, K, V]` in v's
    dtype, the state before each chunk. final_state is the pool if there is one.
    """
    op = "chunk_kda"
    state_v_first = operands.v_first(op, state_v_first, engine_extras)
    flags = (
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
    )
    fields, sequences, shape, out = operands.operands(
        op, (q, k, v, g, beta), (*flags, safe_gate, state_v_first), lower_bound, A_log, dt_bias,
        cu_seqlens, initial_state, initial_state_indices is not None, out,
    )  # fmt: skip
    slots, slots_dtype = check.slots_of(
        op, "initial_state_indices", initial_state_indices, initial_state, q, sequences, many=False
    )
    pool = initial_state if slots is not None else None
    final_state, final_dtype = operands.final_of(
        op, final_state, pool, output_final_state, sequences, q, shape
    )
    chunks, chunk_indices, chunk_offsets = operands.chunks_of(
        op, q, cu_seqlens, cu_seqlens_cpu, chunk_indices, chunk_offsets, sequences, chunk_size
    )
    tracked = operands.track_of(op, track_state, track_chunk_idx, sequences, q, shape)
    h = None
    if return_intermediate_states:
        h = torch.empty((q.shape[0], chunks, *shape), dtype=v.dtype, device=v.device)
    small = q.shape[0] * chunks * v.shape[2] <= SMALL_GRID
    states = (x for x in (initial_state, final_state) if x is not None)
    problem = ChunkKdaProblem(
        **fields,
        state_indices=slots_dtype,
        final_dtype=final_dtype,
        chunk_size=chunk_size,
        track=tracked,
        intermediate=return_intermediate_states,
        small_grid=small,
        aligned=aligned(q, k, v, g, out, *states),
    )
    if session.validate:
        lengths = cu_seqlens, cu_seqlens_cpu
        operands.validate(op, problem, q, g, *lengths, slots, pool, lower_bound)
    session.launcher(problem)(
        q, k, v, g, beta, A_log, dt_bias, initial_state, slots, cu_seqlens, chunk_indices,
        chunk_offsets, track_state, track_chunk_idx, check.scale_of(op, scale, q.shape[3]),
        lower_bound, *flags, state_v_first, chunk_size, return_intermediate_states,
        out, final_state, h, track_state,
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
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    *,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
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
              `[n, max(num_accepted_tokens[n], 1) - 1]`; without, from `[n, 0]`
    inplace_final_state  without slots: final_state is initial_state

    Returns (o, final_state): the pool if it was updated, else `[N, HV, K, V]` if asked for.
    """
    op = "fused_recurrent_kda"
    state_v_first = operands.v_first(op, state_v_first, engine_extras)
    name, indices = "ssm_state_indices", ssm_state_indices
    if initial_state_indices is not None:
        if indices is not None:
            bad_value(op, name, "None with initial_state_indices", "both")
        name, indices, inplace_final_state = "initial_state_indices", initial_state_indices, True
    if inplace_final_state and initial_state is None and indices is None:
        bad_value(op, "inplace_final_state", "False without initial_state", True)
    flags = (
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
    )
    fields, sequences, shape, out = operands.operands(
        op, (q, k, v, g, beta), (*flags, safe_gate, state_v_first), lower_bound, A_log, dt_bias,
        cu_seqlens, initial_state, indices is not None, out,
    )  # fmt: skip
    many = name == "ssm_state_indices"
    slots, slots_dtype = check.slots_of(op, name, indices, initial_state, q, sequences, many)
    in_place = initial_state if inplace_final_state else None
    final_state, final_dtype = operands.final_of(
        op, final_state, in_place, output_final_state, sequences, q, shape
    )
    accepted = check.accepted_of(op, num_accepted_tokens, slots, q)
    states = (x for x in (initial_state, final_state) if x is not None)
    problem = FusedRecurrentKdaProblem(
        **fields,
        state_indices=slots_dtype,
        final_dtype=final_dtype,
        per_token=slots is not None and slots.shape[1] > 1,
        accepted=accepted,
        in_place=slots is not None and inplace_final_state,
        aligned=aligned(q, k, v, g, out, *states),
    )
    if session.validate:
        lengths = cu_seqlens, cu_seqlens_cpu
        operands.validate(op, problem, q, g, *lengths, slots, initial_state, lower_bound)
    session.launcher(problem)(
        q, k, v, g, beta, A_log, dt_bias, initial_state, slots, num_accepted_tokens, cu_seqlens,
        check.scale_of(op, scale, q.shape[3]), lower_bound, *flags, state_v_first,
        inplace_final_state, out, final_state,
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
    op = "kda_packed_decode"
    dims, state_dtype, out_dtype = operands.packed_of(op, mixed_qkv, a, b, initial_state, out)
    batch, k_dim = mixed_qkv.shape[0], dims[5]
    gate = check.gate_of(
        op, a.view(batch, dims[4], k_dim), True, A_log, dt_bias, lower_bound, False
    )
    slots, slots_dtype = check.slots_of(
        op, "ssm_state_indices", ssm_state_indices, initial_state, mixed_qkv, batch, many=False
    )
    if slots is None:
        bad_value(op, "ssm_state_indices", "a tensor of slots", "None")
    check_no_grad(op, mixed_qkv, a, b)
    in_line = aligned(mixed_qkv, a, initial_state, out)
    problem = KdaPackedDecodeProblem._make(
        (*dims, *gate, use_qk_l2norm_in_kernel, state_dtype, slots_dtype, out_dtype, in_line, op)
    )
    if session.validate:
        check.validate_slots(op, "ssm_state_indices", slots, initial_state)
    run = session.launcher(problem)
    if batch:
        run(
            mixed_qkv, a, b, A_log, dt_bias, initial_state, slots,
            check.scale_of(op, scale, k_dim), lower_bound, use_qk_l2norm_in_kernel,
            out, initial_state,
        )  # fmt: skip
    return out

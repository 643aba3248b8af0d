# SPDX-License-Identifier: Apache-2.0
"""Problems of the KDA operators, from the metadata of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.ops import _kda_checks as check
from archkey.ops._checks import FLOATS, bad_value, shape_text
from archkey.ops._kda_contract import (
    ChunkKdaProblem,
    FusedRecurrentKdaProblem,
    KdaPackedDecodeProblem,
)
from archkey.ops._operand import aligned, check_operand
from archkey.ops.kda_gate import CHUNK_SIZES

if TYPE_CHECKING:
    import torch

SMALL_GRID = 256
"""(chunk, head) pairs up to which a prefill cannot fill a GPU with one block for each."""

Tokens = tuple[Any, Any, Any, Any, Any]
"""q, k, v, g, beta."""
Flags = tuple[bool, bool, bool, bool]
"""use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval."""
Gate = tuple[Any, Any, Any, bool]
"""A_log, dt_bias, lower_bound, safe_gate."""
States = tuple[Any, Any, bool, bool]
"""initial_state, final_state, output_final_state, state_v_first."""

FIELDS = (
    *("dtype", "g_dtype", "beta_dtype", "heads", "value_heads", "head_dim", "head_dim_v"),
    *("gate", "A_log", "dt_bias", "bounded", "beta", "l2norm", "cu_seqlens"),
    *("state_dtype", "state_v_first", "out_dtype", "final_dtype", "aligned"),
)
"""Fields that the Problems of chunk_kda and fused_recurrent_kda share."""


def chunk_problem(
    tokens: Tokens,
    flags: Flags,
    gate: Gate,
    lengths: tuple[Any, Any],
    states: States,
    indices: Any,
    chunks: tuple[int, Any, Any],
    track: tuple[Any, Any],
    intermediate: bool,
    batch_invariant: bool,
    scale: Any,
    out: Any,
) -> ChunkKdaProblem:
    """Check the metadata of a chunk_kda and make its key.

    chunks  chunk_size, chunk_indices, chunk_offsets; without the latter two, small_grid is open
    """
    op, q, v = "chunk_kda", tokens[0], tokens[2]
    pool = indices is not None
    fields, sequences, shape = _fields(op, tokens, flags, gate, lengths, states, pool, pool, out)
    slots = check.slots_of(op, "initial_state_indices", indices, states[0], q, sequences, False)
    count = _chunks(op, q, lengths[0], sequences, *chunks)
    tracked = _tracked(op, *track, sequences, q, shape)
    check.scale_of(op, scale, q.shape[3])
    return ChunkKdaProblem(
        **fields,
        state_indices=slots,
        chunk_size=chunks[0],
        track=tracked,
        intermediate=intermediate,
        small_grid=count is not None and q.shape[0] * count * v.shape[2] <= SMALL_GRID,
        batch_invariant=batch_invariant,
    )


def recurrent_problem(
    tokens: Tokens,
    flags: Flags,
    gate: Gate,
    lengths: tuple[Any, Any],
    states: States,
    slots: tuple[str, Any, Any],
    in_place: bool,
    scale: Any,
    out: Any,
) -> FusedRecurrentKdaProblem:
    """Check the metadata of a fused_recurrent_kda and make its key.

    slots  name of the argument, slots, num_accepted_tokens
    """
    op, q = "fused_recurrent_kda", tokens[0]
    name, indices, accepted = slots
    pool = indices is not None
    fields, sequences, _ = _fields(op, tokens, flags, gate, lengths, states, pool, in_place, out)
    many = name == "ssm_state_indices"
    slots_dtype = check.slots_of(op, name, indices, states[0], q, sequences, many)
    check.scale_of(op, scale, q.shape[3])
    return FusedRecurrentKdaProblem(
        **fields,
        state_indices=slots_dtype,
        per_token=pool and indices.dim() == 2 and indices.shape[1] > 1,
        accepted=check.accepted_of(op, accepted, indices, q),
        in_place=pool and in_place,
    )


def packed_problem(
    mixed_qkv: Any,
    a: Any,
    b: Any,
    gate: Gate,
    pool: Any,
    slots: Any,
    l2norm: bool,
    scale: Any,
    out: Any,
) -> KdaPackedDecodeProblem:
    """Check the metadata of a kda_packed_decode and make its key."""
    op = "kda_packed_decode"
    state_dtype = check_operand(op, "initial_state", pool, check.STATES, 4, mixed_qkv)
    value_heads, v_dim, k_dim = pool.shape[1:]
    if not 0 < k_dim <= check.MAX_KEY_DIM:
        bad_value(op, "initial_state's K", f"1 to {check.MAX_KEY_DIM}", k_dim)
    dtype = check_operand(op, "mixed_qkv", mixed_qkv, FLOATS, 2, mixed_qkv)
    batch, width = mixed_qkv.shape
    heads, rest = divmod(width - value_heads * v_dim, 2 * k_dim)
    if rest or heads < 1 or value_heads % heads:
        expected = f"2 H {k_dim} + {value_heads} {v_dim} wide, with {value_heads} % H == 0"
        bad_value(op, "mixed_qkv", expected, shape_text(mixed_qkv))
    a_dtype = check_operand(op, "a", a, FLOATS, (batch, value_heads * k_dim), mixed_qkv)
    b_dtype = check_operand(op, "b", b, FLOATS, (batch, value_heads), mixed_qkv)
    out_dtype = check_operand(op, "out", out, FLOATS, (batch, 1, value_heads, v_dim), mixed_qkv)
    gates = check.gate_of(op, a.view(batch, value_heads, k_dim), True, *gate)
    if slots is None:
        bad_value(op, "ssm_state_indices", "a tensor of slots", "None")
    slots_dtype = check.slots_of(op, "ssm_state_indices", slots, pool, mixed_qkv, batch, False)
    check.scale_of(op, scale, k_dim)
    return KdaPackedDecodeProblem(
        dtype,
        a_dtype,
        b_dtype,
        heads,
        value_heads,
        k_dim,
        v_dim,
        *gates,
        l2norm,
        state_dtype,
        slots_dtype,
        out_dtype,
        aligned(mixed_qkv, a, pool, out),
    )


def _fields(
    op: str,
    tokens: Tokens,
    flags: Flags,
    gate: Gate,
    lengths: tuple[Any, Any],
    states: States,
    pool: bool,
    in_place: bool,
    out: Any,
) -> tuple[dict[str, Any], int, tuple[int, int, int]]:
    """Check what both operators take.

    pool, in_place  initial_state is a pool; the last states go back into initial_state

    Returns (the fields that both Problems have, number of sequences, shape of one state).
    """
    q, k, v, g, _ = tokens
    initial_state, final_state, wanted, v_first = states
    l2norm, gate_in_kernel, beta_sigmoid, neg_eigval = flags
    described = check.tokens_of(op, *tokens)
    value_heads, k_dim, v_dim = described[-3:]
    gates = check.gate_of(op, g, gate_in_kernel, *gate)
    beta = check.beta_of(op, beta_sigmoid, neg_eigval)
    sequences, cu_dtype = check.sequences_of(op, q, *lengths)
    shape = (value_heads, v_dim, k_dim) if v_first else (value_heads, k_dim, v_dim)
    number = None if pool else sequences
    state_dtype = check.state_of(op, "initial_state", initial_state, number, q, shape)
    if in_place:
        final_dtype = _same_state(op, initial_state, final_state, state_dtype)
    elif final_state is None and wanted:
        final_dtype = "float32"
    else:
        final_dtype = check.state_of(op, "final_state", final_state, sequences, q, shape)
    out_dtype = described[0] if out is None else check_operand(op, "out", out, FLOATS, v.shape, q)
    # Outputs that we make are contiguous, and begin where a GPU's allocator does.
    rows = v_dim * v.element_size() if out is None else 0
    rows |= shape[2] * 4 if final_state is None and wanted and not in_place else 0
    given = (x for x in (out, initial_state, final_state) if x is not None)
    in_line = rows & 15 == 0 and aligned(q, k, v, g, *given)
    values = (*described, *gates, beta, l2norm, cu_dtype, state_dtype, v_first, out_dtype)
    fields = dict(zip(FIELDS, (*values, final_dtype, in_line), strict=True))
    return fields, sequences, shape


def _same_state(op: str, initial_state: Any, final_state: Any, dtype: str) -> str:
    """dtype of a final state that is the initial one."""
    if final_state is not None and final_state is not initial_state:
        hint = "The states go back to where they came from."
        found = shape_text(final_state)
        bad_value(op, "final_state", "None, or initial_state itself", found, hint)
    return dtype


def _chunks(
    op: str,
    q: torch.Tensor,
    cu_seqlens: Any,
    sequences: int,
    chunk_size: int,
    chunk_indices: Any,
    chunk_offsets: Any,
) -> int | None:
    """Chunks of a batch row; None where only the values of cu_seqlens tell."""
    if chunk_size not in CHUNK_SIZES:
        bad_value(op, "chunk_size", "32 or 64", chunk_size)
    if (chunk_indices is None) != (chunk_offsets is None):
        missing = "chunk_indices" if chunk_indices is None else "chunk_offsets"
        bad_value(op, missing, "given with its counterpart", "None")
    if cu_seqlens is None:
        if chunk_indices is not None:
            bad_value(op, "chunk_indices", "None without cu_seqlens", shape_text(chunk_indices))
        return -(-q.shape[1] // chunk_size)
    if chunk_indices is None:
        return None
    dtype = check_operand(op, "chunk_indices", chunk_indices, check.INTEGERS, (None, 2), q)
    check_operand(op, "chunk_offsets", chunk_offsets, (dtype,), (sequences + 1,), q)
    return int(chunk_indices.shape[0])


def _tracked(
    op: str, track_state: Any, track_chunk_idx: Any, sequences: int, q: torch.Tensor, shape: Any
) -> bool:
    """Whether a snapshot of each sequence is wanted."""
    if (track_state is None) != (track_chunk_idx is None):
        missing = "track_state" if track_state is None else "track_chunk_idx"
        bad_value(op, missing, "given with its counterpart", "None")
    if track_state is None:
        return False
    # float32 only: the engine rounds a snapshot once, to the dtype of its own pool (sglang#33450).
    check_operand(op, "track_state", track_state, ("float32",), (sequences, *shape), q)
    check_operand(op, "track_chunk_idx", track_chunk_idx, ("int32",), (sequences,), q)
    return True

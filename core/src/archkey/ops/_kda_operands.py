# SPDX-License-Identifier: Apache-2.0
"""What chunk_kda and fused_recurrent_kda do alike before the launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archkey.ops import _kda_checks as check
from archkey.ops._checks import FLOATS, bad_type, bad_value, shape_text, unsupported
from archkey.ops._operand import check_operand
from archkey.ops.kda_gate import CHUNK_SIZES, chunk_layout

if TYPE_CHECKING:
    import torch

    from archkey.ops._kda_contract import ChunkKdaProblem, FusedRecurrentKdaProblem
else:
    from archkey._torch import torch

# Further options of flash-linear-attention and SGLang; an empty text: changes no result, ignored.
_EXTRAS = {
    "cp_context": "context parallelism",
    "disable_recompute": "",
    "use_graph": "",
    "max_num_seqs": "",
    "transpose_state_layout": "",
}
_CHUNK_ONLY = {
    "chunk_size": "",
    "chunk_indices": "",
    "chunk_offsets": "",
    "track_state": "snapshots at chunks; use chunk_kda",
    "track_chunk_idx": "snapshots at chunks; use chunk_kda",
    "return_intermediate_states": "states of chunks; use chunk_kda",
}


FIELDS = (
    *("dtype", "g_dtype", "beta_dtype", "heads", "value_heads", "head_dim", "head_dim_v"),
    *("gate", "A_log", "dt_bias", "bounded", "beta", "l2norm", "cu_seqlens"),
    *("state_dtype", "state_v_first", "out_dtype"),
)
"""Fields that the Problems of chunk_kda and fused_recurrent_kda share."""


def v_first(op: str, state_v_first: bool, extras: Mapping[str, Any]) -> bool:
    """Whether states are `[V, K]`, under the old name too; refuses other options that are on."""
    if not extras:
        return state_v_first
    known = _EXTRAS if op == "chunk_kda" else _EXTRAS | _CHUNK_ONLY
    for name, value in extras.items():
        if name not in known:
            bad_type(op, "the call", "made with known keywords only", name)
        if known[name] and (isinstance(value, torch.Tensor) or value):
            unsupported(op, name, "off", value, f"Not implemented: {known[name]}.")
    old = extras.get("transpose_state_layout")
    if old is not None and state_v_first:
        bad_value(
            op, "transpose_state_layout", "absent with state_v_first", old, "It is the old name."
        )
    return bool(old) or state_v_first


def operands(
    op: str,
    tokens: tuple[Any, Any, Any, Any, Any],
    flags: tuple[bool, bool, bool, bool, bool, bool],
    lower_bound: float | None,
    A_log: Any,
    dt_bias: Any,
    cu_seqlens: Any,
    initial_state: Any,
    pool: bool,
    out: Any,
) -> tuple[dict[str, Any], int, tuple[int, int, int], torch.Tensor]:
    """Check q, k, v, g, beta, gate, lengths, states and out.

    flags  l2norm, gate in kernel, beta sigmoid, allow_neg_eigval, safe_gate, state_v_first

    Returns (the fields both Problems begin with, number of sequences, shape of one state, out).
    """
    q, _, v, g, _ = tokens
    l2norm, gate_in_kernel, beta_sigmoid, neg_eigval, safe_gate, state_v_first = flags
    described = check.tokens_of(op, *tokens)
    value_heads, k_dim, v_dim = described[-3:]
    gate = check.gate_of(op, g, gate_in_kernel, A_log, dt_bias, lower_bound, safe_gate)
    beta = check.beta_of(op, beta_sigmoid, neg_eigval)
    sequences, cu_dtype = check.sequences_of(op, q, cu_seqlens)
    state = (value_heads, v_dim, k_dim) if state_v_first else (value_heads, k_dim, v_dim)
    number = None if pool else sequences
    state_dtype = check.state_of(op, "initial_state", initial_state, number, q, state)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    out_dtype = check_operand(op, "out", out, FLOATS, v.shape, q)
    values = (*described, *gate, beta, l2norm, cu_dtype, state_dtype, state_v_first, out_dtype)
    return dict(zip(FIELDS, values, strict=True)), sequences, state, out


def final_of(
    op: str,
    final_state: Any,
    in_place: torch.Tensor | None,
    wanted: bool,
    sequences: int,
    q: torch.Tensor,
    shape: tuple[int, ...],
) -> tuple[torch.Tensor | None, str]:
    """(where the last states go, their dtype or "none"); `in_place`: the pool or initial_state."""
    if in_place is not None:
        if final_state is not None and final_state is not in_place:
            hint = "The states go back to where they came from."
            bad_value(
                op, "final_state", "None, or initial_state itself", shape_text(final_state), hint
            )
        return in_place, check.state_of(op, "initial_state", in_place, None, q, shape)
    if final_state is None and wanted:
        final_state = torch.empty((sequences, *shape), dtype=torch.float32, device=q.device)
    return final_state, check.state_of(op, "final_state", final_state, sequences, q, shape)


def chunks_of(
    op: str,
    q: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    chunk_indices: Any,
    chunk_offsets: Any,
    sequences: int,
    chunk_size: int,
) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
    """(chunks of a batch row, chunk_indices, chunk_offsets); the latter two are made if missing."""
    if chunk_size not in CHUNK_SIZES:
        bad_value(op, "chunk_size", "32 or 64", chunk_size)
    if (chunk_indices is None) != (chunk_offsets is None):
        missing = "chunk_indices" if chunk_indices is None else "chunk_offsets"
        bad_value(op, missing, "given with its counterpart", "None")
    if cu_seqlens is None:
        if chunk_indices is not None:
            bad_value(op, "chunk_indices", "None without cu_seqlens", shape_text(chunk_indices))
        return -(-q.shape[1] // chunk_size), None, None
    if chunk_indices is None:
        source = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
        layout = chunk_layout(source, q.shape[1], chunk_size)
        chunk_indices, chunk_offsets = (x.to(q.device, non_blocking=True) for x in layout)
    else:
        dtype = check_operand(op, "chunk_indices", chunk_indices, check.INTEGERS, (None, 2), q)
        check_operand(op, "chunk_offsets", chunk_offsets, (dtype,), (sequences + 1,), q)
    return chunk_indices.shape[0], chunk_indices, chunk_offsets


def track_of(
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


def validate(
    op: str,
    problem: ChunkKdaProblem | FusedRecurrentKdaProblem,
    q: torch.Tensor,
    g: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    slots: torch.Tensor | None,
    pool: torch.Tensor | None,
    lower_bound: float | None,
) -> None:
    """Values, under ARCHKEY_VALIDATE=1: lengths, slots, and the range of a finished gate."""
    if cu_seqlens is not None:
        check.validate_cu_seqlens(op, cu_seqlens, cu_seqlens_cpu, q.shape[1])
    if slots is not None and pool is not None:
        check.validate_slots(op, "state indices", slots, pool)
        longest = q.shape[1] if cu_seqlens is None else int(cu_seqlens.diff().max())
        if slots.shape[1] > 1 and longest > slots.shape[1]:
            expected = f"of {longest} columns, one for each token of the longest sequence"
            bad_value(op, "ssm_state_indices", expected, shape_text(slots))
    if problem.gate == "given":
        check.validate_given_gate(op, g, lower_bound if problem.bounded else None)


def packed_of(
    op: str, mixed_qkv: Any, a: Any, b: Any, initial_state: Any, out: Any
) -> tuple[Any, ...]:
    """(dtype, a's, b's, H, HV, K, V) of a packed decode, and the dtypes of pool and out."""
    state_dtype = check_operand(op, "initial_state", initial_state, check.STATES, 4, mixed_qkv)
    value_heads, v_dim, k_dim = initial_state.shape[1:]
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
    return (dtype, a_dtype, b_dtype, heads, value_heads, k_dim, v_dim), state_dtype, out_dtype

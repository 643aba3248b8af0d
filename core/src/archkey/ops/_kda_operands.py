# SPDX-License-Identifier: Apache-2.0
"""What the KDA operators do with their arguments on every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archkey.ops import _kda_checks as check
from archkey.ops._checks import bad_type, bad_value, shape_text, unsupported
from archkey.ops.kda_gate import chunk_layout

if TYPE_CHECKING:
    import torch

    from archkey.ops._kda_contract import ChunkKdaProblem, FusedRecurrentKdaProblem
else:
    from archkey._torch import torch

# Further options of flash-linear-attention and SGLang; an empty text: changes no result, ignored.
_EXTRAS = {
    "cp_context": "context parallelism",
    "use_graph": "",
    "max_num_seqs": "",
    "transpose_state_layout": "",
}
_CHUNK_ONLY = {
    "disable_recompute": "",
    "chunk_size": "",
    "chunk_indices": "",
    "chunk_offsets": "",
    "track_state": "snapshots at chunks; use chunk_kda",
    "track_chunk_idx": "snapshots at chunks; use chunk_kda",
    "return_intermediate_states": "states of chunks; use chunk_kda",
}


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


def new_states(
    q: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, v_first: bool
) -> torch.Tensor:
    """A buffer for the last state of each sequence."""
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, *_state_shape(q, v, v_first))
    return torch.empty(shape, dtype=torch.float32, device=q.device)


def new_chunks(
    q: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_seqlens_cpu: torch.Tensor | None,
    chunk_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """chunk_indices and chunk_offsets on q's device."""
    source = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    indices, offsets = chunk_layout(source, q.shape[1], chunk_size)
    return indices.to(q.device, non_blocking=True), offsets.to(q.device, non_blocking=True)


def count_chunks(
    q: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_seqlens_cpu: torch.Tensor | None,
    chunk_size: int,
) -> int:
    """Chunks of packed sequences; the most that there can be if only the device knows lengths."""
    known = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    if known.device.type == "cpu":
        return int(((known.diff() + chunk_size - 1) // chunk_size).sum())
    return -(-q.shape[1] // chunk_size) + len(known) - 2


def new_intermediate(
    q: torch.Tensor,
    v: torch.Tensor,
    chunk_size: int,
    chunk_indices: torch.Tensor | None,
    v_first: bool,
) -> torch.Tensor:
    """A buffer for the state before each chunk."""
    chunks = -(-q.shape[1] // chunk_size) if chunk_indices is None else chunk_indices.shape[0]
    return torch.empty(
        (q.shape[0], chunks, *_state_shape(q, v, v_first)), dtype=v.dtype, device=v.device
    )


def _state_shape(q: torch.Tensor, v: torch.Tensor, v_first: bool) -> tuple[int, int, int]:
    heads, v_dim, k_dim = v.shape[2], v.shape[3], q.shape[3]
    return (heads, v_dim, k_dim) if v_first else (heads, k_dim, v_dim)


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
        if slots.dim() == 2 and 1 < slots.shape[1] < longest:
            expected = f"of {longest} columns, one for each token of the longest sequence"
            bad_value(op, "ssm_state_indices", expected, shape_text(slots))
    if problem.gate == "given":
        promised = check.SAFE_BOUND if lower_bound is None else lower_bound
        check.validate_given_gate(op, g, promised if problem.bounded else None)

# SPDX-License-Identifier: Apache-2.0
"""Checks of calls on packed caches: from their metadata to their Problems."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_apart,
    check_dtype,
    check_last_contiguous,
    check_tensor,
    dtype_name,
    shape_text,
)
from archkey.ops._sparse_kv import PackedKV
from archkey.ops._sparse_mla_contract import (
    DequantizeSparseKvProblem,
    LogicalToPhysicalIndicesProblem,
    QuantizeSparseKvProblem,
)
from archkey.ops._sparse_mla_operands import check_packed, index_lists, layout_of

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

SCALE_MODES = ("fp32", "pow2")


def quantize_problem(
    session: Session,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor | None,
    format: str,
    scale_mode: str,
    out: torch.Tensor | None,
    slot_mapping: torch.Tensor | None,
) -> QuantizeSparseKvProblem:
    """Check the metadata of a call and make its key."""
    op = "quantize_sparse_kv"
    layout = layout_of(session, op, "format", format)
    if scale_mode not in SCALE_MODES:
        bad_value(op, "scale_mode", f"one of {SCALE_MODES}", repr(scale_mode))
    if scale_mode == "fp32" and layout.scale_dtype != "float32":
        hint = "An exponent byte cannot hold another scale."
        bad_value(op, "scale_mode", f"'pow2' for {format}", "'fp32'", hint)
    dtype = _parts(op, k_nope, k_rope, layout)
    if out is None and slot_mapping is not None:
        hint = "Without it there is no cache for the slots to lie in."
        bad_value(op, "out", "given with slot_mapping", "None", hint)
    cache = checks.check_pages(op, "out", new_cache(k_nope, layout) if out is None else out)
    check_packed(op, "out", cache, layout)
    checks.check_device(op, "out", cache, k_nope.device)
    check_apart(op, "out", cache)
    slots, tokens = math.prod(cache.shape[:2]), math.prod(k_nope.shape[:-1])
    if slot_mapping is None and tokens > slots:
        bad_value(op, "out", f"of at least {tokens} slots", shape_text(cache))
    slot_dtype = _slot_mapping(op, slot_mapping, k_nope.device, tokens)
    parts = (flat_rows(k_nope), None if k_rope is None else flat_rows(k_rope))
    aligned = checks.is_aligned(_apart(cache), *parts)
    return QuantizeSparseKvProblem(
        dtype, format, scale_mode, cache.shape[1], slot_dtype, aligned, session.pdl
    )


def dequantize_problem(
    session: Session,
    kv_cache: torch.Tensor,
    format: str,
    slot_mapping: torch.Tensor | None,
    out: torch.Tensor | None,
) -> DequantizeSparseKvProblem:
    op = "dequantize_sparse_kv"
    layout = layout_of(session, op, "format", format)
    cache = checks.check_pages(op, "kv_cache", kv_cache)
    check_packed(op, "kv_cache", cache, layout)
    slot_dtype = _slot_mapping(op, slot_mapping, cache.device)
    lead = cache.shape[:2] if slot_mapping is None else slot_mapping.shape
    shape, out_dtype = (*lead, layout.head_dim), "bfloat16"
    if out is not None:
        check_tensor(op, "out", out)
        out_dtype = check_dtype(op, "out", out, checks.OUT_DTYPES)
        if out.shape != shape or not out.is_contiguous():
            bad_value(op, "out", f"contiguous, of shape {list(shape)}", shape_text(out))
        checks.check_device(op, "out", out, cache.device)
    aligned = checks.is_aligned(2 * layout.head_dim | _apart(cache), out)
    return DequantizeSparseKvProblem(
        out_dtype, format, cache.shape[1], slot_dtype, aligned, session.pdl
    )


def logical_problem(
    indices: torch.Tensor, block_table: torch.Tensor, page_size: int, out: torch.Tensor | None
) -> LogicalToPhysicalIndicesProblem:
    op = "logical_to_physical_indices"
    check_tensor(op, "indices", indices)
    if indices.dim() not in (2, 3):
        bad_value(op, "indices", "of shape [B, k] or [B, q_len, k]", shape_text(indices))
    device = indices.device
    topk = index_lists(op, "indices", indices, indices.shape, device)
    checks.check_int32(op, "block_table", block_table, (indices.shape[0], None), device)
    if page_size < 1:
        bad_value(op, "page_size", "at least 1", page_size)
    if out is not None:
        checks.check_int32(op, "out", out, indices.shape, device)
        check_apart(op, "out", out)
    return LogicalToPhysicalIndicesProblem(page_size, topk)


def flat_rows(rows: torch.Tensor) -> torch.Tensor:
    """`[T, width]` or `[num_blocks, page_size, width]` as `[T, width]`."""
    return rows if rows.dim() == 2 else rows.flatten(0, 1)


def new_cache(k_nope: torch.Tensor, layout: PackedKV) -> torch.Tensor:
    """An unwritten cache with the pages of `k_nope`."""
    page_size = k_nope.shape[1] if k_nope.dim() == 3 else 1
    stride, row = layout.block_bytes(page_size), layout.row_bytes
    blocks = torch.empty((k_nope.shape[0], stride), dtype=torch.uint8, device=k_nope.device)
    return blocks.as_strided((k_nope.shape[0], page_size, row), (stride, row, 1))


def _apart(cache: torch.Tensor) -> int:
    """Bits of a cache's pointer and block stride, to be aligned: its layout places the rest.

    The stride from row to row is no address in a planar block.
    """
    return cache.data_ptr() | cache.stride(0)


def _parts(op: str, k_nope: torch.Tensor, k_rope: torch.Tensor | None, layout: PackedKV) -> str:
    """Check latents and rope keys; returns their dtype."""
    dtype = _rows(op, "k_nope", k_nope, layout.nope_dim)
    if (k_rope is None) != (layout.rope_dim == 0):
        found = "None" if k_rope is None else shape_text(k_rope)
        expected = f"of width {layout.rope_dim}" if layout.rope_dim else "None"
        bad_value(op, "k_rope", f"{expected} for {layout.name}", found)
    if k_rope is not None:
        if _rows(op, "k_rope", k_rope, layout.rope_dim) != dtype:
            bad_type(op, "k_rope", f"{dtype} like k_nope", dtype_name(k_rope))
        if k_rope.shape[:-1] != k_nope.shape[:-1]:
            expected = f"of k_nope's leading shape {list(k_nope.shape[:-1])}"
            bad_value(op, "k_rope", expected, shape_text(k_rope))
        checks.check_device(op, "k_rope", k_rope, k_nope.device)
    return dtype


def _rows(op: str, name: str, rows: torch.Tensor, width: int) -> str:
    """Check `[T, width]` or `[num_blocks, page_size, width]`; returns the dtype."""
    check_tensor(op, name, rows)
    dtype = check_dtype(op, name, rows, FLOATS)
    if rows.dim() not in (2, 3) or rows.shape[-1] != width:
        expected = f"of shape [T, {width}] or [num_blocks, page_size, {width}]"
        bad_value(op, name, expected, shape_text(rows))
    check_last_contiguous(op, name, rows)
    return dtype


def _slot_mapping(
    op: str, slots: torch.Tensor | None, device: torch.device, tokens: int | None = None
) -> str:
    """Check slots `[T]` of `tokens` tokens (None: any number), if given; returns their dtype."""
    if slots is None:
        return "none"
    check_tensor(op, "slot_mapping", slots)
    dtype = check_dtype(op, "slot_mapping", slots, ("int32", "int64"))
    if slots.dim() != 1 or tokens not in (None, slots.shape[0]):
        expected = f"of shape [{'T' if tokens is None else tokens}]"
        bad_value(op, "slot_mapping", expected, shape_text(slots))
    check_last_contiguous(op, "slot_mapping", slots)
    checks.check_device(op, "slot_mapping", slots, device)
    return dtype


def validate_distinct(op: str, slot_mapping: torch.Tensor, slots: int) -> None:
    """ARCHKEY_VALIDATE=1: no two tokens go to one slot."""
    kept = slot_mapping[(slot_mapping >= 0) & (slot_mapping < slots)]
    if torch.unique(kept).numel() != kept.numel():
        hint = "Which of two tokens would stay is not defined."
        bad_value(op, "slot_mapping", "free of duplicates", "a slot given twice", hint)

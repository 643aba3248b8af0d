# SPDX-License-Identifier: Apache-2.0
"""Rows into and out of packed sparse-KV caches, and indices from positions to slots.

The byte layouts are in `archkey.ops._sparse_kv`; their plain definition is
`archkey.formats.sparse_kv`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_dtype,
    check_last_contiguous,
    check_no_grad,
    check_tensor,
    dtype_name,
    shape_text,
)
from archkey.ops._contract import public
from archkey.ops._sparse_kv import PackedKV
from archkey.ops._sparse_mla_contract import (
    DequantizeSparseKvProblem,
    LogicalToPhysicalIndicesProblem,
    QuantizeSparseKvProblem,
)
from archkey.ops._sparse_mla_operands import index_lists, layout_of, packed_rows

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = [
    "DequantizeSparseKvProblem",
    "LogicalToPhysicalIndicesProblem",
    "QuantizeSparseKvProblem",
    "dequantize_sparse_kv",
    "logical_to_physical_indices",
    "quantize_sparse_kv",
]

SCALE_MODES = ("fp32", "pow2")


@public
def quantize_sparse_kv(
    session: Session,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor | None,
    *,
    format: str = "fp8_v32",
    scale_mode: str = "fp32",
    out: torch.Tensor | None = None,
    slot_mapping: torch.Tensor | None = None,
) -> torch.Tensor:
    """Quantise latents, and copy rope keys as bfloat16, into a packed cache.

    k_nope        `[T, n]`, or `[num_blocks, page_size, n]` for a whole cache; n is the format's
                  latent width; bfloat16, float16 or float32; last stride 1
    k_rope        the same but r wide; None for a format without rope
    format        a packed format; "_fnuz" ones on gfx942
    scale_mode    "fp32": a tile's scale is amax / max_fp8; "pow2": that, rounded up to a power of
                  two, which ue8m0 scales (fp8_model1) require. An all-zero tile has a tiny scale
    out           the cache `[num_blocks, page_size, row_bytes]`, bytes or FP8; other slots keep
                  their bytes; default: a new one of k_nope's pages (`[T, n]`: pages of one)
    slot_mapping  `[T]` int32 or int64: the slot of each token, outside the cache: dropped;
                  default: token t goes to slot t. It needs `out`

    Returns out.
    """
    op = "quantize_sparse_kv"
    layout = layout_of(session, op, "format", format)
    if scale_mode not in SCALE_MODES:
        bad_value(op, "scale_mode", f"one of {SCALE_MODES}", repr(scale_mode))
    if scale_mode == "fp32" and layout.scale_dtype != "float32":
        hint = "An exponent byte cannot hold another scale."
        bad_value(op, "scale_mode", f"'pow2' for {format}", "'fp32'", hint)
    dtype, nope, rope = _parts(op, k_nope, k_rope, layout)
    check_no_grad(op, k_nope, k_rope)
    if out is None:
        out = _new_cache(op, k_nope, slot_mapping, layout)
    cache = packed_rows(op, "out", checks.pages_of(op, "out", out), layout)
    checks.check_device(op, "out", cache, k_nope.device)
    slots, slot_dtype = cache.shape[0] * cache.shape[1], "none"
    if slot_mapping is not None:
        slot_dtype = _slot_mapping(op, slot_mapping, k_nope)
        if slot_mapping.shape[0] != nope.shape[0]:
            bad_value(op, "slot_mapping", f"of shape [{nope.shape[0]}]", shape_text(slot_mapping))
        if session.validate:
            _validate_distinct(op, slot_mapping, slots)
    elif nope.shape[0] > slots:
        bad_value(op, "out", f"of at least {nope.shape[0]} slots", shape_text(out))
    problem = QuantizeSparseKvProblem(
        dtype,
        format,
        scale_mode,
        cache.shape[1],
        slot_dtype,
        checks.is_aligned(nope, cache, *((rope,) if rope is not None else ())),
        session.pdl,
    )
    run = session.launcher(problem)
    if nope.numel():
        run(nope, rope, slot_mapping, cache, format, scale_mode, cache)
    return out


@public
def dequantize_sparse_kv(
    session: Session,
    kv_cache: torch.Tensor,
    *,
    format: str = "fp8_v32",
    slot_mapping: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unpack rows of a packed cache: latent, then rope.

    kv_cache      `[num_blocks, page_size, row_bytes]`, or 4-D with a unit dim at 1 or 2
    slot_mapping  `[T]` int32 or int64: the slots wanted; one outside the cache gives zeros;
                  default: all of them
    out           contiguous, bfloat16 or float16; default new, bfloat16

    Returns out: `[T, d]`, or `[num_blocks, page_size, d]` without slot_mapping.
    """
    op = "dequantize_sparse_kv"
    layout = layout_of(session, op, "format", format)
    cache = packed_rows(op, "kv_cache", checks.pages_of(op, "kv_cache", kv_cache), layout)
    slot_dtype = "none"
    shape: tuple[int, ...] = (*cache.shape[:2], layout.head_dim)
    if slot_mapping is not None:
        slot_dtype = _slot_mapping(op, slot_mapping, cache)
        shape = (slot_mapping.shape[0], layout.head_dim)
    if out is None:
        out = torch.empty(shape, dtype=torch.bfloat16, device=cache.device)
    check_tensor(op, "out", out)
    out_dtype = check_dtype(op, "out", out, checks.OUT_DTYPES)
    if out.shape != shape or not out.is_contiguous():
        bad_value(op, "out", f"contiguous, of shape {list(shape)}", shape_text(out))
    checks.check_device(op, "out", out, cache.device)
    problem = DequantizeSparseKvProblem(
        out_dtype,
        format,
        cache.shape[1],
        slot_dtype,
        checks.is_aligned(cache, out),
        session.pdl,
    )
    run = session.launcher(problem)
    if out.numel():
        run(cache, slot_mapping, format, out.view(-1, layout.head_dim))
    return out


@public
def logical_to_physical_indices(
    session: Session,
    indices: torch.Tensor,
    block_table: torch.Tensor,
    page_size: int,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Positions in a sequence to slots of the cache: `table[b, i // page] * page + i % page`.

    indices      `[B, k]` or `[B, q_len, k]` int32; block_table `[B, n]` int32; last strides 1
    out          int32 of the shape of `indices`; default new

    An entry that is negative or past the table becomes -1, as does one whose page is negative or
    whose slot does not fit int32: -1 stays -1, and garbage never becomes another token's slot.

    Returns out.
    """
    op = "logical_to_physical_indices"
    check_tensor(op, "indices", indices)
    if indices.dim() not in (2, 3):
        bad_value(op, "indices", "of shape [B, k] or [B, q_len, k]", shape_text(indices))
    device = indices.device
    topk = index_lists(op, "indices", indices, indices.shape, device)
    checks.check_int32(op, "block_table", block_table, (indices.shape[0], None), device)
    if page_size < 1:
        bad_value(op, "page_size", "at least 1", page_size)
    if out is None:
        out = torch.empty(indices.shape, dtype=torch.int32, device=device)
    checks.check_int32(op, "out", out, indices.shape, device)
    run = session.launcher(LogicalToPhysicalIndicesProblem(page_size, topk))
    if out.numel():
        run(indices, block_table, page_size, out)
    return out


def _parts(
    op: str, k_nope: torch.Tensor, k_rope: torch.Tensor | None, layout: PackedKV
) -> tuple[str, torch.Tensor, torch.Tensor | None]:
    """Check latents and rope keys; returns their dtype and both as `[T, width]`."""
    dtype = _rows(op, "k_nope", k_nope, layout.nope_dim)
    if (k_rope is None) != (layout.rope_dim == 0):
        found = "None" if k_rope is None else shape_text(k_rope)
        expected = f"of width {layout.rope_dim}" if layout.rope_dim else "None"
        bad_value(op, "k_rope", f"{expected} for {layout.name}", found)
    nope = k_nope.flatten(0, -2)
    if k_rope is None:
        return dtype, nope, None
    if _rows(op, "k_rope", k_rope, layout.rope_dim) != dtype:
        bad_type(op, "k_rope", f"{dtype} like k_nope", dtype_name(k_rope))
    if k_rope.shape[:-1] != k_nope.shape[:-1]:
        expected = f"of k_nope's leading shape {list(k_nope.shape[:-1])}"
        bad_value(op, "k_rope", expected, shape_text(k_rope))
    checks.check_device(op, "k_rope", k_rope, k_nope.device)
    return dtype, nope, k_rope.flatten(0, -2)


def _rows(op: str, name: str, rows: torch.Tensor, width: int) -> str:
    """Check `[T, width]` or `[num_blocks, page_size, width]`; returns the dtype."""
    check_tensor(op, name, rows)
    dtype = check_dtype(op, name, rows, FLOATS)
    if rows.dim() not in (2, 3) or rows.shape[-1] != width:
        expected = f"of shape [T, {width}] or [num_blocks, page_size, {width}]"
        bad_value(op, name, expected, shape_text(rows))
    check_last_contiguous(op, name, rows)
    return dtype


def _new_cache(
    op: str, k_nope: torch.Tensor, slot_mapping: torch.Tensor | None, layout: PackedKV
) -> torch.Tensor:
    """An unwritten cache with the pages of `k_nope`."""
    if slot_mapping is not None:
        hint = "Without it there is no cache for the slots to lie in."
        bad_value(op, "out", "given with slot_mapping", "None", hint)
    page_size = k_nope.shape[1] if k_nope.dim() == 3 else 1
    stride, row = layout.block_bytes(page_size), layout.row_bytes
    blocks = torch.empty((k_nope.shape[0], stride), dtype=torch.uint8, device=k_nope.device)
    return blocks.as_strided((k_nope.shape[0], page_size, row), (stride, row, 1))


def _slot_mapping(op: str, slot_mapping: torch.Tensor, like: torch.Tensor) -> str:
    """Check slots `[T]`; returns their dtype."""
    check_tensor(op, "slot_mapping", slot_mapping)
    dtype = check_dtype(op, "slot_mapping", slot_mapping, ("int32", "int64"))
    if slot_mapping.dim() != 1:
        bad_value(op, "slot_mapping", "of shape [T]", shape_text(slot_mapping))
    check_last_contiguous(op, "slot_mapping", slot_mapping)
    checks.check_device(op, "slot_mapping", slot_mapping, like.device)
    return dtype


def _validate_distinct(op: str, slot_mapping: torch.Tensor, slots: int) -> None:
    """ARCHKEY_VALIDATE=1: no two tokens go to one slot."""
    kept = slot_mapping[(slot_mapping >= 0) & (slot_mapping < slots)]
    if torch.unique(kept).numel() != kept.numel():
        hint = "Which of two tokens would stay is not defined."
        bad_value(op, "slot_mapping", "free of duplicates", "a slot given twice", hint)

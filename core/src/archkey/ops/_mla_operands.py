# SPDX-License-Identifier: Apache-2.0
"""Checks of MLA's queries, keys and values against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.ops._checks import (
    FP8,
    bad_value,
    check_dtype,
    check_fp8,
    check_last_contiguous,
    check_shape,
    check_tensor,
    dtype_name,
    shape_text,
)
from archkey.ops._mla_checks import (
    HEAD_DIMS,
    OUT_DTYPES,
    check_device,
    check_int32,
    validate_cu_seqlens,
    validate_pages,
    validate_range,
)

if TYPE_CHECKING:
    import torch

    from archkey.session import Session

PAGE_SIZES = (1, 16, 32, 64, 128)
PREFILL_DIMS = ((192, 128), (256, 256), (128, 128))


def decode_operands(
    session: Session,
    op: str,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    max_seqlen_q: int | None,
) -> tuple[str, str, int]:
    """Check queries, pages and lengths; returns q's and the cache's dtype and the longest query."""
    check_tensor(op, "q", q)
    dtype, kv_dtype = dtype_name(q), dtype_name(kv_cache)
    if dtype != kv_dtype or dtype not in OUT_DTYPES:
        _check_fp8_pair(session, op, q, kv_cache)
    shape, device = q.shape, q.device
    dims = 4 if cu_seqlens_q is None else 3
    if len(shape) != dims or shape[-2] == 0 or shape[-1] not in HEAD_DIMS:
        form = "[B, q_len, H, d]" if dims == 4 else "[T, H, d] with cu_seqlens_q"
        bad_value(op, "q", f"of shape {form}, H > 0, d one of {HEAD_DIMS}", shape_text(q))
    check_last_contiguous(op, "q", q)
    _, page_size, head_dim = kv_cache.shape
    if head_dim != shape[-1]:
        bad_value(op, "kv_cache", f"of rows as wide as q's {shape[-1]}", shape_text(kv_cache))
    if page_size not in PAGE_SIZES:
        bad_value(op, "kv_cache", f"of a page size among {PAGE_SIZES}", page_size)
    check_device(op, "kv_cache", kv_cache, device)
    if cu_seqlens_q is None:
        batch, longest = shape[0], shape[1]
        if max_seqlen_q is not None and max_seqlen_q < longest:
            bad_value(op, "max_seqlen_q", f"at least q_len, {longest}", max_seqlen_q)
    else:
        check_int32(op, "cu_seqlens_q", cu_seqlens_q, (None,), device)
        batch = cu_seqlens_q.shape[0] - 1
        longest = shape[0] if max_seqlen_q is None else max_seqlen_q
        if batch < 0:
            bad_value(op, "cu_seqlens_q", "of shape [B + 1]", "[0]")
    check_int32(op, "cache_seqlens", cache_seqlens, (batch,), device)
    check_int32(op, "block_table", block_table, (batch, None), device)
    return dtype, kv_dtype, longest


def _check_fp8_pair(session: Session, op: str, q: torch.Tensor, kv_cache: torch.Tensor) -> None:
    """The cache has q's dtype or is FP8; FP8 queries want an FP8 cache; both of this device."""
    dtype = check_dtype(op, "q", q, OUT_DTYPES + FP8)
    check_fp8(op, "q", dtype, session.fp8)
    allowed = (dtype,) if dtype in FP8 else (dtype, *FP8)
    check_fp8(op, "kv_cache", check_dtype(op, "kv_cache", kv_cache, allowed), session.fp8)


def prefill_operands(
    session: Session, op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> str:
    """Check q, k and v against each other; returns their dtype."""
    check_tensor(op, "q", q)
    dtype = check_dtype(op, "q", q, OUT_DTYPES + FP8)
    check_fp8(op, "q", dtype, session.fp8)
    device = q.device
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, tensor)
        check_dtype(op, name, tensor, (dtype,))
        if tensor.dim() != 3:
            bad_value(op, name, "of shape [T, H, d]", shape_text(tensor))
        check_last_contiguous(op, name, tensor)
        check_device(op, name, tensor, device)
    _, heads, head_dim = q.shape
    keys, kv_heads, head_dim_v = v.shape
    if (head_dim, head_dim_v) not in PREFILL_DIMS:
        widths = ", ".join(map(str, PREFILL_DIMS))
        bad_value(op, "widths of q and v", f"one of {widths}", f"({head_dim}, {head_dim_v})")
    check_shape(op, "k", k, (keys, kv_heads, head_dim))
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        bad_value(op, "q", f"of a multiple of k's {kv_heads} heads", f"{heads} heads")
    return dtype


def validate_decode(
    op: str,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    longest: int,
    max_seqlen_k: int,
    window_left: int,
) -> None:
    """Check the values of lengths and of the pages in use."""
    num_blocks, page_size, _ = kv_cache.shape
    if cu_seqlens_q is not None:
        validate_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0], longest)
    room = min(max_seqlen_k, block_table.shape[1] * page_size)
    validate_range(op, "cache_seqlens", cache_seqlens, 0, room)
    # A window comes with one query token, which stands at cache_seqlens - 1.
    first = cache_seqlens - 1 - window_left if window_left >= 0 else cache_seqlens - cache_seqlens
    validate_pages(op, block_table, first.clamp_min(0), cache_seqlens, num_blocks, page_size)

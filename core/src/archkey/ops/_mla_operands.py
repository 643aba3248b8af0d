# SPDX-License-Identifier: Apache-2.0
"""Checks of MLA's calls: from their metadata to their Problems."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import (
    FLOATS,
    FP8,
    bad_value,
    check_apart,
    check_dtype,
    check_fp8,
    check_last_contiguous,
    check_shape,
    check_tensor,
    shape_text,
    unsupported,
)
from archkey.ops._mla_contract import (
    MergeAttnStatesProblem,
    MlaDecodeProblem,
    MlaPrefillProblem,
)

if TYPE_CHECKING:
    import torch

    from archkey.session import Session

PAGE_SIZES = (1, 16, 32, 64, 128)
MOST_SPLITS = 1024
PREFILL_DIMS = ((192, 128), (256, 256), (128, 128))


def decode_problem(
    session: Session,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    max_seqlen_q: int | None,
    descales: tuple[Any, Any],
    head_dim_v: int,
    causal: bool,
    window: bool,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    return_lse: bool,
    pdl: bool,
    num_splits: int,
    batch_invariant: bool,
) -> tuple[MlaDecodeProblem, int, int]:
    """Check the metadata of `mla_decode`; outputs may be left to be allocated.

    Returns its key, the longest query, and the number of keys that the block table has room for.
    """
    op = "mla_decode"
    cache = checks.check_pages(op, "kv_cache", kv_cache)
    dtype, kv_dtype = _decode_dtypes(session, op, q, cache)
    _check_decode_shapes(op, q, cache, cu_seqlens_q, head_dim_v)
    longest = _check_lengths(op, q, block_table, cache_seqlens, cu_seqlens_q, max_seqlen_q)
    if window and longest > 1:
        hint = "Decode one token at a time, or attend without a window."
        unsupported(op, "q_len with window_left >= 0", "1", longest, hint)
    if not 0 <= num_splits <= (1 if batch_invariant else MOST_SPLITS):
        expected = "0 or 1 with batch_invariant" if batch_invariant else f"from 0 to {MOST_SPLITS}"
        bad_value(op, "num_splits", expected, num_splits)
    *lead, heads, head_dim = q.shape
    device = q.device
    out_dtype = checks.out_dtype_of(op, out, (*lead, heads, head_dim_v), dtype, device)
    checks.check_out_stat(op, "lse", lse, (math.prod(lead), heads), device)
    any_q_len = batch_invariant and not window
    problem = MlaDecodeProblem(
        dtype,
        kv_dtype,
        out_dtype,
        heads,
        head_dim,
        head_dim_v,
        cache.shape[1],
        0 if any_q_len else 1 << (longest - 1).bit_length() if longest else 1,
        cu_seqlens_q is not None,
        causal and (any_q_len or longest > 1),
        window,
        checks.descale_of(op, "q_descale", descales[0], device),
        checks.descale_of(op, "kv_descale", descales[1], device),
        return_lse or lse is not None,
        checks.is_aligned(2 * head_dim_v, q, cache, out),
        pdl,
        batch_invariant,
    )
    return problem, longest, block_table.shape[1] * problem.page_size


def _decode_dtypes(
    session: Session, op: str, q: torch.Tensor, cache: torch.Tensor
) -> tuple[str, str]:
    """The cache has q's dtype or is FP8; FP8 queries want an FP8 cache; both of this device."""
    check_tensor(op, "q", q)
    dtype = check_dtype(op, "q", q, checks.OUT_DTYPES + FP8)
    check_fp8(op, "q", dtype, session.fp8)
    allowed = (dtype,) if dtype in FP8 else (dtype, *FP8)
    kv_dtype = check_dtype(op, "kv_cache", cache, allowed)
    check_fp8(op, "kv_cache", kv_dtype, session.fp8)
    return dtype, kv_dtype


def _check_decode_shapes(
    op: str,
    q: torch.Tensor,
    cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    head_dim_v: int,
) -> None:
    """Check the queries `[..., H, d]` and the pages `[num_blocks, page_size, d]`."""
    shape, dims = q.shape, 4 if cu_seqlens_q is None else 3
    if len(shape) != dims or shape[-2] == 0 or shape[-1] not in checks.HEAD_DIMS:
        form = "[B, q_len, H, d]" if dims == 4 else "[T, H, d] with cu_seqlens_q"
        expected = f"of shape {form}, H > 0, d one of {checks.HEAD_DIMS}"
        bad_value(op, "q", expected, shape_text(q))
    check_last_contiguous(op, "q", q)
    _, page_size, head_dim = cache.shape
    if head_dim != shape[-1]:
        bad_value(op, "kv_cache", f"of rows as wide as q's {shape[-1]}", shape_text(cache))
    if page_size not in PAGE_SIZES:
        bad_value(op, "kv_cache", f"of a page size among {PAGE_SIZES}", page_size)
    checks.check_device(op, "kv_cache", cache, q.device)
    checks.check_head_dim_v(op, head_dim_v, head_dim)


def _check_lengths(
    op: str,
    q: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    max_seqlen_q: int | None,
) -> int:
    """Check the index tensors against the queries; returns the longest query."""
    batch, least = q.shape[0], q.shape[1]
    if cu_seqlens_q is not None:
        checks.check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, (None,), q.device)
        batch, least = cu_seqlens_q.shape[0] - 1, 0
    if max_seqlen_q is not None and max_seqlen_q < least:
        bad_value(op, "max_seqlen_q", f"at least {least}", max_seqlen_q)
    checks.check_int32(op, "cache_seqlens", cache_seqlens, (batch,), q.device)
    checks.check_int32(op, "block_table", block_table, (batch, None), q.device)
    if cu_seqlens_q is None:
        return q.shape[1]
    return q.shape[0] if max_seqlen_q is None else max_seqlen_q


def prefill_problem(
    session: Session,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    causal: bool,
    descales: tuple[Any, Any, Any],
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    return_lse: bool,
    pdl: bool,
    batch_invariant: bool,
) -> MlaPrefillProblem:
    """Check the metadata of `mla_prefill` and make its key; outputs may be left to be allocated."""
    op = "mla_prefill"
    dtype = _check_qkv(session, op, q, k, v)
    device = q.device
    checks.check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, (None,), device)
    checks.check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q.shape, device)
    tokens, heads, head_dim = q.shape
    _, kv_heads, head_dim_v = v.shape
    out_dtype = checks.out_dtype_of(op, out, (tokens, heads, head_dim_v), dtype, device)
    checks.check_out_stat(op, "lse", lse, (tokens, heads), device)
    return MlaPrefillProblem(
        dtype,
        out_dtype,
        heads,
        kv_heads,
        head_dim,
        head_dim_v,
        causal,
        checks.descale_of(op, "q_descale", descales[0], device),
        checks.descale_of(op, "k_descale", descales[1], device),
        checks.descale_of(op, "v_descale", descales[2], device),
        return_lse or lse is not None,
        checks.is_aligned(2 * head_dim_v, q, k, v, out),
        pdl,
        batch_invariant,
    )


def _check_qkv(session: Session, op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """Check q, k and v against each other; returns their dtype."""
    check_tensor(op, "q", q)
    dtype = check_dtype(op, "q", q, checks.OUT_DTYPES + FP8)
    check_fp8(op, "q", dtype, session.fp8)
    device = q.device
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, tensor)
        check_dtype(op, name, tensor, (dtype,))
        if tensor.dim() != 3:
            bad_value(op, name, "of shape [T, H, d]", shape_text(tensor))
        check_last_contiguous(op, name, tensor)
        checks.check_device(op, name, tensor, device)
    _, heads, head_dim = q.shape
    keys, kv_heads, head_dim_v = v.shape
    if (head_dim, head_dim_v) not in PREFILL_DIMS:
        widths = ", ".join(map(str, PREFILL_DIMS))
        bad_value(op, "widths of q and v", f"one of {widths}", f"({head_dim}, {head_dim_v})")
    check_shape(op, "k", k, (keys, kv_heads, head_dim))
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        bad_value(op, "q", f"of a multiple of k's {kv_heads} heads", f"{heads} heads")
    return dtype


def merge_problem(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    pdl: bool,
) -> MergeAttnStatesProblem:
    """Check the metadata of `merge_attn_states` and make its key."""
    op = "merge_attn_states"
    check_tensor(op, "out_a", out_a)
    dtype = out_dtype = check_dtype(op, "out_a", out_a, FLOATS)
    check_shape(op, "out_a", out_a, (None, None, None))
    tokens, heads, head_dim_v = shape = out_a.shape
    for name, part, dtypes in (
        ("out_a", out_a, FLOATS),
        ("out_b", out_b, (dtype,)),
        ("out", out_a if out is None else out, FLOATS),
    ):
        check_tensor(op, name, part)
        out_dtype = check_dtype(op, name, part, dtypes)
        check_shape(op, name, part, shape)
        check_last_contiguous(op, name, part)
        checks.check_device(op, name, part, out_a.device)
    if out is not None:
        check_apart(op, "out", out)
    for name, part in (("lse_a", lse_a), ("lse_b", lse_b)):
        checks.check_row_stat(op, name, part, (tokens, heads), out_a.device)
    checks.check_out_stat(op, "lse", lse, (tokens, heads), out_a.device)
    row_bytes = head_dim_v * (4 if out_dtype == "float32" else 2)
    aligned = checks.is_aligned(row_bytes, out_a, out_b, out)
    return MergeAttnStatesProblem(dtype, out_dtype, heads, head_dim_v, aligned, pdl)


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
        checks.validate_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0], longest)
    room = min(max_seqlen_k, block_table.shape[1] * page_size)
    checks.validate_range(op, "cache_seqlens", cache_seqlens, 0, room)
    # A window comes with one query token, which stands at cache_seqlens - 1.
    first = cache_seqlens - 1 - window_left if window_left >= 0 else cache_seqlens - cache_seqlens
    checks.validate_pages(op, block_table, first.clamp_min(0), cache_seqlens, num_blocks, page_size)

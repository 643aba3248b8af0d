# SPDX-License-Identifier: Apache-2.0
"""Checks of sparse MLA's calls: from their metadata to their Problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archkey.errors import nearest
from archkey.ops import _mla_checks as checks
from archkey.ops._checks import (
    bad_type,
    bad_value,
    check_dtype,
    check_last_contiguous,
    check_shape,
    check_tensor,
    dtype_name,
    shape_text,
    unsupported,
)
from archkey.ops._sparse_kv import PACKED, PackedKV
from archkey.ops._sparse_mla_contract import SparseMlaDecodeProblem, SparseMlaPrefillProblem

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

_CONVERT = "The same bytes mean other numbers in it: quantise the values anew, do not rename."


def prefill_problem(
    session: Session,
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    head_dim_v: int,
    topk_length: torch.Tensor | None,
    attn_sink: torch.Tensor | None,
    kv_format: str,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    max_logits: torch.Tensor | None,
    return_lse: bool,
    batch_invariant: bool,
) -> SparseMlaPrefillProblem:
    """Check the metadata of `sparse_mla_prefill` and make its key."""
    op = "sparse_mla_prefill"
    dtype = _queries(op, q, 3, "[T, H, d]")
    tokens, heads, head_dim = q.shape
    pool = _pool_rows(session, op, "kv", _check_flat_pool(op, kv), kv_format, q)
    checks.check_head_dim_v(op, head_dim_v, head_dim)
    check_tensor(op, "indices", indices)
    topk = index_lists(op, "indices", flat_lists(indices), (tokens, None), q.device)
    _topk_length(op, "topk_length", topk_length, (tokens,), q.device)
    _attn_sink(op, attn_sink, heads, q.device)
    out_dtype = checks.out_dtype_of(op, out, (tokens, heads, head_dim_v), dtype, q.device)
    for name, stat in (("lse", lse), ("max_logits", max_logits)):
        checks.check_out_stat(op, name, stat, (tokens, heads), q.device)
    return SparseMlaPrefillProblem(
        dtype,
        out_dtype,
        kv_format,
        heads,
        topk,
        head_dim,
        head_dim_v,
        pool.shape[1],
        topk_length is not None,
        attn_sink is not None,
        return_lse or lse is not None,
        return_lse or max_logits is not None,
        checks.is_aligned(2 * head_dim_v, q, _blocks(pool, kv_format), out),
        session.pdl,
        batch_invariant,
    )


def decode_problem(
    session: Session,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    indices: torch.Tensor,
    head_dim_v: int,
    kv_format: str,
    topk_length: torch.Tensor | None,
    attn_sink: torch.Tensor | None,
    extra_kv_cache: torch.Tensor | None,
    extra_indices: torch.Tensor | None,
    extra_topk_length: torch.Tensor | None,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    return_lse: bool,
    batch_invariant: bool,
) -> SparseMlaDecodeProblem:
    """Check the metadata of `sparse_mla_decode` and make its key."""
    op = "sparse_mla_decode"
    dtype = _queries(op, q, 4, "[B, q_len, H, d]")
    batch, q_len, heads, head_dim = q.shape
    tokens, device = batch * q_len, q.device
    cache = checks.check_pages(op, "kv_cache", kv_cache)
    _pool_rows(session, op, "kv_cache", cache, kv_format, q)
    checks.check_head_dim_v(op, head_dim_v, head_dim)
    topk = index_lists(op, "indices", indices, (batch, q_len, None), device)
    _topk_length(op, "topk_length", topk_length, (batch, tokens), device)
    _attn_sink(op, attn_sink, heads, device)
    extra, extra_topk = _extra_pool(
        session, op, q, extra_kv_cache, extra_indices, extra_topk_length, kv_format
    )
    out_dtype = checks.out_dtype_of(op, out, (batch, q_len, heads, head_dim_v), dtype, device)
    checks.check_out_stat(op, "lse", lse, (tokens, heads), device)
    return SparseMlaDecodeProblem(
        dtype,
        out_dtype,
        kv_format,
        heads,
        topk,
        head_dim,
        head_dim_v,
        cache.shape[1],
        topk_length is not None,
        attn_sink is not None,
        extra_topk,
        0 if extra is None else extra.shape[1],
        extra_topk_length is not None,
        return_lse or lse is not None,
        checks.is_aligned(
            2 * head_dim_v, q, _blocks(cache, kv_format), out, _blocks(extra, kv_format)
        ),
        session.pdl,
        batch_invariant,
    )


def flat_pool(kv: torch.Tensor) -> torch.Tensor:
    """A prefill pool as pages: `[S, row]` and `[S, 1, row]` are pages of one key."""
    return kv.unsqueeze(1) if kv.dim() == 2 else checks.pages_of(kv)


def flat_lists(indices: torch.Tensor) -> torch.Tensor:
    """Index lists `[T, k]`; `[T, 1, k]` loses its unit dim."""
    return indices.squeeze(1) if indices.dim() == 3 and indices.shape[1] == 1 else indices


def as_bytes(pool: torch.Tensor) -> torch.Tensor:
    """A pool as a kernel takes it: bfloat16 rows as they are, packed ones as uint8."""
    dtype = pool.dtype
    if dtype is torch.uint8 or dtype is torch.bfloat16:
        return pool
    return pool.view(torch.uint8)


def _queries(op: str, q: torch.Tensor, dims: int, form: str) -> str:
    """Check q on its own; returns its dtype."""
    check_tensor(op, "q", q)
    dtype = check_dtype(op, "q", q, ("bfloat16",))
    if q.dim() != dims or q.shape[-2] == 0 or q.shape[-1] not in checks.HEAD_DIMS:
        expected = f"of shape {form}, H > 0, d one of {checks.HEAD_DIMS}"
        bad_value(op, "q", expected, shape_text(q))
    check_last_contiguous(op, "q", q)
    return dtype


def _check_flat_pool(op: str, kv: torch.Tensor) -> torch.Tensor:
    """Check the form of a prefill pool; returns it as `flat_pool` does."""
    check_tensor(op, "kv", kv)
    if kv.dim() == 3 and kv.shape[1] != 1:
        hint = "Latent keys have one head; a paged pool is [num_blocks, page_size, 1, row]."
        bad_value(op, "kv", "of shape [S, row] or [S, 1, row]", shape_text(kv), hint)
    return checks.check_pages(op, "kv", flat_pool(kv) if kv.dim() == 2 else kv)


def layout_of(session: Session, op: str, name: str, kv_format: str) -> PackedKV:
    """The packed layout called `kv_format`, of this device's FP8 flavour."""
    layout = PACKED.get(kv_format)
    if layout is None:
        known = ", ".join(PACKED)
        bad_value(op, name, f"one of {known}", repr(kv_format), nearest(str(kv_format), PACKED))
    flavour = session.fp8
    if flavour != "any" and layout.code_dtype != f"float8_{flavour}":
        if flavour == "none":
            unsupported(op, name, "a format that this device has", kv_format)
        stem = kv_format.removesuffix("_fnuz")
        twin = f"{stem}_fnuz" if flavour == "e4m3fnuz" else stem
        expected = f"{twin} on this device, whose FP8 is float8_{flavour}"
        bad_type(op, name, expected, f"{kv_format} ({layout.code_dtype})", _CONVERT)
    return layout


def _pool_rows(
    session: Session, op: str, name: str, cache: torch.Tensor, kv_format: str, q: torch.Tensor
) -> torch.Tensor:
    """Check the pages `[num_blocks, page_size, row]` against their format and q; returns them."""
    checks.check_device(op, name, cache, q.device)
    if kv_format == "bf16":
        if cache.dtype != torch.bfloat16:
            hint = f"Name the packed format of these bytes, one of {', '.join(PACKED)}."
            bad_type(op, name, 'bfloat16 with kv_format="bf16"', dtype_name(cache), hint)
        check_last_contiguous(op, name, cache)
        if cache.shape[2] != q.shape[-1]:
            bad_value(op, name, f"of rows as wide as q's {q.shape[-1]}", shape_text(cache))
        return cache
    layout = layout_of(session, op, "kv_format", kv_format)
    if layout.head_dim != q.shape[-1]:
        found = f"{q.shape[-1]} in q"
        bad_value(op, "d", f"{layout.head_dim} for kv_format {kv_format}", found)
    check_packed(op, name, cache, layout)
    return cache


def _blocks(pool: torch.Tensor | None, kv_format: str) -> torch.Tensor | None:
    """What of a pool's strides a call may choose: of packed rows that of its blocks.

    Within a block the format says where each row lies, and it is no stride where scales lie apart.
    """
    if pool is None or kv_format == "bf16" or not pool.numel():
        return pool
    return pool[:, 0]


def check_packed(op: str, name: str, cache: torch.Tensor, layout: PackedKV) -> None:
    """Check a packed cache `[num_blocks, page_size, row_bytes]`."""
    check_dtype(op, name, cache, ("uint8", "int8", layout.code_dtype))
    blocks, page_size, row = cache.shape
    if row != layout.row_bytes:
        expected = f"of {layout.row_bytes} bytes a token for {layout.name}"
        bad_value(op, name, expected, f"{row} in {shape_text(cache)}")
    stride, step, last = cache.stride()
    if cache.numel() and (last != 1 or (page_size > 1 and step != row)):
        expected = f"contiguous within a block: strides [any, {row}, 1]"
        bad_value(op, name, expected, f"strides {list(cache.stride())}")
    if blocks > 1 and (stride % layout.block_multiple or stride < layout.block_bytes(page_size)):
        expected = (
            f"of blocks {layout.block_bytes(page_size)} bytes apart or more, "
            f"a multiple of {layout.block_multiple}"
        )
        hint = "archkey.formats.sparse_kv.empty_cache allocates one so."
        bad_value(op, name, expected, f"{stride} bytes", hint)


def index_lists(
    op: str, name: str, indices: torch.Tensor, shape: Sequence[int | None], device: torch.device
) -> int:
    """Check index lists of `shape` (None: k); returns k."""
    checks.check_int32(op, name, indices, shape, device)
    if indices.shape[-1] == 0:
        hint = "A row without keys has a list of -1."
        bad_value(op, name, "of at least one entry a row", shape_text(indices), hint)
    return indices.shape[-1]


def _topk_length(
    op: str, name: str, length: torch.Tensor | None, sizes: Sequence[int], device: torch.device
) -> None:
    """Check lengths `[n]`, n one of `sizes`, if they are given."""
    if length is None:
        return
    checks.check_int32(op, name, length, (None,), device)
    if length.shape[0] not in sizes:
        expected = " or ".join(f"[{size}]" for size in dict.fromkeys(sizes))
        bad_value(op, name, f"of shape {expected}", shape_text(length))


def _attn_sink(op: str, sink: torch.Tensor | None, heads: int, device: torch.device) -> None:
    """Check the sinks, one a head, if they are given."""
    if sink is None:
        return
    check_tensor(op, "attn_sink", sink)
    check_dtype(op, "attn_sink", sink, ("float32",))
    check_shape(op, "attn_sink", sink, (heads,))
    check_last_contiguous(op, "attn_sink", sink)
    checks.check_device(op, "attn_sink", sink, device)


def _extra_pool(
    session: Session,
    op: str,
    q: torch.Tensor,
    cache: torch.Tensor | None,
    indices: torch.Tensor | None,
    length: torch.Tensor | None,
    kv_format: str,
) -> tuple[torch.Tensor | None, int]:
    """Check the second cache, which is given whole or not at all; returns its pages and its k."""
    if cache is None or indices is None:
        given = {"extra_kv_cache": cache, "extra_indices": indices, "extra_topk_length": length}
        named = [name for name, value in given.items() if value is not None]
        if named:
            expected = "given together or not at all"
            bad_value(op, "extra_kv_cache and extra_indices", expected, f"only {', '.join(named)}")
        return None, 0
    batch, q_len = q.shape[:2]
    cache = checks.check_pages(op, "extra_kv_cache", cache)
    _pool_rows(session, op, "extra_kv_cache", cache, kv_format, q)
    topk = index_lists(op, "extra_indices", indices, (batch, q_len, None), q.device)
    _topk_length(op, "extra_topk_length", length, (batch, batch * q_len), q.device)
    return cache, topk


def validate_lengths(op: str, name: str, length: torch.Tensor | None, topk: int) -> None:
    """ARCHKEY_VALIDATE=1: no row asks for more entries than its list has."""
    if length is not None:
        checks.validate_range(op, name, length, 0, topk)

# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA: each query row attends to the top-k keys that its own index list names.

    s_ij = softmax_scale * q_i . kv[I_ij]
    lse_i = ln sum_j exp(s_ij)
    out_i = sum_j exp(s_ij - lse_i) kv[I_ij, :head_dim_v]

There is no causal mask: causality is in the lists. An entry is ignored if it is negative, not
below the capacity of the cache, or at or past the row's topk_length; one that occurs twice counts
twice. A row without a valid entry has `out = 0`, `lse = max_logits = -inf`. A sink of head h
multiplies the output by `e^lse / (e^lse + e^sink_h)` and leaves lse and max_logits alone.
Nothing but the named keys is read: other slots, slot 0 included, may hold NaN.

How rows get into and out of packed FP8 caches is in `archkey.ops.sparse_kv`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import check_no_grad, check_tensor
from archkey.ops._contract import public
from archkey.ops._sparse_mla_contract import (
    OPERATORS,
    SparseMlaDecodeProblem,
    SparseMlaPrefillProblem,
)
from archkey.ops._sparse_mla_operands import (
    attn_sink_of,
    extra_pool,
    flat_pool,
    index_lists,
    pool_rows,
    queries,
    topk_length_of,
    validate_lengths,
)
from archkey.ops.sparse_kv import (
    dequantize_sparse_kv,
    logical_to_physical_indices,
    quantize_sparse_kv,
)

if TYPE_CHECKING:
    import torch

    from archkey.launch import Plan
    from archkey.session import Session

__all__ = [
    "OPERATORS",
    "SparseMlaDecodeProblem",
    "SparseMlaPrefillProblem",
    "dequantize_sparse_kv",
    "logical_to_physical_indices",
    "quantize_sparse_kv",
    "sparse_mla_decode",
    "sparse_mla_prefill",
]


@public
def sparse_mla_prefill(
    session: Session,
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    head_dim_v: int = 512,
    topk_length: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    kv_format: str = "bf16",
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    max_logits: torch.Tensor | None = None,
    return_lse: bool = False,
    sm_scale: float | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse attention of many query rows over one pool of keys.

    q              `[T, H, d]` bfloat16, d = 576 or 512, any H; last stride 1, others free
    kv             flat `[S, d]` or `[S, 1, d]`, or paged `[num_blocks, page_size, 1, d]`;
                   bfloat16, or the bytes of a packed format (row_bytes in place of d)
    indices        `[T, k]` or `[T, 1, k]` int32: rows of kv, or slots `block * page_size + offset`
    softmax_scale  required (sm_scale is the same)
    topk_length    `[T]` int32; attn_sink `[H]` float32, +-inf allowed
    kv_format      "bf16", "fp8_v32", "fp8_v32_nope", "fp8_model1", or with "_fnuz" on gfx942
    out            `[T, H, head_dim_v]`, bfloat16 or float16; default new, bfloat16
    lse, max_logits  float32 `[T, H]`, any strides; written if given or return_lse

    Returns out, or (out, max_logits, lse) with return_lse.
    """
    op = "sparse_mla_prefill"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    dtype = queries(op, q, 3, "[T, H, d]")
    device = q.device
    tokens, heads, head_dim = q.shape
    kv = pool_rows(session, op, "kv", flat_pool(op, kv), kv_format, q)
    checks.check_head_dim_v(op, head_dim_v, head_dim)
    check_tensor(op, "indices", indices)
    if indices.dim() == 3 and indices.shape[1] == 1:
        indices = indices.squeeze(1)
    topk = index_lists(op, "indices", indices, (tokens, None), device)
    if topk_length is not None:
        topk_length_of(op, "topk_length", topk_length, (tokens,), device)
    if attn_sink is not None:
        attn_sink_of(op, attn_sink, heads, device)
    out, out_dtype = checks.out_of(op, out, (tokens, heads, head_dim_v), dtype, device)
    lse = checks.row_stat_of(op, "lse", lse, return_lse, (tokens, heads), device)
    max_logits = checks.row_stat_of(
        op, "max_logits", max_logits, return_lse, (tokens, heads), device
    )
    check_no_grad(op, q, kv)
    if session.validate:
        validate_lengths(op, "topk_length", topk_length, topk)
    problem = SparseMlaPrefillProblem(
        dtype,
        out_dtype,
        kv_format,
        heads,
        topk,
        head_dim,
        head_dim_v,
        kv.shape[1],
        topk_length is not None,
        attn_sink is not None,
        lse is not None,
        max_logits is not None,
        checks.is_aligned(q, kv, out),
        session.pdl,
    )
    run = session.launcher(problem)
    if out.numel():
        run(
            q, kv, indices, topk_length, attn_sink, scale, head_dim_v, kv_format,
            out, max_logits, lse,
        )  # fmt: skip
    return (out, max_logits, lse) if return_lse else out  # type: ignore[return-value]


@public
def sparse_mla_decode(
    session: Session,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    indices: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    head_dim_v: int = 512,
    kv_format: str,
    topk_length: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_kv_cache: torch.Tensor | None = None,
    extra_indices: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    return_lse: bool = False,
    plan: Plan | None = None,
    sm_scale: float | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Sparse attention of a few query tokens a sequence; one softmax over one cache or two.

    q              `[B, q_len, H, d]` bfloat16, d = 576 or 512, any H; last stride 1, others free
    kv_cache       `[num_blocks, page_size, d]`, or 4-D with a unit dim at 1 or 2; bfloat16, or the
                   bytes of a packed format; any page size; blocks may lie apart
    indices        `[B, q_len, k]` int32: physical slots `block * page_size + offset`
    softmax_scale  required (sm_scale is the same)
    kv_format      as for `sparse_mla_prefill`; both caches have it
    topk_length    int32 `[B]`, or `[B * q_len]` one per query row; attn_sink `[H]` float32
    extra_*        a second cache with lists `[B, q_len, k2]` of its own (DeepSeek-V4), cache and
                   lists together; its length is optional
    out            `[B, q_len, H, head_dim_v]`, bfloat16 or float16; default new, bfloat16
    lse            float32 `[B * q_len, H]`, any strides; written if given or return_lse
    plan           a plan of `session.plan` for this very problem

    Returns out, or (out, lse) with return_lse.
    """
    op = "sparse_mla_decode"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    dtype = queries(op, q, 4, "[B, q_len, H, d]")
    device = q.device
    batch, q_len, heads, head_dim = q.shape
    tokens = batch * q_len
    cache = checks.pages_of(op, "kv_cache", kv_cache)
    cache = pool_rows(session, op, "kv_cache", cache, kv_format, q)
    checks.check_head_dim_v(op, head_dim_v, head_dim)
    topk = index_lists(op, "indices", indices, (batch, q_len, None), device)
    if topk_length is not None:
        topk_length_of(op, "topk_length", topk_length, (batch, tokens), device)
    if attn_sink is not None:
        attn_sink_of(op, attn_sink, heads, device)
    extra, extra_topk = extra_pool(
        session, op, q, extra_kv_cache, extra_indices, extra_topk_length, kv_format
    )
    out, out_dtype = checks.out_of(op, out, (batch, q_len, heads, head_dim_v), dtype, device)
    lse = checks.row_stat_of(op, "lse", lse, return_lse, (tokens, heads), device)
    check_no_grad(op, q, cache, extra)
    if session.validate:
        validate_lengths(op, "topk_length", topk_length, topk)
        validate_lengths(op, "extra_topk_length", extra_topk_length, extra_topk)
    problem = SparseMlaDecodeProblem(
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
        extra.shape[1] if extra is not None else 0,
        extra_topk_length is not None,
        lse is not None,
        checks.is_aligned(q, cache, out, *((extra,) if extra is not None else ())),
        session.pdl,
    )
    run = checks.runner(session, op, problem, plan)
    if out.numel():
        run(
            q, cache, indices, topk_length, attn_sink, extra, extra_indices, extra_topk_length,
            scale, head_dim_v, kv_format, out, lse,
        )  # fmt: skip
    return (out, lse) if return_lse else out  # type: ignore[return-value]

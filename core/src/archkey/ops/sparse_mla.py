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
from archkey.ops._checks import bad_value, check_no_grad
from archkey.ops._contract import public
from archkey.ops._memo import metadata, remember
from archkey.ops._operand import layouts
from archkey.ops._sparse_mla_contract import (
    OPERATORS,
    SparseMlaDecodeProblem,
    SparseMlaPrefillProblem,
)
from archkey.ops._sparse_mla_operands import (
    as_bytes,
    decode_problem,
    flat_lists,
    flat_pool,
    prefill_problem,
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
else:
    from archkey._torch import torch

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
    batch_invariant: bool = False,
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
    batch_invariant  a row's result is the same to the bit whatever other rows are in the call; its
                   list is not split then

    Returns out, or (out, max_logits, lse) with return_lse.
    """
    op = "sparse_mla_prefill"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    key = (
        op,
        metadata(q, kv, out),
        layouts(indices, topk_length, attn_sink, lse, max_logits),
        head_dim_v,
        kv_format,
        return_lse,
        batch_invariant,
    )
    problem = session.problems.get(key)
    if problem is None:
        problem = prefill_problem(
            session, q, kv, indices, head_dim_v, topk_length, attn_sink, kv_format,
            out, lse, max_logits, return_lse, batch_invariant,
        )  # fmt: skip
        remember(session.problems, key, problem)
    if lse is not None and lse is max_logits:
        bad_value(op, "max_logits", "another tensor than lse", "one for both")
    if torch.is_grad_enabled():
        check_no_grad(op, q, kv)
    if session.validate:
        validate_lengths(op, "topk_length", topk_length, problem.topk)
    run = session.launcher(problem)
    if out is None:
        out = checks.new_out(problem, q)
    if lse is None and return_lse:
        lse = checks.new_row_stat(q)
    if max_logits is None and return_lse:
        max_logits = checks.new_row_stat(q)
    if out.numel():
        run(
            q, as_bytes(flat_pool(kv)), flat_lists(indices), topk_length, attn_sink, scale,
            head_dim_v, kv_format, batch_invariant, out, max_logits, lse,
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
    batch_invariant: bool = False,
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
    batch_invariant  a row's result is the same to the bit whatever other rows are in the call; its
                   lists are not split then

    Returns out, or (out, lse) with return_lse.
    """
    op = "sparse_mla_decode"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    key = (
        op,
        metadata(q, kv_cache, extra_kv_cache, out),
        layouts(indices, topk_length, attn_sink, extra_indices, extra_topk_length, lse),
        head_dim_v,
        kv_format,
        return_lse,
        batch_invariant,
    )
    problem = session.problems.get(key)
    if problem is None:
        problem = decode_problem(
            session, q, kv_cache, indices, head_dim_v, kv_format, topk_length, attn_sink,
            extra_kv_cache, extra_indices, extra_topk_length, out, lse, return_lse,
            batch_invariant,
        )  # fmt: skip
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, q, kv_cache, extra_kv_cache)
    if session.validate:
        validate_lengths(op, "topk_length", topk_length, problem.topk)
        validate_lengths(op, "extra_topk_length", extra_topk_length, problem.extra_topk)
    run = session.launcher(problem) if plan is None else checks.planned(op, plan, problem)
    cache = as_bytes(checks.pages_of(kv_cache))
    extra = None if extra_kv_cache is None else as_bytes(checks.pages_of(extra_kv_cache))
    if out is None:
        out = checks.new_out(problem, q)
    if lse is None and return_lse:
        lse = checks.new_row_stat(q)
    if out.numel():
        run(
            q, cache, indices, topk_length, attn_sink, extra, extra_indices, extra_topk_length,
            scale, head_dim_v, kv_format, batch_invariant, out, lse,
        )  # fmt: skip
    return (out, lse) if return_lse else out  # type: ignore[return-value]

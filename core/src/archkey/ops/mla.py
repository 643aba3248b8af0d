# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention: absorbed decode, un-absorbed prefill, and the merge of two parts.

    s_ij = softmax_scale * q_i . k_j
    lse_i = ln sum_j exp(s_ij)
    out_i = sum_j exp(s_ij - lse_i) v_j

The logarithm is natural. A causal mask is aligned bottom-right: of n queries over L keys, query i
sees key j if `j <= i + L - n`. A row that sees no key has `out = 0`, `lse = -inf`. Every row of
the outputs is written, and nothing but the keys in use is read: the rest of a page, other pages
and the tail of a block table may hold anything, NaN and indices out of range included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.ops import _mla_checks as checks
from archkey.ops._checks import check_no_grad
from archkey.ops._contract import public
from archkey.ops._memo import metadata, remember
from archkey.ops._mla_contract import (
    OPERATORS,
    MergeAttnStatesProblem,
    MlaDecodeProblem,
    MlaPrefillProblem,
)
from archkey.ops._mla_operands import (
    decode_problem,
    merge_problem,
    prefill_problem,
    validate_decode,
)
from archkey.ops._operand import layouts

if TYPE_CHECKING:
    import torch

    from archkey.launch import Plan
    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = [
    "OPERATORS",
    "MergeAttnStatesProblem",
    "MlaDecodeProblem",
    "MlaPrefillProblem",
    "merge_attn_states",
    "mla_decode",
    "mla_prefill",
]


@public
def mla_decode(
    session: Session,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    head_dim_v: int = 512,
    causal: bool = True,
    cu_seqlens_q: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    q_descale: float | torch.Tensor | None = None,
    kv_descale: float | torch.Tensor | None = None,
    window_left: int = -1,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    return_lse: bool = False,
    plan: Plan | None = None,
    enable_pdl: bool | None = None,
    sm_scale: float | None = None,
    num_splits: int = 0,
    batch_invariant: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of a few query tokens a sequence over its latent cache; V is the head of K's row.

    q              `[B, q_len, H, d]`, or `[T, H, d]` with cu_seqlens_q `[B + 1]` int32; d is
                   512 + 64 or 512; bfloat16, float16 or FP8; last stride 1, others free
    kv_cache       `[num_blocks, page_size, d]`, or 4-D with a unit dim at 1 or 2; q's dtype or FP8;
                   page_size 1, 16, 32, 64 or 128; last stride 1, others free
    block_table    `[B, n]` int32; cache_seqlens `[B]` int32, the query tokens included
    softmax_scale  required (sm_scale is the same): `(nope + rope) ** -0.5` of the model
    max_seqlen_q   longest query, default all tokens; max_seqlen_k  longest cache, default the table
    *_descale      `real = stored * descale`: a number, or one float32 element that a captured
                   graph reads anew at each replay
    window_left    keys before `position - window_left` are masked; negative: none is
    out            `[..., H, head_dim_v]`, bfloat16 or float16; default q's dtype, bfloat16 for FP8
    lse            float32 `[T, H]`, any strides; written if given or return_lse
    plan           a plan of `session.plan` for this very problem
    num_splits     parts that each sequence's keys are cut into, summed in order by a second
                   launch; 0: as many as fill the device, from shapes and max_seqlen_k alone
    batch_invariant  a query's result is the same to the bit whatever else is in the batch, and
                   however many queries of its sequence come together; keys are not split then

    Returns out, or (out, lse) with return_lse; rows of q past the last sequence are empty rows.
    Raises ArgumentValueError or ArgumentTypeError before anything is written; Unsupported for a
    window over several query tokens, which engines mask as a block rather than by the row.
    """
    op = "mla_decode"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    window = window_left >= 0
    key = (
        op,
        metadata(q, kv_cache, out),
        layouts(block_table, cache_seqlens, cu_seqlens_q, lse, q_descale, kv_descale),
        head_dim_v,
        causal,
        max_seqlen_q,
        window,
        return_lse,
        enable_pdl,
        num_splits,
        batch_invariant,
    )
    known = session.problems.get(key)
    if known is None:
        pdl = enable_pdl is not False and session.pdl
        known = decode_problem(
            session, q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, max_seqlen_q,
            (q_descale, kv_descale), head_dim_v, causal, window, out, lse, return_lse, pdl,
            num_splits, batch_invariant,
        )  # fmt: skip
        remember(session.problems, key, known)
    problem, longest, room = known
    if torch.is_grad_enabled():
        check_no_grad(op, q, kv_cache)
    kv_cache = checks.pages_of(kv_cache)
    if max_seqlen_k is None:
        max_seqlen_k = room
    if session.validate:
        validate_decode(
            op, q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, longest, max_seqlen_k,
            window_left,
        )  # fmt: skip
    run = session.launcher(problem) if plan is None else checks.planned(op, plan, problem)
    if out is None:
        out = checks.new_out(problem, q)
    if lse is None and return_lse:
        lse = checks.new_row_stat(q)
    if out.numel():
        run(
            q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, longest, max_seqlen_k,
            q_descale, kv_descale, scale, head_dim_v, causal, window_left, num_splits,
            batch_invariant, out, lse,
        )  # fmt: skip
    return (out, lse) if return_lse else out  # type: ignore[return-value]


@public
def mla_prefill(
    session: Session,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    q_descale: float | torch.Tensor | None = None,
    k_descale: float | torch.Tensor | None = None,
    v_descale: float | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    return_lse: bool = False,
    enable_pdl: bool | None = None,
    sm_scale: float | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Ragged attention of new tokens over their keys, or over a chunk of a cached prefix.

    q              `[Tq, H, dqk]`, k `[Tk, Hk, dqk]`, v `[Tk, Hk, dv]`, (dqk, dv) one of (192, 128),
                   (256, 256), (128, 128), H a multiple of Hk; one dtype: bfloat16, float16 or
                   FP8; last stride 1, others free: k and v may be views of one projection
    cu_seqlens_*   `[B + 1]` int32, may repeat: a sequence without queries or without keys
    max_seqlen_*   the longest sequence of each
    softmax_scale  required (sm_scale is the same): `dqk ** -0.5` of the model, times mscale**2
    *_descale      `real = stored * descale`: a number or one float32 element
    out            `[Tq, H, dv]`, bfloat16 or float16; default q's dtype, bfloat16 for FP8
    lse            float32 `[Tq, H]`, any strides; written if given or return_lse
    batch_invariant  a query's result is the same to the bit whatever else is in the batch, and
                   however many queries of its sequence come together

    Returns out, or (out, lse) with return_lse; two such pairs go into `merge_attn_states`. Rows of
    q past the last sequence are empty rows.
    """
    op = "mla_prefill"
    scale = checks.softmax_scale_of(op, softmax_scale, sm_scale)
    key = (
        op,
        metadata(q, k, v, out),
        layouts(cu_seqlens_q, cu_seqlens_k, lse, q_descale, k_descale, v_descale),
        causal,
        return_lse,
        enable_pdl,
        batch_invariant,
    )
    problem = session.problems.get(key)
    if problem is None:
        pdl = enable_pdl is not False and session.pdl
        problem = prefill_problem(
            session, q, k, v, cu_seqlens_q, cu_seqlens_k, causal,
            (q_descale, k_descale, v_descale), out, lse, return_lse, pdl, batch_invariant,
        )  # fmt: skip
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, q, k, v)
    if session.validate:
        checks.validate_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
        checks.validate_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    run = session.launcher(problem)
    if out is None:
        out = checks.new_out(problem, q)
    if lse is None and return_lse:
        lse = checks.new_row_stat(q)
    if out.numel():
        run(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            q_descale, k_descale, v_descale, scale, causal, batch_invariant, out, lse,
        )  # fmt: skip
    return (out, lse) if return_lse else out  # type: ignore[return-value]


@public
def merge_attn_states(
    session: Session,
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`out = (e^lse_a out_a + e^lse_b out_b) / e^lse`, `lse = ln(e^lse_a + e^lse_b)`.

    out_a, out_b  `[T, H, dv]` of one dtype: bfloat16, float16 or float32; last stride 1
    lse_a, lse_b  float32 `[T, H]`, natural log, any strides; +inf counts as -inf, and the output
                  that belongs to an lse of -inf is not read
    out, lse      default: new, of out_a's dtype; out may be out_a (or out_b), lse their lse

    Returns (out, lse): 0 and -inf where both parts are empty.
    """
    op = "merge_attn_states"
    key = (op, metadata(out_a, out_b, out), layouts(lse_a, lse_b, lse))
    problem = session.problems.get(key)
    if problem is None:
        problem = merge_problem(out_a, lse_a, out_b, lse_b, out, lse, session.pdl)
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(op, out_a, lse_a, out_b, lse_b)
    run = session.launcher(problem)
    if out is None:
        out = torch.empty(out_a.shape, dtype=out_a.dtype, device=out_a.device)
    if lse is None:
        lse = checks.new_row_stat(out_a)
    if out.numel():
        run(out_a, lse_a, out_b, lse_b, out, lse)
    return out, lse

# SPDX-License-Identifier: Apache-2.0
"""Unified attention: ragged queries, decode and prefill mixed, over a paged cache.

For query t of a sequence, at position `p = (kv_len - q_len) + t`, and key j:

    s = softmax_scale * q_descale * k_descale * (q_t . k_j)
    s = softcap * tanh(s / softcap)                         softcap > 0
    s = s + alibi_slope * (j - p) + qq_bias[t, j - (kv_len - q_len)]
    s = -inf                                                unless p - window_left <= j <= p
    lse = ln(sum_j exp(s_j) + exp(sink))                    natural log
    out = v_descale * sum_j exp(s_j - lse) v_j / output_scale

Every row is written. One that sees no key has `out = 0`, and `lse = -inf` or, with sinks, the
sink; so has a row past the last sequence, whose lse is -inf. Nothing but the keys in use is read.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.ops import _attention_checks as check
from archkey.ops import page_table
from archkey.ops._checks import FP8, check_no_grad
from archkey.ops._contract import Operator, public
from archkey.ops._memo import metadata, remember
from archkey.ops._operand import aligned, layouts

if TYPE_CHECKING:
    import torch

    from archkey.launch import Plan
    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "UnifiedAttentionProblem", "unified_attention"]

OP = "unified_attention"
INF = float("inf")


class UnifiedAttentionProblem(NamedTuple):
    """Causal attention of ragged queries over a paged cache.

    queries        "decode": one query a sequence; "verify": at most 16, as speculative decoding
                   has; "prefill": more. It picks tiles; "any" with batch_invariant, which must not
    window, softcap, return_lse   whether the call has them
    alibi, qq_bias, sinks  their dtype, or "none"
    *_descale      "none", "number", "tensor" (one float32 element) or "per_head" (`[B, Hk]`)
    output_scale   "none", "number" or "tensor"
    segments       parts of a split over keys, with the caller's buffers, which have a row for each
                   query; 0: the kernel's choice
    aligned        q, k, v and out: pointers and strides are multiples of 16 bytes
    batch_invariant  a row's bits follow from its own sequence alone
    """

    dtype: str
    kv_dtype: str
    out_dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    page_size: int = 16
    queries: str = "decode"
    window: bool = False
    softcap: bool = False
    alibi: str = "none"
    qq_bias: str = "none"
    sinks: str = "none"
    q_descale: str = "none"
    k_descale: str = "none"
    v_descale: str = "none"
    output_scale: str = "none"
    return_lse: bool = False
    segments: int = 0
    aligned: bool = True
    batch_invariant: bool = False
    operator: str = OP


@public
def unified_attention(
    session: Session,
    /,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: torch.Tensor,
    softcap: float = 0.0,
    q_descale: float | torch.Tensor | None = None,
    k_descale: float | torch.Tensor | None = None,
    v_descale: float | torch.Tensor | None = None,
    *,
    alibi_slopes: torch.Tensor | None = None,
    output_scale: float | torch.Tensor | None = None,
    qq_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    kv_layout: str = "NHD",
    batch_invariant: bool = False,
    plan: Plan | None = None,
    seq_threshold_3D: int | None = None,
    num_par_softmax_segments: int | None = None,
    softmax_segm_output: torch.Tensor | None = None,
    softmax_segm_max: torch.Tensor | None = None,
    softmax_segm_expsum: torch.Tensor | None = None,
    **engine_extras: Any,
) -> torch.Tensor:
    """Causal attention; argument order and names are vLLM's and aiter's.

    q             `[T, H, D]`, D <= 512; bfloat16, float16, float32, or FP8 with q_descale
    k, v          `[blocks, page_size, Hk, D]` and `[.., Dv]`, with kv_layout "HND" Hk before
                  page_size; one dtype, q's or FP8; H % Hk == 0; any page_size, a power of two
                  or not (vLLM gives a hybrid model 528, vllm#37467)
    out           `[T, H, Dv]`; bfloat16, float16, float32, or FP8 with output_scale; written
    cu_seqlens_q  `[B + 1]` int32; may repeat
    max_seqlen_q, max_seqlen_k  bounds; max_seqlen_k may be block_table's width times page_size
    seqused_k     `[B]` int32, the query tokens included; may be 0 or less than the queries
    window_size   `(left, 0)`: `left` earlier keys stay visible, so W keys in all are `(W - 1, 0)`;
                  `(-1, -1)`: no window
    block_table   `[>= B, n]` int32; its row stride is free, its tail may hold anything
    *_descale     number, float32 tensor of one element, or float32 `[B, Hk]`: `code * descale`
    alibi_slopes, sinks  `[H]`; sinks are natural-log logits, already scaled
    qq_bias       `[Q, Q]`, Q >= max_seqlen_q, between the queries of one sequence
    output_scale  number or float32 tensor of one element; `out = real / output_scale`; FP8
                  saturates
    lse           float32 `[T, H]`, any strides; written if given
    batch_invariant  a query's result is the same to the bit whatever else is in the batch, and
                  however its sequence was cut into chunks; nothing is split over keys then, which
                  takes longer where there are few queries
    softmax_segm_*  vLLM's workspace of a split over keys: `[S, H, segments, >= Dv]`, and twice
                  `[S, H, segments]`, float32; left alone by calls of more than S queries, or than
                  seq_threshold_3D; without it a split kernel allocates

    Returns out. Raises before anything is written; an engine's further options raise Unsupported
    unless they are off.
    """
    if engine_extras:
        check.refuse_extras(engine_extras)
    window_left = check.window(causal, window_size)
    scales = q_descale, k_descale, v_descale, output_scale
    vectors = alibi_slopes, qq_bias, sinks, lse
    buffers = softmax_segm_output, softmax_segm_max, softmax_segm_expsum
    sizes = max_seqlen_q, max_seqlen_k, num_par_softmax_segments, seq_threshold_3D
    lengths = cu_seqlens_q, seqused_k, block_table
    facts = layouts(*lengths, *scales, *vectors, *buffers, softmax_scale, softcap)
    numbers = softmax_scale, softcap, window_left >= 0
    modes = kv_layout, batch_invariant
    key = (OP, metadata(q, k, v, out), facts, numbers, sizes, modes)
    problem = session.problems.get(key)
    if problem is None:
        problem = _problem(
            session, (q, k, v, out), lengths, scales, vectors, buffers, numbers, sizes, modes
        )
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(OP, q, k, v)
    if kv_layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    if session.validate:
        check.validate(
            q, k, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, block_table, window_left
        )
    run = session.launcher(problem) if plan is None else check.planned(problem, plan)
    if q.shape[0]:
        run(
            q, k, v, cu_seqlens_q, seqused_k, block_table, max_seqlen_q, max_seqlen_k, q_descale,
            k_descale, v_descale, alibi_slopes, qq_bias, sinks, output_scale, softmax_scale,
            window_left, softcap, torch.finfo(out.dtype).max if problem.out_dtype in FP8 else INF,
            buffers if problem.segments else None, batch_invariant, out, lse,
        )  # fmt: skip
    return out


def _problem(
    session: Session,
    tensors: tuple[Any, Any, Any, Any],
    lengths: tuple[Any, Any, Any],
    scales: tuple[Any, Any, Any, Any],
    vectors: tuple[Any, Any, Any, Any],
    buffers: tuple[Any, Any, Any],
    numbers: tuple[Any, Any, bool],
    sizes: tuple[int, int, int | None, int | None],
    modes: tuple[str, bool],
) -> UnifiedAttentionProblem:
    """Check the metadata of a call and make its key."""
    q, k, v, out = tensors
    alibi_slopes, qq_bias, sinks, lse = vectors
    softmax_scale, softcap, window = numbers
    max_seqlen_q, max_seqlen_k, parts, rows = sizes
    kv_layout, batch_invariant = modes
    k, v, dtype, kv_dtype = check.operands(session, q, k, v, kv_layout, scales[0])
    tokens, heads, head_dim = q.shape
    page_size, kv_heads, head_dim_v = v.shape[1:]
    out_dtype = check.out_dtype(session, out, q, (tokens, heads, head_dim_v), scales[3])
    per_head = check.lengths(q, *lengths, max_seqlen_k, page_size), kv_heads
    segments = check.segments(buffers, parts, rows, q, head_dim_v)
    check.numbers(softmax_scale, softcap)
    return UnifiedAttentionProblem(
        dtype,
        kv_dtype,
        out_dtype,
        heads,
        kv_heads,
        head_dim,
        head_dim_v,
        page_size,
        "any" if batch_invariant else _queries(max_seqlen_q),
        window,
        softcap > 0,
        check.vector("alibi_slopes", alibi_slopes, heads, q),
        check.query_bias(qq_bias, max_seqlen_q, q),
        check.vector("sinks", sinks, heads, q),
        check.factor("q_descale", scales[0], q, per_head),
        check.factor("k_descale", scales[1], q, per_head),
        check.factor("v_descale", scales[2], q, per_head),
        check.factor("output_scale", scales[3], q, None),
        check.lse_of(lse, tokens, heads, q),
        0 if batch_invariant else segments,
        aligned(q, k, v, out),
        batch_invariant,
    )


def _queries(max_seqlen_q: int) -> str:
    return "decode" if max_seqlen_q <= 1 else "verify" if max_seqlen_q <= 16 else "prefill"


def _example(dtype: str, heads: int, kv_heads: int, head_dim: int, **more: Any) -> Any:
    return UnifiedAttentionProblem(
        dtype, more.pop("kv_dtype", dtype), "bfloat16", heads, kv_heads, head_dim, head_dim, **more
    )


OPERATORS = (
    Operator(
        name=OP,
        family="attention",
        problem=UnifiedAttentionProblem,
        inputs=(
            "q", "k", "v", "cu_seqlens_q", "seqused_k", "block_table", "max_seqlen_q",
            "max_seqlen_k", "q_descale", "k_descale", "v_descale", "alibi_slopes", "qq_bias",
            "sinks", "output_scale", "softmax_scale", "window_left", "softcap", "out_limit",
            "segments", "batch_invariant",
        ),
        outputs=("out", "lse"),
        reference="archkey.reference.attention:unified_attention",
        function="archkey.ops.attention:unified_attention",
        cases="archkey.conformance.cases.attention",
        workloads="archkey.bench.workloads.attention",
        examples=MappingProxyType(
            {
                "Qwen3.5 TP4 decode": _example("bfloat16", 8, 1, 256),
                "Qwen3.5 TP4 prefill": _example("bfloat16", 8, 1, 256, queries="prefill"),
                "Qwen3.5 TP4 EAGLE verify": _example("bfloat16", 8, 1, 256, queries="verify"),
                "GPT-OSS decode": _example("bfloat16", 64, 8, 64, window=True, sinks="bfloat16"),
                "GPT-OSS prefill": _example(
                    "bfloat16", 64, 8, 64, window=True, sinks="bfloat16", queries="prefill"
                ),
                "32 heads, ALiBi and softcap, prefill": _example(
                    "bfloat16", 32, 32, 128, page_size=32, queries="prefill",
                    alibi="bfloat16", softcap=True,
                ),
                "GQA 32/4 prefill": _example("bfloat16", 32, 4, 128, queries="prefill"),
                "GQA 32/4 prefill, FP8": _example(
                    "float8_e4m3fn", 32, 4, 128, page_size=64, queries="prefill",
                    q_descale="tensor", k_descale="tensor", v_descale="tensor",
                ),
                "GQA 32/4, batch invariant": _example(
                    "bfloat16", 32, 4, 128, queries="any", batch_invariant=True
                ),
                "GQA 32/4 decode, FP8 cache": _example(
                    "bfloat16", 32, 4, 128, kv_dtype="float8_e4m3fn",
                    k_descale="tensor", v_descale="tensor",
                ),
            }
        ),
    ),
    *page_table.OPERATORS,
)  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Workloads of MLA: decode over a paged latent cache, prefill with expanded keys, merging of parts.

Lengths are those of servers: 1k to 128k tokens in the cache, chunks of 4k to 16k tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import KILO, out_bytes, rate, seen, short, size, spans
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.mla.values import GLM_SCALE

__all__ = ["COSTS", "WORKLOADS"]

_HEADS = {"DeepSeek-V3": 128, "Kimi-K2.5": 64, "Kimi-Linear": 32, "GLM-5": 64}
"""Query heads of the whole model; tensor parallelism divides them."""

# DeepSeek-V3: TP, q_len, then batches and thousands of keys.
_DECODE = (
    (1, 1, ((1, 8), (1, 32), (16, 1), (16, 8), (16, 32), (64, 1), (64, 8), (64, 32))),
    (1, 1, ((128, 1), (128, 8), (128, 32))),
    (1, 2, ((64, 8), (128, 8))),
    (2, 1, ((1, 8), (16, 8), (64, 8), (128, 8), (128, 32))),
    (2, 2, ((64, 8),)),
    (8, 1, ((1, 1), (1, 8), (1, 32), (16, 8), (64, 8), (128, 1), (128, 8), (128, 32))),
    (8, 2, ((128, 8),)),
)
_DECODE_FP8 = (
    (1, 1, ((16, 8), (64, 8), (128, 8), (128, 32))),
    (2, 1, ((128, 8),)),
    (8, 1, ((128, 8),)),
)
_QUICK = {(1, 1, 8), (1, 128, 8), (8, 128, 8)}
"""TP, batch and thousands of keys of decode in bfloat16 with one query."""

_FP8 = {"dtype": "fp8", "q_descale": 3.0, "kv_descale": 0.1, "tensors": "q kv"}

# 1k to 32k, 16.5k on average, in no order.
_UNEVEN = tuple(KILO * (1 + 7 * i % 32) for i in range(64))


def _decode(
    model: str, tp: int, batch: int, keys: int, q_len: int = 1, about: str = "", **more: Any
) -> Workload:
    sizes = f"b{batch} kv{short(keys)}" + (f" q{q_len}" if q_len > 1 else "")
    inputs = Decode(_HEADS[model] // tp, (keys,) * batch, q_len, lse="", **more)
    quick = not more and q_len == 1 and (tp, batch, keys // KILO) in _QUICK
    return Workload("mla_decode", model, tp, sizes, inputs, about, quick)


def _decodes() -> Iterator[Workload]:
    for table, about, more in ((_DECODE, "", {}), (_DECODE_FP8, "fp8 q and cache", _FP8)):
        for tp, q_len, sizes in table:
            for batch, keys in sizes:
                yield _decode("DeepSeek-V3", tp, batch, keys * KILO, q_len, about, **more)
    cache = {"cache": "fp8", "kv_descale": 0.1, "tensors": "kv"}
    yield _decode("DeepSeek-V3", 8, 64, 8 * KILO, 1, "fp8 cache", **cache)
    yield _decode("Kimi-K2.5", 1, 32, 8 * KILO, 4, "verify")
    yield _decode("Kimi-K2.5", 8, 32, 8 * KILO, 1, "page 1", page=1)
    yield _decode("Kimi-Linear", 1, 4, 128 * KILO)
    uneven = Decode(16, _UNEVEN, lse="")
    yield Workload("mla_decode", "DeepSeek-V3", 8, "b64 kv1k-32k", uneven, "uneven")


def _prefills() -> Iterator[Workload]:
    for tp in (1, 8):
        for tokens in (4 * KILO, 8 * KILO, 16 * KILO):
            one = (tokens,)
            inputs = Prefill(_HEADS["DeepSeek-V3"] // tp, one, one, lse="")
            quick = (tp, tokens) in ((1, 4 * KILO), (8, 8 * KILO))
            yield Workload("mla_prefill", "DeepSeek-V3", tp, f"t{short(tokens)}", inputs, "", quick)
    eight = (KILO,) * 8
    one, many, chunk = (4 * KILO,), (32 * KILO,), "prefix chunk, lse"
    for model, tp, sizes, about, inputs in (
        ("DeepSeek-V3", 8, "8 x 1k", "", Prefill(16, eight, eight, lse="")),
        ("DeepSeek-V3", 8, "t4k of kv32k", "", Prefill(16, one, many, lse="")),
        ("DeepSeek-V3", 8, "t4k by kv32k", chunk, Prefill(16, one, many, causal=False)),
        ("Kimi-K2.5", 1, "t8k", "", Prefill(64, (8 * KILO,), (8 * KILO,), lse="")),
        ("GLM-5", 1, "t4k", "256/256", Prefill(64, one, one, (256, 256), scale=GLM_SCALE, lse="")),
    ):
        yield Workload("mla_prefill", model, tp, sizes, inputs, about)


def _merges() -> Iterator[Workload]:
    for model, tp, width in (("DeepSeek-V3", 1, 128), ("DeepSeek-V3", 8, 128), ("GLM-5", 1, 256)):
        for tokens in (64, 4 * KILO, 16 * KILO):
            inputs = Merge(tokens, _HEADS[model] // tp, width)
            quick = (tp, width, tokens) == (1, 128, 4 * KILO)
            about = f"dv {width}"
            yield Workload(
                "merge_attn_states", model, tp, f"t{short(tokens)}", inputs, about, quick
            )


WORKLOADS = (*_decodes(), *_prefills(), *_merges())


def _lse(call: Mapping[str, Any], rows: int, heads: int) -> int:
    """Bytes of the lse, if it is asked for."""
    wanted = call.get("return_lse") or call.get("lse") is not None
    return 4 * rows * heads if wanted else 0


def _decode_cost(call: Mapping[str, Any]) -> Cost:
    """`2 pairs H (d + dv)` operations; every cache row that a query sees once, q, out and lse.

    The latent is key and value at once: its row is read for both. Pairs are of a query and a key
    that it sees: with one query a sequence, as many as there are keys.
    """
    q, cache = call["q"], call["kv_cache"]
    heads, width, value_width = q.shape[-2], q.shape[-1], call.get("head_dim_v", 512)
    keys = call["cache_seqlens"].tolist()
    ragged = call.get("cu_seqlens_q")
    queries = [q.shape[1]] * len(keys) if ragged is None else spans(ragged)
    causal, window = call.get("causal", True), call.get("window_left", -1)
    each = [seen(n, m, causal, window) for n, m in zip(queries, keys, strict=True)]
    rows = sum(queries)
    pairs = sum(s.pairs for s in each)
    read = sum(s.keys for s in each) * width * cache.element_size()
    read += rows * heads * width * q.element_size()
    written = rows * heads * value_width * out_bytes(q, call.get("out"))
    return Cost(
        2 * pairs * heads * (width + value_width),
        read + written + _lse(call, rows, heads),
        rate(q, cache),
    )


def _prefill_cost(call: Mapping[str, Any]) -> Cost:
    """`2 pairs H (d + dv)` operations; q, keys and values that a query sees, out and lse."""
    q, k, v = call["q"], call["k"], call["v"]
    heads, width, value_width = q.shape[1], q.shape[2], v.shape[2]
    queries, keys = spans(call["cu_seqlens_q"]), spans(call["cu_seqlens_k"])
    causal = call.get("causal", True)
    each = [seen(n, m, causal) for n, m in zip(queries, keys, strict=True)]
    rows = sum(queries)
    read = rows * heads * width * q.element_size()
    read += sum(s.keys for s in each) * k.shape[1] * (width + value_width) * k.element_size()
    written = rows * heads * value_width * out_bytes(q, call.get("out"))
    return Cost(
        2 * sum(s.pairs for s in each) * heads * (width + value_width),
        read + written + _lse(call, rows, heads),
        rate(q, k, v),
    )


def _merge_cost(call: Mapping[str, Any]) -> Cost:
    """Both parts and their lse in, one part and its lse out; no product of matrices."""
    parts = (call["out_a"], call["out_b"], call["lse_a"], call["lse_b"])
    out: torch.Tensor | None = call.get("out")
    return Cost(0, size(*parts, parts[0] if out is None else out, parts[2]))


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {
    "mla_decode": _decode_cost,
    "mla_prefill": _prefill_cost,
    "merge_attn_states": _merge_cost,
}

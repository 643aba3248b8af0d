# SPDX-License-Identifier: Apache-2.0
"""Workloads of unified attention with grouped queries, and of the page tables of verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import KILO, rate, seen, short, size, spans
from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.attention.table_inputs import Ragged, Requests

__all__ = ["COSTS", "WORKLOADS"]

# Query heads, KV heads and widths of the whole model.
_MODELS: dict[str, tuple[tuple[int, int], int]] = {
    "Llama-3-70B": ((64, 8), 128),
    "Qwen3.5-397B": ((32, 2), 256),
    "Qwen3-235B": ((64, 4), 128),
    "GPT-OSS-120B": ((64, 8), 64),
}

_LLAMA = "Llama-3-70B"
_WINDOW = {"window": 4 * KILO}
_INVARIANT = {"invariant": True}
"""What it costs that a result does not depend on the batch."""
_SINKS: dict[str, Any] = {"window": 128, "sinks": "bf16"}
_FP8_CACHE: dict[str, Any] = {
    "cache": "fp8",
    "descales": (None, 0.5, 0.25),
    "kinds": ("number", "tensor", "tensor"),
}
# Chunks of 2k new tokens that end at 4k, beside sequences that decode at 8k.
_MIXED = ((2 * KILO, 4 * KILO),) * 4 + ((1, 8 * KILO),) * 124

_QUICK = {"decode b128 kv8k", "prefill 8 x 4k", "mixed 4 x 2k of 4k, 124 x kv8k"}
"""With pages of 16."""


def _call(model: str, tp: int, lengths: tuple[tuple[int, int], ...], **more: Any) -> Attention:
    (heads, kv_heads), width = _MODELS[model]
    shared = heads // tp, max(kv_heads // tp, 1)
    return Attention(lengths, shared, (width, width), lse="", **more)


def _decode(batch: int, keys: int, queries: int = 1) -> tuple[str, tuple[tuple[int, int], ...]]:
    verb = "decode" if queries == 1 else f"verify q{queries}"
    return f"{verb} b{batch} kv{short(keys)}", ((queries, keys),) * batch


def _prefill(count: int, tokens: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    return f"prefill {count} x {short(tokens)}", ((tokens, tokens),) * count


_MIX = "mixed 4 x 2k of 4k, 124 x kv8k", _MIXED
_DECODE_8K, _VERIFY = _decode(128, 8 * KILO), _decode(64, 8 * KILO, 4)

# Model, TP, sizes, page sizes, what else.
_ROWS: tuple[tuple[str, int, Any, tuple[int, ...], str, dict[str, Any]], ...] = (
    (_LLAMA, 1, _DECODE_8K, (16, 64), "", {}),
    (_LLAMA, 1, _decode(16, 8 * KILO), (16,), "", {}),
    (_LLAMA, 1, _decode(1, 32 * KILO), (16,), "", {}),
    (_LLAMA, 1, _decode(128, KILO), (16,), "", {}),
    (_LLAMA, 1, _prefill(8, 4 * KILO), (16, 64), "", {}),
    (_LLAMA, 1, _prefill(1, 16 * KILO), (16,), "", {}),
    (_LLAMA, 1, _MIX, (16, 64), "", {}),
    (_LLAMA, 1, _decode(128, 32 * KILO), (16,), "window 4096", _WINDOW),
    (_LLAMA, 1, _prefill(2, 16 * KILO), (16,), "window 4096", _WINDOW),
    (_LLAMA, 1, _VERIFY, (16, 64), "", {}),
    *(
        (_LLAMA, 1, sizes, (16,), "batch invariant", _INVARIANT)
        for sizes in (_DECODE_8K, _decode(1, 32 * KILO), _VERIFY, _prefill(8, 4 * KILO), _MIX)
    ),
    (_LLAMA, 8, _DECODE_8K, (16,), "", {}),
    ("Qwen3.5-397B", 4, _decode(64, 8 * KILO), (16,), "", {}),
    ("Qwen3.5-397B", 8, _VERIFY, (16,), "", {}),
    ("Qwen3.5-397B", 4, _prefill(1, 8 * KILO), (16,), "", {}),
    ("Qwen3-235B", 2, _decode(64, 8 * KILO), (64,), "fp8 cache", _FP8_CACHE),
    ("GPT-OSS-120B", 1, _decode(64, 8 * KILO), (64,), "window 128, sinks", _SINKS),
    ("GPT-OSS-120B", 1, _prefill(4, 4 * KILO), (64,), "window 128, sinks", _SINKS),
)


def _attentions() -> Iterator[Workload]:
    for model, tp, (sizes, lengths), pages, said, more in _ROWS:
        for page in pages:
            about = f"page {page}" + (f", {said}" if said else "")
            quick = (model, tp, page) == (_LLAMA, 1, 16) and not more and sizes in _QUICK
            inputs = _call(model, tp, lengths, page=page, **more)
            yield Workload("unified_attention", model, tp, sizes, inputs, about, quick)


def _tables() -> Iterator[Workload]:
    """Verification of four tokens a sequence; the second table is that of a window's pool."""
    for batch, keys in ((1, 32 * KILO), (64, 8 * KILO), (256, 32 * KILO)):
        sizes, quick = f"b{batch} kv{short(keys)}", batch == 64
        lens = (keys,) * batch
        for model, page, swa in (("Qwen3.5-397B", 16, False), ("GPT-OSS-120B", 64, True)):
            both = ", window pool" if swa else ""
            about, chosen = f"page {page}{both}", quick and not swa
            lists = Ragged(lens, page, swa, rows=0)
            table = Requests(lens, page, swa, rows=0, lengths="int64", draft=4)
            for operator, inputs in (
                ("ragged_kv_indices_to_page_table", lists),
                ("req_to_token_to_page_table", table),
            ):
                yield Workload(operator, model, 1, sizes, inputs, about, chosen)


WORKLOADS = (*_attentions(), *_tables())


def _attention_cost(call: Mapping[str, Any]) -> Cost:
    """`2 pairs H (D + Dv)` operations; K and V that a query sees once, q, out and lse.

    Pairs are of a query and a key that it sees: causal, inside the window.
    """
    q, k, v, out = call["q"], call["k"], call["v"], call["out"]
    heads, width, value_width = q.shape[1], q.shape[2], v.shape[-1]
    kv_heads = k.shape[1 if call.get("kv_layout") == "HND" else 2]
    queries, keys = spans(call["cu_seqlens_q"]), call["seqused_k"].tolist()
    window = call["window_size"][0]
    each = [seen(n, m, call["causal"], window) for n, m in zip(queries, keys, strict=True)]
    rows = sum(queries) * heads
    moved = sum(s.keys for s in each) * kv_heads * (width + value_width) * k.element_size()
    moved += rows * (width * q.element_size() + value_width * out.element_size())
    if call.get("lse") is not None:
        moved += 4 * rows
    return Cost(2 * sum(s.pairs for s in each) * heads * (width + value_width), moved, rate(q, k))


def _table_cost(call: Mapping[str, Any], lengths: torch.Tensor, slot_bytes: int) -> int:
    """Of each page the first token's slot in, its entry of each table out.

    A window's table takes one entry of `full_to_swa` a page, too. Entries past a sequence's pages
    are written where fill_tail asks for it.
    """
    needed = int((-(-lengths // call["page_size"])).sum())
    table: torch.Tensor = call["page_table"]
    written = len(lengths) * table.shape[1] if call["fill_tail"] else needed
    written *= table.element_size()
    mapped: torch.Tensor | None = call.get("full_to_swa")
    if mapped is None:
        return needed * slot_bytes + written
    return needed * (slot_bytes + mapped.element_size()) + 2 * written


def _ragged_cost(call: Mapping[str, Any]) -> Cost:
    """See `_table_cost`; and the bounds of the list."""
    slots, bounds = call["kv_indices"], call["kv_indptr"]
    return Cost(0, size(bounds) + _table_cost(call, bounds.diff(), slots.element_size()))


def _requests_cost(call: Mapping[str, Any]) -> Cost:
    """See `_table_cost`; and rows and lengths of the sequences."""
    lengths = call["seq_lens"] + call.get("num_draft_tokens", 0)
    slots = call["req_to_token"]
    moved = size(call["req_pool_indices"], call["seq_lens"])
    return Cost(0, moved + _table_cost(call, lengths, slots.element_size()))


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {
    "unified_attention": _attention_cost,
    "ragged_kv_indices_to_page_table": _ragged_cost,
    "req_to_token_to_page_table": _requests_cost,
}

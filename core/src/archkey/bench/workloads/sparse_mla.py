# SPDX-License-Identifier: Apache-2.0
"""Workloads of sparse MLA: attention over 2048 chosen rows of a pool, and what serves its cache.

Lists are uniform over the pool: 524288 tokens in decode, the sequence in prefill. Scales of packed
rows are any float32, no powers of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import KILO, out_bytes, short, size
from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import GLM_SCALE, paged_slots
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.sparse_mla.rows import Dequantize, Quantize
from archkey.formats.sparse_kv import packed

__all__ = ["COSTS", "WORKLOADS", "Positions"]

_HEADS = {"DeepSeek-V3.2": 128, "GLM-5": 64, "DeepSeek-V4": 64}
"""Query heads of the whole model; tensor parallelism divides them."""

_TOP_K = 2048
_PAGES = 8 * KILO  # of 64 tokens: a pool of 524288

# DeepSeek-V3.2: TP, queries a sequence, batches.
_DECODE = ((1, 1, (1, 16, 64, 128)), (1, 2, (64, 128)), (2, 1, (1, 64, 128)), (2, 2, (128,)))
_QUICK = {(1, 2, 128), (2, 1, 64), (1, 1, 1)}

# DeepSeek-V3.2: TP, tokens, thousands of keys.
_PREFILL = ((1, 4, 8), (1, 4, 32), (1, 4, 128), (2, 4, 32), (1, 1, 32))


@dataclass(frozen=True)
class Positions:
    """A call of `logical_to_physical_indices`: `k` positions a query, all of them in its sequence.

    The exam's own call names positions outside of the table, too.
    """

    batch: int
    keys: int
    q_len: int = 1
    k: int = _TOP_K
    page: int = 64

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        table, _, _ = paged_slots(make, (self.keys,) * self.batch, self.page)
        indices = make.randint(0, self.keys, self.batch, self.q_len, self.k)
        return {"indices": indices, "block_table": table, "page_size": self.page}


def _decode(
    model: str,
    tp: int,
    batch: int,
    q_len: int = 1,
    about: str = "fp8_v32",
    quick: bool = False,
    **more: Any,
) -> Workload:
    sizes = f"b{batch}" + (f" q{q_len}" if q_len > 1 else "")
    heads, fixed = _HEADS[model] // tp, {"blocks": _PAGES, "lists": "full", "lse": ""}
    inputs = SparseDecode(heads, batch, **{"k": _TOP_K, "q_len": q_len, **fixed, **more})
    return Workload("sparse_mla_decode", model, tp, sizes, inputs, about, quick)


def _decodes() -> Iterator[Workload]:
    for tp, q_len, batches in _DECODE:
        for batch in batches:
            quick = (tp, q_len, batch) in _QUICK
            yield _decode("DeepSeek-V3.2", tp, batch, q_len, quick=quick)
    yield _decode("DeepSeek-V3.2", 8, 128)
    yield _decode("DeepSeek-V3.2", 1, 64, about="bf16", kv_format="bf16")
    glm: dict[str, Any] = {"scale": GLM_SCALE}
    yield _decode("GLM-5", 1, 32, **glm)
    yield _decode(
        "GLM-5", 8, 64, about="bf16, page 1", kv_format="bf16", page=1, **glm | {"blocks": 2**19}
    )
    window: dict[str, Any] = {"k": 128, "extra_k": 512, "extra_blocks": _PAGES, "extra_page": 32}
    model1: dict[str, Any] = {"kv_format": "fp8_model1", "width": 512, "sink": "finite"}
    yield _decode("DeepSeek-V4", 1, 64, about="fp8_model1, 128 + 512, sinks", **window, **model1)


def _prefills() -> Iterator[Workload]:
    fixed: dict[str, Any] = {"lists": "full", "lse": ""}
    for tp, tokens, keys in _PREFILL:
        heads = _HEADS["DeepSeek-V3.2"] // tp
        inputs = SparsePrefill(heads, tokens * KILO, _TOP_K, blocks=keys * KILO, **fixed)
        sizes, quick = f"t{tokens}k kv{keys}k", (tp, tokens, keys) == (1, 4, 32)
        yield Workload("sparse_mla_prefill", "DeepSeek-V3.2", tp, sizes, inputs, "bf16", quick)
    glm = SparsePrefill(8, 4 * KILO, _TOP_K, blocks=32 * KILO, scale=GLM_SCALE, **fixed)
    yield Workload("sparse_mla_prefill", "GLM-5", 8, "t4k kv32k", glm, "bf16")


def _caches() -> Iterator[Workload]:
    pool: dict[str, Any] = {"blocks": _PAGES, "page": 64}
    for tokens in (128, 8 * KILO):
        sizes, quick = f"t{short(tokens)}", tokens > KILO
        for model, kv_format, mode in (
            ("DeepSeek-V3.2", "fp8_v32", "fp32"),
            ("DeepSeek-V4", "fp8_model1", "pow2"),
        ):
            rows = Quantize(tokens, kv_format, mode, **pool)
            first = quick and kv_format == "fp8_v32"
            yield Workload("quantize_sparse_kv", model, 1, sizes, rows, kv_format, first)
    for tokens in (8 * KILO, 128 * KILO):
        sizes, quick = f"t{short(tokens)}", tokens > 8 * KILO
        taken = Dequantize(tokens, **pool)
        yield Workload("dequantize_sparse_kv", "DeepSeek-V3.2", 1, sizes, taken, "fp8_v32", quick)
    for batch, q_len in ((1, 1), (64, 2), (128, 1)):
        sizes = f"b{batch} kv32k" + (f" q{q_len}" if q_len > 1 else "")
        yield Workload(
            "logical_to_physical_indices",
            "DeepSeek-V3.2",
            1,
            sizes,
            Positions(batch, 32 * KILO, q_len),
            "page 64",
            batch == 64,
        )


WORKLOADS = (*_decodes(), *_prefills(), *_caches())


def _lists(
    cache: torch.Tensor, indices: torch.Tensor, length: torch.Tensor | None
) -> tuple[int, int, int]:
    """Valid entries of the lists, bytes of the cache rows that they name, bytes of the entries."""
    row_bytes = cache.shape[-1] * cache.element_size()
    capacity = cache.shape[:-1].numel()
    rows = indices.reshape(-1, indices.shape[-1])
    valid = (rows >= 0) & (rows < capacity)
    if length is not None:
        column = torch.arange(rows.shape[1], device=rows.device)
        valid &= column < length.repeat_interleave(len(rows) // len(length))[:, None]
    named = torch.zeros(capacity, dtype=torch.bool, device=rows.device)
    named[rows[valid].long()] = True
    entries = int(valid.sum())
    return entries, int(named.sum()) * row_bytes, entries * indices.element_size()


def _attention(call: Mapping[str, Any], caches: tuple[tuple[str, str, str], ...]) -> Cost:
    """`2 entries H (d + dv)` operations over valid entries of the lists, whatever the cache holds.

    Each row that some list names is read once: lists that share a row share its read, which a
    cache can serve. So are the lists' entries; q, out and lse besides. The products are those of
    bfloat16: packed rows are unpacked for them.
    """
    q, value_width = call["q"], call.get("head_dim_v", 512)
    rows = q.shape[:-2].numel() * q.shape[-2]
    pairs = moved = 0
    for cache, indices, length in caches:
        if call.get(cache) is not None:
            counted = _lists(call[cache], call[indices], call.get(length))
            pairs += counted[0]
            moved += counted[1] + counted[2]
    moved += size(q) + rows * value_width * out_bytes(q, call.get("out"))
    if call.get("return_lse"):
        moved += 4 * rows
    return Cost(2 * pairs * q.shape[-2] * (q.shape[-1] + value_width), moved)


def _decode_cost(call: Mapping[str, Any]) -> Cost:
    """See `_attention`; of both caches if there are two."""
    extra = ("extra_kv_cache", "extra_indices", "extra_topk_length")
    return _attention(call, (("kv_cache", "indices", "topk_length"), extra))


def _prefill_cost(call: Mapping[str, Any]) -> Cost:
    """See `_attention`; lse and max_logits come together."""
    cost = _attention(call, (("kv", "indices", "topk_length"),))
    q = call["q"]
    most = 4 * q.shape[0] * q.shape[1] if call.get("return_lse") else 0
    return Cost(cost.flops, cost.bytes + most, cost.rate)


def _quantize_cost(call: Mapping[str, Any]) -> Cost:
    """Rows and slots in, packed rows out; of tokens without a slot only the slot."""
    k_nope, k_rope, slots = call["k_nope"], call["k_rope"], call.get("slot_mapping")
    tokens = k_nope.shape[:-1].numel()
    if slots is not None:
        capacity = call["out"].shape[:-1].numel()
        tokens = int(((slots >= 0) & (slots < capacity)).sum())
    row = k_nope.shape[-1] * k_nope.element_size()
    if k_rope is not None:
        row += k_rope.shape[-1] * k_rope.element_size()
    return Cost(0, size(slots) + tokens * (row + packed(call["format"]).row_bytes))


def _dequantize_cost(call: Mapping[str, Any]) -> Cost:
    """Packed rows, each once, and slots in; unpacked rows out, bfloat16 by default."""
    cache, slots, out = call["kv_cache"], call.get("slot_mapping"), call.get("out")
    tokens, read = cache.shape[:-1].numel(), size(cache)
    if slots is not None:
        tokens, read = slots.numel(), _lists(cache, slots[None], None)[1] + size(slots)
    itemsize = 2 if out is None else out.element_size()
    return Cost(0, read + tokens * packed(call["format"]).head_dim * itemsize)


def _positions_cost(call: Mapping[str, Any]) -> Cost:
    """Positions in, slots out, and each entry of the block table that a position needs once."""
    indices, table, page = call["indices"], call["block_table"], call["page_size"]
    entry = indices.reshape(len(table), -1) // page
    valid = (entry >= 0) & (entry < table.shape[1])
    named = torch.zeros(table.shape, dtype=torch.bool, device=table.device)
    sequence = torch.arange(len(table), device=table.device)[:, None].expand(entry.shape)
    named[sequence[valid], entry[valid].long()] = True
    return Cost(0, 2 * size(indices) + int(named.sum()) * table.element_size())


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {
    "sparse_mla_prefill": _prefill_cost,
    "sparse_mla_decode": _decode_cost,
    "quantize_sparse_kv": _quantize_cost,
    "dequantize_sparse_kv": _dequantize_cost,
    "logical_to_physical_indices": _positions_cost,
}

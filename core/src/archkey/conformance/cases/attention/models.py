# SPDX-License-Identifier: Apache-2.0
"""Unified attention as Qwen3.5, GPT-OSS and Qwen3 MoE use it, and EAGLE's page tables.

A row's output is the smaller the more keys it averages. Rows of one case see about as many keys,
so that no row drowns in another's; prefills without context have a case of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch

from archkey.conformance.case import Case, Maker

__all__ = ["CASES"]

NOWHERE = 2147480000
"""What engines leave in the unused tail of a block table."""


def _paged(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    page_size: int,
    *,
    window: int | None = None,
    fp8_cache: bool = False,
    fp8_query: bool = False,
    more: Callable[[Maker], Mapping[str, Any]] = lambda make: {},
) -> Callable[[Maker], Mapping[str, Any]]:
    """A batch of (q_len, kv_len) over shuffled pages; slots of nobody hold NaN.

    window  keys that a query sees, itself included, as Hugging Face's `sliding_window`
    """

    def inputs(make: Maker) -> Mapping[str, Any]:
        q_lens, kv_lens = ([pair[i] for pair in lengths] for i in (0, 1))
        pages = [-(-n // page_size) for n in kv_lens]
        spare = 3
        order = make.permutation(sum(pages) + spare)
        table = make.tensor([[NOWHERE] * (max(pages) + 1)] * len(lengths))
        shape = (len(order), page_size, heads[1], head_dim)
        k, v = make.randn(*shape), make.randn(*shape)
        used = torch.zeros(shape[:2], dtype=torch.bool, device=make.device)
        for i, (n, first) in enumerate(zip(pages, accumulate(pages, initial=0), strict=False)):
            table[i, :n] = order[first : first + n]
            used[table[i, :n].long()] = True
            if kv_lens[i] % page_size:
                used[table[i, n - 1], kv_lens[i] % page_size :] = False
        k[~used], v[~used] = torch.nan, torch.nan
        q = make.randn(sum(q_lens), heads[0], head_dim)
        options: dict[str, Any] = {}
        if fp8_cache:
            k, v = (2 * k).to(make.fp8), (2 * v).to(make.fp8)
            options |= {"k_descale": make.tensor(0.5, torch.float32), "v_descale": 0.25}
        if fp8_query:
            q = q.to(make.fp8)
            options |= {"q_descale": make.tensor([0.75], torch.float32)}
        return {
            "q": q,
            "k": k,
            "v": v,
            "out": torch.empty(q.shape, dtype=torch.bfloat16, device=make.device),
            "cu_seqlens_q": make.tensor(list(accumulate(q_lens, initial=0))),
            "max_seqlen_q": max(q_lens),
            "seqused_k": make.tensor(kv_lens),
            "max_seqlen_k": max(kv_lens),
            "softmax_scale": head_dim**-0.5,
            "causal": True,
            "window_size": (-1, -1) if window is None else (window - 1, 0),
            "block_table": table,
            **options,
            **more(make),
        }

    return inputs


def _lse(tokens: int, heads: int) -> Callable[[Maker], Mapping[str, Any]]:
    return lambda make: {"lse": torch.empty(tokens, heads, device=make.device)}


def _sinks(make: Maker) -> Mapping[str, Any]:
    return {"sinks": make.randn(64)}


def _alibi(make: Maker) -> Mapping[str, Any]:
    return {"alibi_slopes": make.rand(32), "softcap": 50.0}


def _ragged(sequences: int, page_size: int, swa: bool) -> Callable[[Maker], Mapping[str, Any]]:
    """Token slots as FlashInfer's planner lists them, draft tokens included."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        lens = make.randint(1, 3000, sequences).tolist()
        slots, pool = _slots(make, lens, page_size)
        return {
            "kv_indices": torch.cat(slots),
            "kv_indptr": make.tensor(list(accumulate(lens, initial=0))),
            "page_size": page_size,
            **_tables(make, sequences, page_size, pool, swa),
        }

    return inputs


def _requests(sequences: int, page_size: int, swa: bool) -> Callable[[Maker], Mapping[str, Any]]:
    """SGLang's request-to-token table, with four draft tokens written behind each sequence."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        draft = 4
        lens = make.randint(draft, 3000, sequences).tolist()
        slots, pool = _slots(make, lens, page_size)
        table = make.tensor([[-1] * 3072] * (2 * sequences))
        rows = make.permutation(2 * sequences, torch.int64)[:sequences]
        for row, mine in zip(rows.tolist(), slots, strict=True):
            table[row, : len(mine)] = mine
        return {
            "req_to_token": table,
            "req_pool_indices": rows,
            "seq_lens": make.tensor(lens) - draft,
            "num_draft_tokens": draft,
            "page_size": page_size,
            **_tables(make, sequences, page_size, pool, swa),
        }

    return inputs


def _slots(make: Maker, lens: list[int], page_size: int) -> tuple[list[torch.Tensor], int]:
    """Token slots of each sequence on shuffled pages, and the size of the pool."""
    pages = [-(-n // page_size) for n in lens]
    order = make.permutation(sum(pages))
    parts = order.split(pages)
    offsets = torch.arange(page_size, dtype=torch.int32, device=make.device)
    slots = [
        (part[:, None] * page_size + offsets).flatten()[:n]
        for part, n in zip(parts, lens, strict=True)
    ]
    return slots, sum(pages) * page_size


def _tables(make: Maker, rows: int, page_size: int, pool: int, swa: bool) -> dict[str, Any]:
    """Tables for 3072 tokens with stale entries in them; rows lie apart."""
    stale = make.tensor([[NOWHERE] * (2 * 3072 // page_size)] * rows)
    full, window = stale.split(3072 // page_size, dim=1)
    tables: dict[str, Any] = {"page_table": full}
    if swa:
        smaller = make.permutation(pool // page_size, torch.int64) // 2
        offsets = torch.arange(page_size, device=make.device)
        mapping = (smaller[:, None] * page_size + offsets).flatten()
        tables |= {"swa_page_table": window, "full_to_swa": mapping}
    return tables


_MIXED = [(1, 700), (100, 600), (1, 500), (64, 401), (3, 450)]
_VERIFY = [(4, n) for n in (336, 250, 404, 511)]
_PADDED = [(1, 7), (0, 0), (1, 0), (9, 5), (0, 40), (1, 16)]

CASES = (
    Case(
        "unified_attention",
        "Qwen3.5-397B TP4",
        "B=4 decode, kv 1k-2k, H=8/1, D=256, page 16, bf16",
        _paged([(1, n) for n in (1024, 2000, 1537, 1300)], (8, 1), 256, 16, more=_lse(4, 8)),
    ),
    Case(
        "unified_attention",
        "Qwen3.5-397B TP4",
        "B=4 EAGLE verify, 4 queries, kv 250-511, H=8/1, D=256, page 16, bf16",
        _paged(_VERIFY, (8, 1), 256, 16, more=_lse(16, 8)),
    ),
    Case(
        "unified_attention",
        "Qwen3.5-397B TP8",
        "padded graph: no queries, no keys, more queries than keys, H=4/1, D=256, bf16",
        _paged(_PADDED, (4, 1), 256, 16, more=_lse(12, 4)),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "decode and prefill mixed, kv 401-700, H=32/4, D=128, page 16, bf16",
        _paged(_MIXED, (32, 4), 128, 16),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "prefill 130 and 37, H=32/4, D=128, page 16, bf16",
        _paged([(130, 130), (37, 37)], (32, 4), 128, 16, more=_lse(167, 32)),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "mixed, kv 401-700, H=32/4, D=128, page 64, fp8 q and cache, descales",
        _paged(_MIXED, (32, 4), 128, 64, fp8_cache=True, fp8_query=True),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "mixed, kv 401-700, H=32/4, D=128, page 16, bf16 q, fp8 cache, descales",
        _paged(_MIXED, (32, 4), 128, 16, fp8_cache=True),
    ),
    Case(
        "unified_attention",
        "GPT-OSS-120B",
        "B=3 decode, kv 50-900, H=64/8, D=64, page 16, window 128, sinks, bf16",
        _paged([(1, 900), (1, 128), (1, 50)], (64, 8), 64, 16, window=128, more=_sinks),
    ),
    Case(
        "unified_attention",
        "GPT-OSS-120B",
        "prefill 200 and 60 behind 300, H=64/8, D=64, page 64, window 128, sinks, bf16",
        _paged([(200, 200), (60, 360)], (64, 8), 64, 64, window=128, more=_sinks),
    ),
    Case(
        "unified_attention",
        "MPT-like",
        "mixed, H=32/32, D=128, page 32, ALiBi and softcap 50, bf16",
        _paged([(1, 100), (40, 90)], (32, 32), 128, 32, more=_alibi),
    ),
    Case(
        "ragged_kv_indices_to_page_table",
        "Qwen3.5-397B",
        "B=32, up to 3k tokens, page 16",
        _ragged(32, 16, swa=False),
    ),
    Case(
        "ragged_kv_indices_to_page_table",
        "GPT-OSS-120B",
        "B=32, up to 3k tokens, page 64, window pool",
        _ragged(32, 64, swa=True),
    ),
    Case(
        "req_to_token_to_page_table",
        "Qwen3.5-397B",
        "B=32, up to 3k tokens, 4 drafts, page 1",
        _requests(32, 1, swa=False),
    ),
    Case(
        "req_to_token_to_page_table",
        "GPT-OSS-120B",
        "B=32, up to 3k tokens, 4 drafts, page 16, window pool",
        _requests(32, 16, swa=True),
    ),
)

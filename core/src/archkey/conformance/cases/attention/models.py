# SPDX-License-Identifier: Apache-2.0
"""Unified attention as Qwen3.5, GPT-OSS and Qwen3 MoE use it, and EAGLE's page tables.

A row's output is the smaller the more keys it averages. Rows of one case see about as many keys,
so that no row drowns in another's; prefills without context have a case of their own.
"""

from __future__ import annotations

from typing import Any

from archkey.conformance.case import Case
from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.attention.table_inputs import Ragged, Requests

__all__ = ["CASES"]

_LENS = tuple(4 + 997 * i % 2996 for i in range(32))  # anything up to 3k
_STALE: dict[str, Any] = {"lens": _LENS, "beside": True, "rows": 0}

_DECODE = tuple((1, n) for n in (1024, 2000, 1537, 1300))
_MIXED = ((1, 700), (100, 600), (1, 500), (64, 401), (3, 450))
_VERIFY = tuple((4, n) for n in (336, 250, 404, 511))
_PADDED = ((1, 7), (0, 0), (1, 0), (9, 5), (0, 40), (1, 16))

_GPT_OSS: dict[str, Any] = {"heads": (64, 8), "window": 128, "sinks": "bf16", "lse": ""}
_QWEN3: dict[str, Any] = {"heads": (32, 4), "dims": (128, 128)}
_QWEN35: dict[str, Any] = {"heads": (8, 1), "dims": (256, 256)}
_FP8_CACHE: dict[str, Any] = {"cache": "fp8", "descales": (None, 0.5, 0.25), "lse": ""}
_FP8: dict[str, Any] = {"dtype": "fp8", "descales": (0.75, 0.5, 0.25), "lse": ""}
_TENSORS = ("tensor", "scalar", "number")

CASES = (
    Case(
        "unified_attention",
        "Qwen3.5-397B TP4",
        "B=4 decode, kv 1k-2k, H=8/1, D=256, page 16, bf16",
        Attention(_DECODE, **_QWEN35),
    ),
    Case(
        "unified_attention",
        "Qwen3.5-397B TP4",
        "B=4 EAGLE verify, 4 queries, kv 250-511, H=8/1, D=256, page 16, bf16",
        Attention(_VERIFY, **_QWEN35),
    ),
    Case(
        "unified_attention",
        "Qwen3.5-397B TP8",
        "padded graph: no queries, no keys, more queries than keys, H=4/1, D=256, bf16",
        Attention(_PADDED, (4, 1), (256, 256)),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "decode and prefill mixed, kv 401-700, H=32/4, D=128, page 16, bf16",
        Attention(_MIXED, **_QWEN3, lse=""),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "prefill 130 and 37, H=32/4, D=128, page 16, bf16",
        Attention(((130, 130), (37, 37)), **_QWEN3),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "mixed, kv 401-700, H=32/4, D=128, page 64, fp8 q and cache, descales",
        Attention(_MIXED, **_QWEN3, page=64, **_FP8, kinds=_TENSORS),
    ),
    Case(
        "unified_attention",
        "Qwen3-235B TP2",
        "mixed, kv 401-700, H=32/4, D=128, page 16, bf16 q, fp8 cache, descales",
        Attention(_MIXED, **_QWEN3, **_FP8_CACHE, kinds=_TENSORS),
    ),
    Case(
        "unified_attention",
        "GPT-OSS-120B",
        "B=3 decode, kv 50-900, H=64/8, D=64, page 16, window 128, sinks, bf16",
        Attention(((1, 900), (1, 128), (1, 50)), **_GPT_OSS),
    ),
    Case(
        "unified_attention",
        "GPT-OSS-120B",
        "prefill 200 and 60 behind 300, H=64/8, D=64, page 64, window 128, sinks, bf16",
        Attention(((200, 200), (60, 360)), **_GPT_OSS, page=64),
    ),
    Case(
        "unified_attention",
        "MPT-like",
        "mixed, H=32/32, D=128, page 32, ALiBi and softcap 50, bf16",
        Attention(
            ((1, 100), (40, 90)), (32, 32), (128, 128), 32, lse="", alibi="bf16", softcap=50.0
        ),
    ),
    Case(
        "ragged_kv_indices_to_page_table",
        "Qwen3.5-397B",
        "B=32, up to 3k tokens, page 16",
        Ragged(**_STALE),
    ),
    Case(
        "ragged_kv_indices_to_page_table",
        "GPT-OSS-120B",
        "B=32, up to 3k tokens, page 64, window pool",
        Ragged(**_STALE, page=64, swa=True),
    ),
    Case(
        "req_to_token_to_page_table",
        "Qwen3.5-397B",
        "B=32, up to 3k tokens, 4 drafts, page 1",
        Requests(**_STALE, draft=4, page=1),
    ),
    Case(
        "req_to_token_to_page_table",
        "GPT-OSS-120B",
        "B=32, up to 3k tokens, 4 drafts, page 16, window pool",
        Requests(**_STALE, draft=4, swa=True),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Attention and merged parts of FlashInfer, FlashAttention-3, vLLM, SGLang and aiter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _peer_calls as calls
from tests.bench._peer_calls import examined, given, model, off, refusal, serves

FP8_CACHE = replace(calls.RAGGED, cache="fp8", descales=(None, 0.5, 0.25), lse="")
PER_HEAD = replace(FP8_CACHE, kinds=("number", "per_head", "number"))
SINKS = replace(calls.ONE_EACH, sinks="bf16", lse="")

FLASH = (
    ("unified_attention", calls.RAGGED),
    ("unified_attention", calls.WINDOW),
    ("unified_attention", calls.HND),
    ("mla_prefill", calls.PREFILL),
    ("mla_prefill", replace(calls.PREFILL, causal=False, lse="")),
)
ROUTES = (
    ("flashinfer", "merge_attn_states", calls.MERGE),
    ("flashinfer:fa3", "mla_prefill", calls.PREFILL),
    ("flashinfer:fa3", "mla_prefill", replace(calls.PREFILL, causal=False, lse="")),
    ("flashinfer:fa2", "unified_attention", calls.RAGGED),
    ("flashinfer:fa2", "unified_attention", FP8_CACHE),
    ("flashinfer:fa3", "unified_attention", calls.WINDOW),
    ("flashinfer:fa3", "unified_attention", calls.HND),
    ("flashinfer:decode", "unified_attention", calls.ONE_EACH),
    *(("fa3", name, make) for name, make in FLASH),
    *(("authors", name, make) for name, make in FLASH),
    ("vllm", "merge_attn_states", calls.MERGE),
    ("vllm", "unified_attention", replace(calls.RAGGED, lse="")),
    ("vllm", "unified_attention", calls.WINDOW),
    ("vllm", "unified_attention", calls.HND),
    ("vllm", "unified_attention", FP8_CACHE),
    ("vllm", "unified_attention", SINKS),
    ("vllm", "unified_attention", replace(calls.RAGGED, alibi="bf16", lse="")),
    ("vllm", "unified_attention", replace(calls.RAGGED, bias="fp32", lse="")),
)


@pytest.mark.parametrize(("entrant", "operator", "make"), ROUTES)
def test_computes_the_operator(adapted: Any, entrant: str, operator: str, make: Any) -> None:
    off(operator, adapted(entrant, operator), make)


@pytest.mark.parametrize(
    ("entrant", "operator"), examined("unified_attention", "merge_attn_states", "mla_prefill")
)
def test_serves_models_of_the_exam(adapted: Any, entrant: str, operator: str) -> None:
    serves(operator, adapted(entrant, operator))


def test_the_workspace_is_the_backends(adapted: Any) -> None:
    bind = adapted("vllm", "unified_attention")
    assert "16 segments" in bind(given(SINKS)).how
    assert not bind(given(calls.WINDOW)).how


ONE = torch.ones(1)
DECODE, MIXED = (model("unified_attention", x) for x in ("B=4 decode", "decode and prefill"))
WIDE = calls.Merge(6, 128, 128, ((1.0, -1.0), (0.0, 2.0)))
REFUSED = (
    ("flashinfer", "merge_attn_states", calls.one_part_empty, {}, "a part without keys"),
    ("flashinfer", "merge_attn_states", WIDE, {}, "a thread block is too small"),
    ("flashinfer:fa3", "mla_prefill", replace(calls.PREFILL, spare=2), {}, "past the last"),
    ("flashinfer:fa2", "unified_attention", SINKS, {}, "sinks"),
    ("flashinfer:fa3", "unified_attention", FP8_CACHE, {}, "a cache of torch.float8_e4m3fn"),
    ("flashinfer:decode", "unified_attention", calls.WINDOW, {}, "more than one query"),
    ("fa3", "unified_attention", FP8_CACHE, {}, "k of float8_e4m3fn beside bfloat16"),
    ("fa3", "unified_attention", calls.RAGGED, {"alibi_slopes": torch.ones(8)}, "alibi_slopes"),
    ("authors", "unified_attention", SINKS, {}, "sinks"),
    ("vllm", "unified_attention", calls.RAGGED, {}, "lse = a tensor"),
    ("vllm", "unified_attention", replace(SINKS, alibi="bf16"), {}, "ALiBi with sinks"),
    ("vllm", "unified_attention", PER_HEAD, {}, "k_descale of shape [3, 2]"),
    ("sglang", *DECODE, {"window_size": (0, 0)}, "a window of one key"),
    ("sglang", *DECODE, {"k_descale": 0.5}, "k_descale = 0.5"),
    ("sglang", *MIXED, {"alibi_slopes": ONE}, "alibi_slopes"),
    ("sglang", *model("unified_attention", "padded"), {}, "rows without keys"),
    ("sglang", *model("merge_attn_states", "V3"), {}, "become NaN"),
    ("aiter", *DECODE, {"q_descale": 0.5}, "q_descale of one element"),
)


@pytest.mark.parametrize(("entrant", "operator", "make", "changes", "why"), REFUSED)
def test_refuses(
    adapted: Any, entrant: str, operator: str, make: Any, changes: dict[str, Any], why: str
) -> None:
    assert why in refusal(adapted(entrant, operator), make, changes)

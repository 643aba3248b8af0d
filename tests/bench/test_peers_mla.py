# SPDX-License-Identifier: Apache-2.0
"""Latent attention, dense and sparse, of FlashMLA, FlashInfer, FlashAttention-3 and the servers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _peer_calls as calls
from tests.bench import _standins_mla
from tests.bench._peer_calls import examined, given, model, off, refusal, serves, widened

from archkey.bench.peers import _flashmla

FP8_LATENT = replace(calls.DECODE, cache="fp8", kv_descale=0.1, tensors="kv")

ROUTES = (
    ("flashinfer:fa2", calls.DECODE),
    ("flashinfer:fa3", calls.DECODE_RAGGED),
    ("flashinfer:fa3", replace(calls.DECODE, form="nhd", lse="")),
    *(
        (entrant, make)
        for entrant in ("fa3", "authors")
        for make in (
            calls.DECODE,
            calls.DECODE_RAGGED,
            replace(calls.DECODE, form="hnd", lse=""),
        )
    ),
    ("vllm", calls.DECODE),
    ("vllm", FP8_LATENT),
)


@pytest.mark.parametrize(("entrant", "make"), ROUTES)
def test_computes_the_operator(adapted: Any, entrant: str, make: Any) -> None:
    off("mla_decode", adapted(entrant, "mla_decode"), make)


@pytest.mark.parametrize(
    ("entrant", "operator"), examined("mla_decode", "sparse_mla_decode", "sparse_mla_prefill")
)
def test_serves_models_of_the_exam(adapted: Any, entrant: str, operator: str) -> None:
    serves(operator, adapted(entrant, operator))


def test_the_splits_are_the_backends(adapted: Any) -> None:
    bind = adapted("vllm", "mla_decode")
    long = replace(calls.DECODE, kv_lens=(1025,))  # two splits of 512, to a power of two
    assert "2 splits" in bind(given(long)).how
    much = replace(calls.DECODE, kv_lens=(9000,))  # no more than twice the processors
    assert "4 splits" in bind(given(much)).how


@pytest.mark.parametrize(
    ("bind", "label"), [(_flashmla.decode, "V3 TP8: "), (_flashmla.sparse_decode, "GLM-5 TP1")]
)
def test_a_schedule_is_made_while_binding(bind: Any, label: str) -> None:
    made: list[int] = []

    class Schedule(_standins_mla.Schedule):
        def __setattr__(self, name: str, value: Any) -> None:
            made.append(1)
            super().__setattr__(name, value)

    library = _flashmla.Library(
        _standins_mla.with_kvcache, _standins_mla.sparse_fwd, lambda: (Schedule(), None)
    )
    _, make = model("mla_decode" if bind is _flashmla.decode else "sparse_mla_decode", label)
    bound = bind(library, given(make))
    assert made and "schedule" in bound.how


def lists(*shape: int, slot: int = 0) -> dict[str, torch.Tensor]:
    return {"indices": torch.full(shape, slot, dtype=torch.int32)}


ONE, FAR = torch.ones(1), 2**30
MLA, PAGE1 = model("mla_decode", "V3 TP8: "), model("mla_decode", "page 1")
SPARSE, BF16 = (model("sparse_mla_decode", x) for x in ("GLM-5 TP1", "GLM-5 TP8"))
PREFILL = model("sparse_mla_prefill", "V3.2 TP1")
OURS = ("mla_decode", calls.DECODE)
REFUSED = (
    ("flashinfer:fa3", *OURS, {"window_left": 3}, "window_left = 3"),
    ("flashinfer:fa3", *OURS, {"kv_descale": 2.0}, "kv_descale"),
    ("flashinfer:fa3", "mla_decode", replace(calls.DECODE, width=512), {}, "rows of 512"),
    ("flashinfer:fa3", "mla_decode", replace(calls.DECODE, dtype="fp8"), {}, "q of float8"),
    ("flashinfer:fa3", "mla_decode", replace(calls.DECODE, kv_lens=(9, 0)), {}, "without keys"),
    ("fa3", "mla_decode", FP8_LATENT, {}, "kv_descale = a tensor"),
    ("fa3", *OURS, {"head_dim_v": 448}, "head_dim_v = 448"),
    ("vllm", "mla_decode", calls.DECODE_RAGGED, {}, "more than one query"),
    ("vllm", "mla_decode", replace(calls.DECODE, page=1), {}, "pages of 1"),
    ("flashmla", *PAGE1, {}, "page size 64 only"),
    ("flashmla", *MLA, {"window_left": 100}, "window_left = 100"),
    ("flashmla", *MLA, {"head_dim_v": 256}, "head_dim_v = 256"),
    ("flashmla", *model("mla_decode", "TP8 FP8: "), {}, "q_descale"),
    ("flashmla", *model("mla_decode", "ragged"), {}, "cu_seqlens_q"),
    ("vllm-flashmla:fp8", *MLA, {}, "float8_e4m3fn only"),
    ("flashmla", *BF16, {}, "fp8_v32 and fp8_model1 only"),
    ("flashmla", *model("sparse_mla_decode", "V3.2 TP8"), {}, "64 and 128 heads only"),
    ("flashmla", *SPARSE, lists(4, 1, 64, slot=FAR), "outside the cache"),
    ("flashmla", *SPARSE, lists(4, 1, 100), "multiple of 64"),
    ("flashmla", *PREFILL, lists(4, 64), "multiple of 128"),
    ("sglang", *MLA, {}, "sequences without keys"),
    ("sglang", *model("mla_decode", "MTP verify"), {}, "one query a sequence only"),
    ("sglang", *PAGE1, {"kv_cache": widened("kv_cache")}, "a cache with gaps"),
    ("sglang", *SPARSE, {}, "bfloat16 caches only"),
    ("sglang", *BF16, {"attn_sink": ONE}, "attn_sink"),
    ("sglang", *BF16, lists(6, 1, 64, slot=FAR), "past the pool"),
    ("sglang:autotuned", *PREFILL, {}, "topk_length"),
    ("aiter", *PAGE1, {}, "16 and 128 heads"),
    ("aiter", *MLA, {}, "rows without keys"),
)


@pytest.mark.parametrize(("entrant", "operator", "make", "changes", "why"), REFUSED)
def test_refuses(
    adapted: Any, entrant: str, operator: str, make: Any, changes: dict[str, Any], why: str
) -> None:
    assert why in refusal(adapted(entrant, operator), make, changes)

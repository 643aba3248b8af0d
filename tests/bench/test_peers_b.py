# SPDX-License-Identifier: Apache-2.0
"""Adapters of FLA, FlashKDA, FlashMLA, SGLang, vLLM and aiter, over stand-ins for the libraries."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.bench import _standins_aiter, _standins_kda, _standins_mla
from tests.bench._standins import installed

from archkey.bench.entrant import Adapter, NotServed
from archkey.bench.gate import compare, listen
from archkey.bench.peers import adapter
from archkey.bench.peers.table_b import PEERS_B
from archkey.bench.workload import Supply
from archkey.conformance.cases import cases_of
from archkey.ops import OPERATORS
from archkey.session import open

ROUTES = {
    (f"{peer.name}:{route.label}" if route.label else peer.name, route.operator): (peer, route)
    for peer in PEERS_B
    for route in peer.routes
}


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    """Every library, for this module's tests only."""
    with (
        pytest.MonkeyPatch.context() as patch,
        installed(
            {
                **_standins_kda.FLA,
                **_standins_kda.FLASH_KDA,
                **_standins_kda.VLLM_KDA,
                **_standins_kda.SGLANG_KDA,
                **_standins_mla.FLASH_MLA,
                **_standins_mla.VLLM_FLASHMLA,
                **_standins_mla.SGLANG,
                **_standins_aiter.AITER,
            }
        ),
    ):
        patch.setenv("FLA_FLASH_KDA", "1")
        cores = SimpleNamespace(multi_processor_count=132)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: cores)
        extension = torch.library.Library("_flashmla_extension_C", "DEF")
        for schema in _standins_mla.EXTENSION:
            extension.define(schema)
        for name, function in (
            ("get_mla_decoding_metadata_dense_fp8", _standins_mla.extension_metadata),
            ("fwd_kvcache_mla_fp8", _standins_mla.extension_fwd),
        ):
            extension.impl(name, function, "CPU")
        yield
        extension._destroy()


def adapted(entrant: str, operator: str) -> Adapter:
    return adapter(*ROUTES[entrant, operator])


def merge(make: Supply) -> dict[str, torch.Tensor]:
    """Two parts, the first of which is empty here and there."""
    lse = {name: make.randn(9, 4, dtype=torch.float32) for name in ("lse_a", "lse_b")}
    lse["lse_a"][::2] = -math.inf
    return {"out_a": make.randn(9, 4, 128), "out_b": make.randn(9, 4, 128), **lse}


def calls(operator: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The exam's models, with -1 for every list entry that is to be ignored, and calls of ours."""
    for case in cases_of(OPERATORS[operator]):
        if not case.edge:
            yield case.name, lambda case=case: tidy(case.inputs(Supply("cpu", 0)))
    if operator == "merge_attn_states":
        yield "no row without keys", lambda: merge(Supply("cpu", 0))
    if operator == "sparse_mla_prefill":
        (case, *_) = cases_of(OPERATORS[operator])
        yield "no lengths", lambda: tidy(case.inputs(Supply("cpu", 0))) | {"topk_length": None}


def tidy(inputs: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(inputs)
    for lists, pools in (("indices", ("kv", "kv_cache")), ("extra_indices", ("extra_kv_cache",))):
        for pool in pools:
            if values.get(lists) is not None and values.get(pool) is not None:
                keys = values[pool].shape[:-1].numel()
                outside = (values[lists] < 0) | (values[lists] >= keys)
                values[lists] = values[lists].masked_fill(outside, -1)
    if values.get("quant") == "mxfp4" and values.get("scale_mode") is None:
        values["scale_mode"] = "even"  # what None is on AMD's targets
    return values


@pytest.mark.parametrize(("entrant", "operator"), ROUTES)
def test_a_route_gives_what_the_operator_does(entrant: str, operator: str) -> None:
    """On each call that it does not refuse, twice, and it does not refuse all of them."""
    session, bind, refused, passed = open("cpu"), adapted(entrant, operator), [], 0
    for name, inputs in calls(operator):
        values = inputs()
        with torch.inference_mode():
            try:
                bound = bind(values)
            except NotServed as refusal:
                refused.append(f"{name}: {refusal}")
                continue
            bound.call()
            verdict = compare(
                operator, listen(session, operator, inputs()), bound.outputs(), peer=True
            )
            assert verdict.passed, (name, verdict)
            bound.call()  # in place or not, it can be repeated
        passed += 1
    assert passed, refused


def model(operator: str, label: str) -> dict[str, Any]:
    """The inputs of an exam's model whose name has `label` in it."""
    (found, *_) = (inputs for name, inputs in calls(operator) if label in name)
    return found()


KDA, K3 = ("chunk_kda", "TP4: 7 seq"), ("chunk_kda", "Kimi-K3")
PACKED = ("kda_packed_decode", "")
MLA, FP8 = ("mla_decode", "V3 TP8: "), ("mla_decode", "TP8 FP8: ")
VERIFY, PAGE1 = ("mla_decode", "MTP verify"), ("mla_decode", "page 1")
SPARSE, BF16 = ("sparse_mla_decode", "GLM-5 TP1"), ("sparse_mla_decode", "GLM-5 TP8")
PREFILL = ("sparse_mla_prefill", "V3.2 TP1")
DECODE, MIXED = ("unified_attention", "B=4 decode"), ("unified_attention", "decode and prefill")
ADD, NORM, QK = ("fused_add_rmsnorm", ""), ("rmsnorm", ""), ("fused_qk_rmsnorm", "")
QUANT = ("rmsnorm_quant", "MXFP4")
ONE = torch.ones(1)


def widened(name: str) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """The argument with a gap after each of its rows."""
    return lambda values: torch.cat([values[name]] * 2, -1)[..., : values[name].shape[-1]]


@pytest.mark.parametrize(
    ("entrant", "call", "change", "reason"),
    [
        ("fla", KDA, {"return_intermediate_states": True}, "return_intermediate_states"),
        ("fla", KDA, {"out": ONE}, "out = a tensor"),
        ("fla", KDA, {"cu_seqlens": torch.tensor([0, 900])}, "past the last sequence"),
        ("fla", KDA, {"initial_state_indices": torch.arange(-1, 6)}, "negative slots"),
        ("fla", ("fused_recurrent_kda", "TP8: B=16"), {"inplace_final_state": False}, "to read"),
        (
            "fla",
            ("fused_recurrent_kda", "TP8: B=16"),
            {"cu_seqlens": torch.tensor([0] * 16 + [16])},
            "one slot for several tokens",
        ),
        (
            "fla",
            ("fused_recurrent_kda", "verify"),
            {"num_accepted_tokens": torch.tensor([0, 1, 1, 1, 1, 1])},
            "no accepted token",
        ),
        ("flash-kda", KDA, {}, "lower_bound in"),
        ("flash-kda", K3, {"use_qk_l2norm_in_kernel": False}, "use_qk_l2norm_in_kernel only"),
        ("flash-kda", K3, {"state_v_first": False}, "V first only"),
        ("flash-kda", K3, {"dt_bias": None}, "dt_bias"),
        ("flash-kda", K3, {"allow_neg_eigval": True}, "allow_neg_eigval"),
        ("vllm-kda", K3, {}, "safe_gate = True|lower_bound"),
        ("vllm-kda", KDA, {"state_v_first": False}, "V first only"),
        ("sglang", KDA, {"state_v_first": False}, "V first only"),
        ("sglang", KDA, {"chunk_size": 32}, "chunk_size = 32"),
        ("sglang", ("chunk_kda", "GVA"), {}, "H = HV only"),
        ("sglang", PACKED, {"dt_bias": None}, "without dt_bias"),
        ("sglang:cuda", PACKED, {"use_qk_l2norm_in_kernel": False}, "always normalises"),
        ("sglang:cuda", ("kda_packed_decode", "bf16"), {}, "not covered"),
        ("flashmla", PAGE1, {}, "page size 64 only"),
        ("flashmla", MLA, {"window_left": 100}, "window_left = 100"),
        ("flashmla", MLA, {"head_dim_v": 256}, "head_dim_v = 256"),
        ("flashmla", FP8, {}, "q_descale|kv_descale"),
        ("flashmla", ("mla_decode", "ragged"), {}, "cu_seqlens_q"),
        ("vllm-flashmla:fp8", MLA, {}, "float8_e4m3fn only"),
        ("flashmla", BF16, {}, "fp8_v32 and fp8_model1 only"),
        ("flashmla", ("sparse_mla_decode", "V3.2 TP8"), {}, "64 and 128 heads only"),
        ("flashmla", SPARSE, {"indices": torch.full((4, 1, 64), 2**30).int()}, "outside the cache"),
        ("flashmla", SPARSE, {"indices": torch.zeros(4, 1, 100).int()}, "multiple of 64"),
        ("flashmla", PREFILL, {"indices": torch.zeros(4, 64).int()}, "multiple of 128"),
        ("sglang", MLA, {}, "sequences without keys"),
        ("sglang", VERIFY, {}, "one query a sequence only"),
        ("sglang", PAGE1, {"kv_cache": widened("kv_cache")}, "a cache with gaps"),
        ("sglang", DECODE, {"window_size": (0, 0)}, "a window of one key"),
        ("sglang", DECODE, {"k_descale": 0.5}, "k_descale = 0.5"),
        ("sglang", MIXED, {"alibi_slopes": ONE}, "alibi_slopes"),
        ("sglang", ("unified_attention", "padded"), {}, "rows without keys"),
        ("sglang", SPARSE, {}, "bfloat16 caches only"),
        ("sglang", BF16, {"attn_sink": ONE}, "attn_sink"),
        ("sglang", BF16, {"indices": torch.full((6, 1, 64), 2**30).int()}, "past the pool"),
        ("sglang:autotuned", PREFILL, {}, "attn_sink|topk_length"),
        ("sglang", ("merge_attn_states", "V3"), {}, "become NaN"),
        ("aiter", PAGE1, {}, "16 and 128 heads"),
        ("aiter", MLA, {}, "rows without keys"),
        ("aiter", DECODE, {"q_descale": 0.5}, "q_descale of one element"),
        ("aiter", NORM, {"weight_bias": 1.0}, "weight_bias = 1.0"),
        ("aiter", NORM, {"cast_before_weight": True}, "cast_before_weight"),
        ("aiter", ADD, {"residual": widened("residual")}, "another residual"),
        ("aiter", QK, {"q": None, "q_weight": None, "q_eps": None}, "k alone"),
        ("aiter", QUANT, {"scale_mode": "rceil"}, "scale_mode even only"),
        ("aiter", QUANT, {"quant": "nvfp4"}, "fp8_tensor"),
    ],
)
def test_what_a_library_cannot_do_is_refused(
    entrant: str, call: tuple[str, str], change: dict[str, Any], reason: str
) -> None:
    operator, label = call
    values = model(operator, label)
    for name, value in change.items():
        values[name] = value(values) if callable(value) else value
    with pytest.raises(NotServed, match=reason):
        adapted(entrant, operator)(values)


def test_flash_kda_is_kept_out_of_fla() -> None:
    adapted("fla", "chunk_kda")
    assert os.environ["FLA_FLASH_KDA"] == "0"


@pytest.mark.parametrize("entrant", ["vllm-kda", "sglang"])
def test_values_survive_a_library_that_writes_over_them(entrant: str) -> None:
    values = model(*KDA)
    before = values["v"].clone()
    adapted(entrant, "chunk_kda")(values).call()
    assert torch.equal(values["v"], before)


def test_states_of_sequences_go_back_to_their_slots_alone() -> None:
    values = model(*K3)
    pool, slots = values["initial_state"], values["initial_state_indices"]
    before = pool.clone()
    bound = adapted("flash-kda", "chunk_kda")(values)
    assert torch.equal(pool, before), "binding computes nothing"
    bound.call()
    changed = (pool != before).flatten(1).any(1)
    lengths = values["cu_seqlens"].diff()
    assert set(changed.nonzero().flatten().tolist()) == set(slots[lengths > 0].tolist())
    assert bound.outputs()["final_state"] is pool and pool.dtype == torch.bfloat16


def test_a_schedule_is_made_while_binding() -> None:
    made: list[int] = []

    class Schedule(_standins_mla.Schedule):
        def __setattr__(self, name: str, value: Any) -> None:
            made.append(1)
            super().__setattr__(name, value)

    from archkey.bench.peers import _flashmla

    library = _flashmla.Library(
        _standins_mla.with_kvcache, _standins_mla.sparse_fwd, lambda: (Schedule(), None)
    )
    for bind, call in ((_flashmla.decode, MLA), (_flashmla.sparse_decode, SPARSE)):
        made.clear()
        bound = bind(library, model(*call))
        assert made and "schedule" in bound.how


def test_entrants_have_names_of_their_own() -> None:
    assert len(ROUTES) == sum(len(peer.routes) for peer in PEERS_B)
    assert len({peer.name for peer in PEERS_B}) == len(PEERS_B)

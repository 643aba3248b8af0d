# SPDX-License-Identifier: Apache-2.0
"""Adapters of FLA, FlashKDA, FlashMLA, SGLang, vLLM and aiter, over stand-ins for the libraries."""

from __future__ import annotations

import math
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
    with pytest.MonkeyPatch.context() as patch, installed(
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
        verdict = compare(operator, listen(session, operator, inputs()), bound.outputs(), peer=True)
        assert verdict.passed, (name, verdict)
        bound.call()  # in place or not, it can be repeated
        passed += 1
    assert passed, refused

# SPDX-License-Identifier: Apache-2.0
"""Calls of the operators, and whether an adapter's results are the truth about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch

from archkey.bench.entrant import Adapter, NotServed
from archkey.bench.gate import Truth, compare, listen
from archkey.bench.peers import PEERS
from archkey.bench.workload import Supply
from archkey.conformance.case import Maker
from archkey.conformance.cases import cases_of
from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.mxfp4_linear.inputs import Linear
from archkey.conformance.cases.rmsnorm.models import norm, qk_norm
from archkey.conformance.cases.rmsnorm_quant.inputs import Quant
from archkey.ops import OPERATORS
from archkey.session import session_of

Make = Callable[[Maker], Mapping[str, Any]]

NORM = norm("rmsnorm", 5, 256).inputs
GEMMA = norm("rmsnorm", 5, 256, weight_bias=1.0).inputs
ADD = norm("fused_add_rmsnorm", 5, 256).inputs
QK = qk_norm(7, 256, 128, 64).inputs
K_ALONE = qk_norm(7, 0, 128, 64).inputs
TENSOR = Quant(5, 256, "fp8_tensor")
TENSOR_ADD = Quant(5, 256, "fp8_tensor", residual="bf16")
TOKEN = Quant(5, 256, "fp8_token", residual="bf16")
GROUP = Quant(5, 256, "fp8_group")
COLUMN = Quant(5, 256, "fp8_group", layout="col", residual="bf16")
LINEAR = Linear((5,), 256, 48, bias="bf16")
MERGE = Merge(6, 4, 64, ((1.0, -1.0), (0.0, 2.0)))
DECODE = Decode(16, (37, 70, 64), page=16)
DECODE_EQUAL = Decode(16, (70, 70), page=16, lse="")
DECODE_RAGGED = Decode(4, (37, 70), (3, 1), page=64)
PREFILL = Prefill(4, (20, 9), (31, 9), projection=True)
PREFILL_EQUAL = Prefill(4, (20, 20), (20, 20), lse="")
RAGGED = Attention(((1, 50), (20, 33), (3, 17)))
WINDOW = Attention(((1, 50), (20, 33)), window=8, softcap=20.0, lse="")
ONE_EACH = Attention(((1, 50), (1, 33), (1, 16)))
HND = Attention(((1, 50), (20, 33)), layout="HND", lse="")
EQUAL = Attention(((1, 50), (1, 50)), lse="")

OF_THEIR_OWN = ("torch", "liger", "quack", "flashinfer", "fa3", "vllm")
"""Peers whose tests name small calls; the others are called with the exam's models."""


def one_part_empty(make: Maker) -> dict[str, torch.Tensor]:
    """A merge whose first part has no keys here and there, and the second has always."""
    lse = {name: make.randn(9, 4, dtype=torch.float32) for name in ("lse_a", "lse_b")}
    lse["lse_a"][::2] = -math.inf
    return {"out_a": make.randn(9, 4, 128), "out_b": make.randn(9, 4, 128), **lse}


def _tidy(values: dict[str, Any]) -> dict[str, Any]:
    """-1 for every list entry that is to be ignored."""
    for lists, pools in (("indices", ("kv", "kv_cache")), ("extra_indices", ("extra_kv_cache",))):
        for pool in pools:
            if values.get(lists) is not None and values.get(pool) is not None:
                keys = values[pool].shape[:-1].numel()
                outside = (values[lists] < 0) | (values[lists] >= keys)
                values[lists] = values[lists].masked_fill(outside, -1)
    if values.get("quant") == "mxfp4" and values.get("scale_mode") is None:
        values["scale_mode"] = "even"  # what None is on AMD's targets
    return values


def _without_padding(values: dict[str, Any]) -> dict[str, Any]:
    """Without the rows past the last sequence."""
    tokens = int(values["cu_seqlens"][-1])
    rows = {name: values[name][:, :tokens] for name in ("q", "k", "v", "g", "beta")}
    return {**values, **rows}


@cache
def exam(operator: str) -> dict[str, Make]:
    """The exam's models, and calls of ours, by name."""
    made: dict[str, Make] = {
        case.name: lambda make, case=case: _tidy(dict(case.inputs(make)))  # type: ignore[misc]
        for case in cases_of(OPERATORS[operator])
        if case.real
    }
    first = next(iter(made.values()))
    if operator == "chunk_kda":
        padded = next(make for name, make in made.items() if "padding" in name)
        made["without padding"] = lambda make: _without_padding(dict(padded(make)))
    if operator == "merge_attn_states":
        made["no row without keys"] = one_part_empty
    if operator == "sparse_mla_prefill":
        made["no lengths"] = lambda make: {**first(make), "topk_length": None}
    return made


def model(operator: str, label: str = "") -> tuple[str, Make]:
    """(operator, the first of its exam's models whose name has `label` in it)."""
    return operator, next(make for name, make in exam(operator).items() if label in name)


def examined(*operators: str) -> list[tuple[str, str]]:
    """(entrant, operator) of each route that the exam's models are for."""
    return [
        (f"{peer.name}:{route.label}".rstrip(":"), route.operator)
        for peer in PEERS
        for route in peer.routes
        if route.operator in operators and peer.name not in OF_THEIR_OWN
    ]


def given(make: Make, **changes: Any) -> dict[str, Any]:
    """The keyword arguments of a call, the same each time; a change may be made from them."""
    values = dict(make(Supply("cpu", 0)))
    for name, change in changes.items():
        values[name] = change(values) if callable(change) else change
    return values


def widened(name: str) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """A change: the argument with a gap after each of its rows."""
    return lambda values: torch.cat([values[name]] * 2, -1)[..., : values[name].shape[-1]]


@cache
def truth(operator: str, make: Make) -> Truth:
    """What the call comes to, worked out once for all entrants."""
    return listen(session_of(torch.device("cpu")), operator, given(make))


def off(operator: str, adapter: Adapter, make: Make, *, every: bool = True) -> float:
    """How far the worst result is from float64, in tolerances; a call can be repeated.

    every  result that is asked for has to be there, and no other
    """
    want = truth(operator, make)
    with torch.inference_mode():
        bound = adapter(given(make))
        bound.call()
        outputs = bound.outputs()
        assert not every or set(outputs) == set(want.outputs)
        verdict = compare(operator, want, outputs, peer=False)
        peers = compare(operator, want, outputs, peer=True)
        assert peers.passed, f"{peers.output} is off by {peers.error}"
        bound.call()  # in place or not
    return verdict.error / verdict.tolerance if verdict.tolerance else 0.0


def serves(operator: str, adapter: Adapter) -> None:
    """Each of the exam's models that the adapter does not refuse is right; it serves one."""
    refused = {}
    for name, make in exam(operator).items():
        try:
            off(operator, adapter, make, every=False)
        except NotServed as refusal:
            refused[name] = refusal
    assert len(refused) < len(exam(operator)), refused


def refusal(adapter: Adapter, make: Make, changes: Mapping[str, Any]) -> str:
    """Why the call is not served."""
    values = given(make, **changes)
    with pytest.raises(NotServed) as refused:
        adapter(values)
    return str(refused.value)

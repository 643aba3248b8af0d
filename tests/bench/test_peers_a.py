# SPDX-License-Identifier: Apache-2.0
"""PyTorch's adapters on the CPU, and the table of the first half of the peers."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _calls as calls
from tests.bench._calls import given, off

from archkey.bench.entrant import NotServed
from archkey.bench.peers import PEERS, pytorch, standing
from archkey.bench.peers.table_a import PEERS_A
from archkey.conformance.cases.kda.models import CASES as KDA
from archkey.ops import OPERATORS

GATES = [case for case in KDA if case.operator == "kda_gate"]

EAGER = (
    ("rmsnorm", calls.NORM),
    ("fused_add_rmsnorm", calls.ADD),
    ("fused_qk_rmsnorm", calls.QK),
    ("fused_qk_rmsnorm", calls.K_ALONE),
    ("rmsnorm_quant", calls.TENSOR),
    ("rmsnorm_quant", calls.TENSOR_ADD),
    ("rmsnorm_quant", calls.TOKEN),
    ("rmsnorm_quant", calls.GROUP),
    ("rmsnorm_quant", replace(calls.COLUMN, mode="pow2", y="bf16", x2=(0, 128))),
    ("rmsnorm_quant", replace(calls.GROUP, bias=1.0)),
    ("merge_attn_states", calls.MERGE),
    *(("kda_gate", case.inputs) for case in GATES),
)


@pytest.mark.parametrize(("operator", "make"), EAGER, ids=lambda x: x if isinstance(x, str) else "")
def test_torch_eager(operator: str, make: Any) -> None:
    # An addition that rounds the sum before the norm is off by more than a rounding.
    assert off(operator, getattr(pytorch, operator), make) < 1.2


@pytest.mark.slow  # the compiler of C++ takes its time
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler for Inductor")
@pytest.mark.filterwarnings("ignore")  # of Inductor's own making
@pytest.mark.parametrize(
    ("operator", "make"), EAGER[:10], ids=lambda x: x if isinstance(x, str) else ""
)
def test_torch_compiled(operator: str, make: Any) -> None:
    assert off(operator, getattr(pytorch, f"{operator}_compiled"), make) < 1


def test_scales_by_column_lie_by_column() -> None:
    bound = pytorch.rmsnorm_quant(given(calls.COLUMN))
    bound.call()
    assert bound.outputs()["out_scale"].stride(0) == 1


ATTENTION = (
    ("mla_decode", "mla_decode_bmm", calls.DECODE_EQUAL),
    ("mla_prefill", "mla_prefill_sdpa", calls.PREFILL_EQUAL),
    ("mla_prefill", "mla_prefill_sdpa", replace(calls.PREFILL_EQUAL, causal=False)),
    ("unified_attention", "unified_attention_sdpa", calls.EQUAL),
    ("unified_attention", "unified_attention_sdpa", replace(calls.EQUAL, layout="HND")),
)


@pytest.mark.parametrize(("operator", "function", "make"), ATTENTION)
def test_torch_attention(operator: str, function: str, make: Any) -> None:
    off(operator, getattr(pytorch, function), make)


REFUSED = (
    ("rmsnorm", calls.GEMMA, {}, "weight_bias = 1.0"),
    ("rmsnorm", calls.NORM, {"cast_before_weight": True}, "cast_before_weight"),
    ("rmsnorm", calls.NORM, {"out": torch.empty(5, 256)}, "out of float32 beside bfloat16"),
    ("fused_add_rmsnorm", calls.ADD, {"residual": torch.zeros(5, 256)}, "residual of float32"),
    ("rmsnorm_quant", calls.TOKEN, {"quant": "mxfp4"}, "no mxfp4"),
    ("rmsnorm_quant", replace(calls.TOKEN, bias=1.0, x2=(0, 128)), {}, "with weight_bias"),
    ("merge_attn_states", replace(calls.MERGE, pairs=((-torch.inf, 0.0),)), {}, "without keys"),
    ("mla_decode_bmm", calls.DECODE_EQUAL, {"return_lse": True}, "return_lse = True"),
    ("mla_decode_bmm", replace(calls.DECODE_EQUAL, kv_lens=(70, 9)), {}, "unequal length"),
    ("mla_decode_bmm", replace(calls.DECODE_EQUAL, kv_lens=(70, 0)), {}, "without keys"),
    ("mla_decode_bmm", replace(calls.DECODE_EQUAL, q_lens=2), {}, "causal mask"),
    ("mla_decode_bmm", replace(calls.DECODE_EQUAL, q_lens=(1, 1), spare=2), {}, "past the last"),
    ("mla_prefill_sdpa", replace(calls.PREFILL_EQUAL, k_lens=(30, 30)), {}, "causal mask"),
    ("mla_prefill_sdpa", replace(calls.PREFILL, lse=""), {}, "unequal length"),
    ("unified_attention_sdpa", calls.WINDOW, {}, "window_size = (7, 0)"),
    ("unified_attention_sdpa", replace(calls.EQUAL, sinks="bf16"), {}, "sinks = a tensor"),
    ("unified_attention_sdpa", replace(calls.EQUAL, cache="fp8"), {}, "k of float8_e4m3fn"),
)


@pytest.mark.parametrize(("function", "make", "changes", "why"), REFUSED)
def test_torch_refuses(function: str, make: Any, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(NotServed) as refused:
        getattr(pytorch, function)(given(make, **changes))
    assert why in str(refused.value)


def exported(module: str) -> set[str]:
    """`__all__` of a module that cannot be imported here."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        for node in ast.parse(file.read()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
    raise AssertionError(f"{module} exports nothing")


@pytest.mark.parametrize("peer", PEERS_A, ids=lambda peer: peer.name)
def test_each_adapter_is_a_route(peer: Any) -> None:
    assert {route.function for route in peer.routes} == exported(peer.module)
    assert {route.operator for route in peer.routes} <= set(OPERATORS)
    names = [(route.operator, route.label) for route in peer.routes]
    assert len(set(names)) == len(names)
    assert peer in PEERS and peer.title and peer.install and peer.home.startswith("https://")


def test_standing() -> None:
    by_name = {peer.name: standing(peer) for peer in PEERS_A}
    assert by_name["torch"].state == "installed" and by_name["torch"].versions
    fa3 = by_name["fa3"]
    if fa3.state == "not installed":
        assert "flash_attn_interface or vllm" in fa3.reason

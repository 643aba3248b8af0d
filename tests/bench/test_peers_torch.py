# SPDX-License-Identifier: Apache-2.0
"""PyTorch's adapters on the CPU: eager, compiled, and its attention."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _peer_calls as calls
from tests.bench._peer_calls import given, off, refusal

from archkey.bench.peers import pytorch
from archkey.conformance.cases.kda.models import CASES as KDA

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
    ("mxfp4_linear", calls.LINEAR),
    ("mxfp4_linear", replace(calls.LINEAR, dtype="fp16", bias="fp16", own_dtypes=True)),
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
    ("mxfp4_linear", replace(calls.LINEAR, dtype="mxfp4"), {}, "x of uint8"),
    ("mxfp4_linear", calls.LINEAR, {"out_dtype": torch.float32}, "out_dtype = torch.float32"),
    ("mxfp4_linear", replace(calls.LINEAR, bias="fp32"), {}, "bias of float32"),
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
def test_refuses(function: str, make: Any, changes: dict[str, Any], why: str) -> None:
    assert why in refusal(getattr(pytorch, function), make, changes)

# SPDX-License-Identifier: Apache-2.0
"""Norms, plain and quantised, of Liger, QuACK, FlashInfer, vLLM and aiter, over stand-ins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _peer_calls as calls
from tests.bench._peer_calls import examined, model, off, refusal, serves, widened

ROUTES = (
    ("liger", "rmsnorm", calls.NORM),
    ("liger", "rmsnorm", calls.GEMMA),
    ("liger", "fused_add_rmsnorm", calls.ADD),
    ("quack", "rmsnorm", calls.GEMMA),
    ("quack", "fused_add_rmsnorm", calls.ADD),
    ("flashinfer", "rmsnorm", calls.NORM),
    ("flashinfer", "rmsnorm", calls.GEMMA),
    ("flashinfer", "fused_add_rmsnorm", calls.ADD),
    ("flashinfer", "fused_qk_rmsnorm", calls.QK),
    ("flashinfer", "fused_qk_rmsnorm", calls.K_ALONE),
    ("flashinfer", "rmsnorm_quant", calls.TENSOR),
    ("flashinfer", "rmsnorm_quant", calls.TENSOR_ADD),
    ("vllm", "rmsnorm", calls.NORM),
    ("vllm", "fused_add_rmsnorm", calls.ADD),
    ("vllm", "fused_qk_rmsnorm", calls.QK),
    ("vllm", "fused_qk_rmsnorm", calls.K_ALONE),
    *(
        ("vllm", "rmsnorm_quant", make)
        for make in (calls.TENSOR, calls.TENSOR_ADD, calls.TOKEN, calls.GROUP, calls.COLUMN)
    ),
)


@pytest.mark.parametrize(("entrant", "operator", "make"), ROUTES)
def test_computes_the_operator(adapted: Any, entrant: str, operator: str, make: Any) -> None:
    off(operator, adapted(entrant, operator), make)


@pytest.mark.parametrize(
    ("entrant", "operator"),
    examined("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm_quant"),
)
def test_serves_models_of_the_exam(adapted: Any, entrant: str, operator: str) -> None:
    serves(operator, adapted(entrant, operator))


LATE = {"cast_before_weight": True}
GAPS = {"x": torch.zeros(5, 512).bfloat16()[:, :256]}
NO_Q = {"q": None, "q_weight": None, "q_eps": None}
MXFP4 = model("rmsnorm_quant", "MXFP4")
REFUSED = (
    ("liger", "rmsnorm", calls.NORM, GAPS, "contiguous"),
    ("liger", "fused_add_rmsnorm", calls.ADD, {"residual": torch.zeros(5, 256)}, "of float32"),
    ("quack", "rmsnorm", calls.NORM, LATE, "cast_before_weight"),
    ("flashinfer", "rmsnorm", calls.NORM, LATE, "cast_before_weight"),
    ("flashinfer", "rmsnorm", calls.NORM, {"weight_bias": 0.5}, "weight_bias of 0.5"),
    ("flashinfer", "rmsnorm_quant", calls.TOKEN, {}, "a static scale only"),
    ("flashinfer", "rmsnorm_quant", replace(calls.TENSOR, y="bf16"), {}, "unquantized_out"),
    ("vllm", "rmsnorm", calls.GEMMA, {}, "weight_bias = 1.0"),
    ("vllm", "rmsnorm_quant", replace(calls.GROUP, mode="pow2"), {}, "scale_mode = 'pow2'"),
    ("vllm", "rmsnorm_quant", replace(calls.TOKEN, x2=(0, 128)), {}, "x2 = a tensor"),
    ("aiter", *model("rmsnorm"), {"weight_bias": 1.0}, "weight_bias = 1.0"),
    ("aiter", *model("rmsnorm"), LATE, "cast_before_weight"),
    ("aiter", *model("fused_add_rmsnorm"), {"residual": widened("residual")}, "another residual"),
    ("aiter", *model("fused_qk_rmsnorm"), NO_Q, "k alone"),
    ("aiter", *MXFP4, {"scale_mode": "rceil"}, "scale_mode even only"),
    ("aiter", *MXFP4, {"quant": "nvfp4"}, "fp8_tensor"),
)


@pytest.mark.parametrize(("entrant", "operator", "make", "changes", "why"), REFUSED)
def test_refuses(
    adapted: Any, entrant: str, operator: str, make: Any, changes: dict[str, Any], why: str
) -> None:
    assert why in refusal(adapted(entrant, operator), make, changes)

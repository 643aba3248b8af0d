# SPDX-License-Identifier: Apache-2.0
"""Small calls of the operators, and whether an adapter's results are the truth about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from archkey.bench.entrant import Adapter, Bound
from archkey.bench.gate import compare, listen
from archkey.bench.workload import Supply
from archkey.conformance.case import Maker
from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.rmsnorm.models import norm, qk_norm
from archkey.conformance.cases.rmsnorm_quant.inputs import Quant
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


def given(make: Make, **changes: Any) -> dict[str, Any]:
    """The keyword arguments of a call, the same each time."""
    return {**make(Supply("cpu", 0)), **changes}


def bind(adapter: Adapter, make: Make, **changes: Any) -> Bound:
    """Bind, and call once."""
    bound = adapter(given(make, **changes))
    bound.call()
    return bound


def off(operator: str, adapter: Adapter, make: Make, **changes: Any) -> float:
    """How far the worst result is from float64; every result asked for is there."""
    truth = listen(session_of(torch.device("cpu")), operator, given(make, **changes))
    with torch.inference_mode():
        outputs = bind(adapter, make, **changes).outputs()
    assert set(outputs) == set(truth.outputs)
    verdict = compare(operator, truth, outputs, peer=False)
    peers = compare(operator, truth, outputs, peer=True)
    assert peers.passed, f"{verdict.output} is off by {verdict.error}"
    return verdict.error / verdict.tolerance

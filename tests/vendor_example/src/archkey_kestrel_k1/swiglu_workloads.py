# SPDX-License-Identifier: Apache-2.0
"""What kestrel_swiglu is measured with: experts of real models, as `archkey bench` names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from archkey.bench.workload import Cost, Workload
from archkey.conformance.case import Maker

__all__ = ["COSTS", "WORKLOADS"]


def _expert(make: Maker, tokens: int, width: int, limit: float | None = None) -> Mapping[str, Any]:
    return {"x": make.randn(tokens, 2 * width), "limit": limit}


def _workload(model: str, tokens: int, quick: bool, **sizes: Any) -> Workload:
    inputs = partial(_expert, tokens=tokens, **sizes)
    return Workload("kestrel_swiglu", model, 1, f"T{tokens}", inputs, "expert", quick)


WORKLOADS = (
    _workload("DeepSeek-V3", 64, True, width=2048),
    _workload("DeepSeek-V3", 1024, False, width=2048),
    _workload("gpt-oss-120b", 64, True, width=2880, limit=7.0),
)


def _cost(inputs: Mapping[str, Any]) -> Cost:
    """x read once, half as much written; no matrix product."""
    return Cost(0.0, 1.5 * inputs["x"].nbytes)


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = MappingProxyType(
    {"kestrel_swiglu": _cost}
)

# SPDX-License-Identifier: Apache-2.0
"""Workloads: every operator has some, and what they call it with is what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.bench._shrunk import small

from archkey.bench.workload import Supply, Workload, cost_of, workloads_of
from archkey.conformance.cases.tensors import NOWHERE
from archkey.kernel import resolve
from archkey.ops import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_every_operator_has_workloads_with_names_of_their_own(operator: Any) -> None:
    workloads = workloads_of(operator)
    names = [workload.name for workload in workloads]
    assert len(set(names)) == len(names)
    assert 1 <= sum(workload.quick for workload in workloads) <= 3


def _distinct() -> Iterator[Any]:
    """One workload for each call that is left when sizes are cut down."""
    for operator in OPERATORS.values():
        calls: dict[Any, Workload] = {}
        for workload in workloads_of(operator):
            calls.setdefault(small(workload.inputs), workload)
        for call, workload in calls.items():
            yield pytest.param(operator, call, id=f"{operator.name} {workload.name}")


def _same(one: Any, other: Any) -> bool:
    """Whether values are equal, tensors bit by bit."""
    if not isinstance(one, torch.Tensor):
        return bool(one == other)
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    pair = [x.contiguous().flatten().view(torch.uint8) for x in (one, other)]
    return torch.equal(*pair)


@pytest.mark.parametrize(("operator", "call"), list(_distinct()))
def test_a_workload_is_reproducible_harmless_and_accepted(operator: Any, call: Any) -> None:
    inputs, again, other = (dict(call(Supply("cpu", seed))) for seed in (1, 1, 2))
    assert inputs.keys() == again.keys()
    assert all(_same(value, again[name]) for name, value in inputs.items())
    assert not all(_same(value, other[name]) for name, value in inputs.items())

    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value.float().isfinite().all(), name
        elif isinstance(value, torch.Tensor) and value.dtype != torch.uint8:
            assert value.max() < NOWHERE - 10000, name
            assert value.min() >= 0 or name == "ssm_state_indices", name  # -1: not written

    assert cost_of(operator, inputs).bytes > 0
    with torch.inference_mode():
        result = resolve(operator.function)(**inputs)
    outputs = result if isinstance(result, tuple) else (result,)
    floats = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    assert all(x.float().isfinite().all() for x in floats)


def test_decode_takes_the_sizes_of_its_title() -> None:
    workloads = {w.name: w for w in workloads_of(OPERATORS["mla_decode"])}
    chosen = workloads["deepseek-v3-tp8-b1-kv1k"]
    assert chosen.title == "DeepSeek-V3 TP8, b1 kv1k"
    inputs = chosen.inputs(Supply("cpu", 0))
    assert inputs["q"].shape == (1, 1, 16, 576)
    assert inputs["cache_seqlens"].tolist() == [1024]
    assert inputs["kv_cache"].shape[1:] == (64, 576)
    assert not inputs["return_lse"]


def test_scales_of_packed_rows_are_no_powers_of_two() -> None:
    workloads = workloads_of(OPERATORS["sparse_mla_decode"])
    inputs = small(workloads[0].inputs)(Supply("cpu", 0))
    assert inputs["kv_format"] == "fp8_v32"
    scales = inputs["kv_cache"][..., 512:528].contiguous().view(torch.float32)
    powers = torch.log2(scales) == torch.log2(scales).round()
    assert powers.float().mean() < 0.01

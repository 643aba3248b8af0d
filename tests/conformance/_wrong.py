# SPDX-License-Identifier: Apache-2.0
"""Deliberately wrong kernels: each must fail a case whose name says what is wrong.

A mistake is `wrong(right, inputs, outputs) -> results`: it gets the reference, which it may call
with other arguments or whose results it may change, and the arguments of a launch by name. A
result of None leaves its output as it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import Result, judge
from archkey.kernel import resolve
from archkey.ops import OPERATORS

Wrong = Callable[[Callable[..., Any], dict[str, Any], dict[str, Any]], Sequence[Any]]


def edges(*operators: str) -> list[Case]:
    """The edge cases of `operators`."""
    return [case for name in operators for case in cases_of(OPERATORS[name]) if case.edge]


def name_of(case: Case) -> str:
    return f"{case.operator} {case.name}"


def catching(
    monkeypatch: pytest.MonkeyPatch, operator: str, wrong: Wrong, about: str
) -> Result | None:
    """The first case about `about` that a wrong kernel does not pass.

    One that ended in an exception is passed over: it says nothing about the case.
    """
    put_in_place(monkeypatch, wrong)
    session = archkey.open("cpu")
    chosen = [case for case in edges(operator) if about in case.name]
    assert chosen, f"no case is about {about}"
    seen = *OPERATORS[operator].outputs, "Fault"
    results = (judge(session, case) for case in chosen)
    return next((r for r in results if not r.passed and r.reason.split(":")[0] in seen), None)


def put_in_place(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """The kernel of the `cpu` plugin is `wrong`; what the judge takes as truth stays."""

    def build(problem: Any, build: Any) -> Callable[..., None]:
        operator = build.operator
        right = resolve(operator.reference)

        def run(*arguments: Any) -> None:
            inputs = dict(zip(operator.inputs, arguments, strict=False))
            outputs = arguments[len(operator.inputs) :]
            named = dict(zip(operator.outputs, outputs, strict=True))
            for result, out in zip(wrong(right, inputs, named), outputs, strict=True):
                if out is not None and result is not None:
                    out.copy_(result)

        return run

    monkeypatch.setattr(importlib.import_module("archkey.reference.plugin"), "build", build)


def given(**changes: Any) -> Wrong:
    """Some arguments are replaced: by a value, or by a function of what was given."""

    def wrong(right: Any, inputs: Mapping[str, Any], outputs: Any) -> Any:
        return right(**{name: changed(changes, name, value) for name, value in inputs.items()})

    return wrong


def changed(changes: Mapping[str, Any], name: str, value: Any) -> Any:
    if name not in changes or value is None:
        return value
    change = changes[name]
    return change(value) if callable(change) else change


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel reads that takes a strided tensor for a contiguous one."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    return tensor.as_strided(tensor.shape, strides)


def in_32_bits(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel finds whose offsets are 32 bits wide: nothing past element 2^31."""
    seen = tensor.clone()
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        for index in range(size):
            if index * stride >= 2**31:
                seen.select(dim, index).zero_()
    return seen


def nothing_past_2_31(name: str) -> Wrong:
    """An output whose addresses are 32 bits wide: what lies past element 2^31 stays unwritten."""

    def wrong(right: Any, inputs: Mapping[str, Any], outputs: dict[str, Any]) -> Any:
        results = list(right(**inputs))
        at = list(outputs).index(name)
        out, result = outputs[name], results[at]
        for dim, stride in enumerate(out.stride()):
            near = [i for i in range(out.shape[dim]) if i * stride < 2**31]
            if len(near) < out.shape[dim]:
                out[(slice(None),) * dim + (near,)] = result[(slice(None),) * dim + (near,)].to(
                    out.dtype
                )
                results[at] = None
        return results

    return wrong

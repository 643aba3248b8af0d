# SPDX-License-Identifier: Apache-2.0
"""Wrong kernels: the reference with one mistake built in, put in the place of the `cpu` plugin's.

The judge takes its truth from the reference itself, which nobody touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import archkey
from archkey.conformance.case import Case
from archkey.conformance.judge import judge
from archkey.kernel import resolve
from archkey.reference import plugin

Values = dict[str, Any]
Right = Callable[..., Values]
Wrong = Callable[[Right, Values, Values], Values]
"""From the right kernel, its inputs and its outputs by name: the results, by name, to be stored.

What is missing in the results stays unwritten.
"""


def session_of(monkeypatch: pytest.MonkeyPatch, wrong: Wrong, fp8: str) -> archkey.Session:
    """A CPU of that flavour of FP8 whose only kernel is `wrong`."""

    def build(problem: Any, context: Any) -> Callable[..., None]:
        operator = context.operator

        def right(**inputs: Any) -> Values:
            results = resolve(operator.reference)(**inputs)
            return dict(zip(operator.outputs, results, strict=True))

        def run(*arguments: Any) -> None:
            count = len(operator.inputs)
            inputs = dict(zip(operator.inputs, arguments[:count], strict=True))
            outputs = dict(zip(operator.outputs, arguments[count:], strict=True))
            for name, result in wrong(right, inputs, outputs).items():
                if outputs[name] is not None:
                    outputs[name].copy_(result)

        return run

    monkeypatch.setattr(plugin, "build", build)
    session = archkey.open("cpu")
    monkeypatch.setattr(session, "fp8", fp8)
    return session


def check(
    monkeypatch: pytest.MonkeyPatch, edges: list[Case], operator: str, about: str, wrong: Wrong
) -> None:
    """`wrong` fails a case about `about`, in both flavours of FP8 where that is what it is about.

    It fails by its numbers, or by an index outside of a tensor, and not because it is no kernel.
    """
    cases = [c for c in edges if c.operator == operator and c.model == about]
    assert cases
    for fp8 in ("e4m3fn", "e4m3fnuz") if "FP8" in about else ("e4m3fn",):
        session = session_of(monkeypatch, wrong, fp8)
        results = [judge(session, case) for case in cases]
        reasons = [result.reason for result in results if not result.passed]
        assert reasons
        assert [r for r in reasons if "Error" in r and "index" not in r] == []


def given(**changes: Any) -> Wrong:
    """The right kernel of other inputs; a function makes an input of itself, None stays None."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        return right(**inputs | {k: _changed(inputs[k], v) for k, v in changes.items()})

    return wrong


def stored(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    """Other results of the right kernel."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        return results | {name: change(results[name]) for name, change in changes.items()}

    return wrong


def contiguous(*names: str) -> Wrong:
    """Inputs read, or outputs written, as if their strides were those of their shape."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        read = [name for name in names if inputs.get(name) is not None]
        results = right(**inputs | {name: _packed(inputs[name]) for name in read})
        for name in names:
            if name in outputs:
                _packed(outputs[name]).copy_(results.pop(name))
        return results

    return wrong


def in_32_bits(name: str) -> Wrong:
    """Offsets past element 2^31 of an input give zeros, those of an output are not written."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        tensor = (inputs | outputs)[name]
        offset = torch.zeros(tensor.shape, dtype=torch.int64)
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            steps = torch.arange(size) * stride
            offset += steps.view(-1, *(1,) * (tensor.dim() - dim - 1))
        near = offset < 2**31
        assert not near.all()
        if name in inputs:
            seen = tensor.clone(memory_format=torch.contiguous_format)
            _bytes(seen)[~near] = 0
            results = right(**inputs | {name: seen})
            # A cache that is written, too, is written where it was read.
            return {n: r for n, r in results.items() if n not in names_of(inputs, outputs, name)}
        results = right(**inputs)
        outputs[name][near] = results.pop(name).to(tensor.dtype)[near]
        return results

    return wrong


def names_of(inputs: Values, outputs: Values, name: str) -> list[str]:
    """Outputs that are the input called `name`."""
    return [n for n, t in outputs.items() if t is inputs[name]]


def codes_of_the_other_flavour(*names: str) -> Wrong:
    """e4m3fn read as e4m3fnuz, or the other way round."""
    other = {
        torch.float8_e4m3fn: torch.float8_e4m3fnuz,
        torch.float8_e4m3fnuz: torch.float8_e4m3fn,
    }

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(other.get(tensor.dtype, tensor.dtype))

    return given(**dict.fromkeys(names, swap))


def _changed(value: Any, change: Any) -> Any:
    if not callable(change):
        return change
    return None if value is None else change(value)


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    strides = torch.empty(tensor.shape, device="meta").stride()
    return tensor.as_strided(tensor.shape, strides)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Something that torch can scatter into."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor

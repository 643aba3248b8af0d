# SPDX-License-Identifier: Apache-2.0
"""Deliberately wrong kernels: each must fail the case whose name says what is wrong.

A wrong kernel is the reference with one mistake built in, put in the place of the `cpu` plugin's.
The judge takes its truth from the reference itself, which nobody touches.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import judge
from archkey.kernel import resolve
from archkey.ops import OPERATORS
from archkey.reference import plugin

Values = dict[str, Any]
Right = Callable[..., Values]
Wrong = Callable[[Right, Values, Values], Values]
"""From the right kernel, its inputs and its outputs by name: the results, by name, to be stored.

What is missing in the results stays unwritten.
"""

Mistake = tuple[str, str, str, Wrong]
"""The operator, what is wrong, what the cases are about that must see it, and the kernel.

About: `Case.model` as a whole, and after ": " what the label must have, "ties: quant=nvfp4".
"""


def edges(*operators: str) -> list[Case]:
    """The edge cases of `operators`."""
    return [case for name in operators for case in cases_of(OPERATORS[name]) if case.edge]


def name_of(case: Case) -> str:
    return f"{case.operator} {case.name}"


def named(operator: str, about: str) -> list[Case]:
    """The cases of `operator` that are about that; at least one."""
    model, _, label = about.partition(": ")
    wanted = set(filter(None, label.split(", ")))
    found = [
        case
        for case in cases_of(OPERATORS[operator])
        if case.model == model and wanted <= set(case.label.split(", "))
    ]
    assert found, f"no case of {operator} is about {about}"
    return found


def each(mistakes: Iterable[Mistake]) -> pytest.MarkDecorator:
    """A test with the arguments `operator`, `about` and `wrong` for each of `mistakes`."""
    return pytest.mark.parametrize(
        ("operator", "about", "wrong"),
        [
            pytest.param(operator, about, wrong, id=f"{operator}: {what} - {about}")
            for operator, what, about, wrong in mistakes
        ],
    )


REFERENCE = "cpu:torch"

FLAVOURS = {"e4m3fn": "cpu", "e4m3fnuz": "rocm_gfx942"}
"""Targets, to be pretended where they are not the CPU, by the FP8 that their tensors have."""


def put_in_place(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """The kernel REFERENCE is `wrong`; what the judge takes as truth stays."""

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


def check(monkeypatch: pytest.MonkeyPatch, operator: str, about: str, wrong: Wrong) -> None:
    """`wrong` fails a case about `about`, in both flavours of FP8 where that is what it is about.

    It fails by its numbers, by what it writes, or by an index outside of a tensor, and no case
    fails because `wrong` is no kernel.
    """
    put_in_place(monkeypatch, wrong)
    seen = {*OPERATORS[operator].outputs, "Fault", "IndexError"}
    for fp8 in FLAVOURS if "fp8" in about.lower() else ("e4m3fn",):
        session = archkey.open(FLAVOURS[fp8])
        results = [judge(session, case, kernel=REFERENCE) for case in named(operator, about)]
        reasons = [result.reason for result in results if not result.passed]
        assert reasons, f"passes every case with {fp8}"
        assert [reason for reason in reasons if reason.partition(":")[0] not in seen] == []


def given(**changes: Any) -> Wrong:
    """The right kernel of other inputs; a function makes an input of itself, None stays None."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        return right(**inputs | {name: _of(inputs[name], to) for name, to in changes.items()})

    return wrong


def stored(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    """Other results of the right kernel."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        return results | {name: _of(results[name], to) for name, to in changes.items()}

    return wrong


def mutant(reference: Callable[..., Any], *edits: tuple[str, str]) -> Wrong:
    """`reference` with pieces of its text replaced."""
    source = inspect.getsource(reference)
    for old, new in edits:
        assert source.count(old) == 1, f"the reference changed: {old!r}"
        source = source.replace(old, new)
    space = dict(vars(sys.modules[reference.__module__]))
    exec(source, space)

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = space[reference.__name__](**inputs)
        return dict(zip(outputs, results, strict=True))

    return wrong


def last_unwritten(name: str) -> Wrong:
    """The last row of an output stays as it was."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results, out = right(**inputs), outputs[name]
        if out is not None:
            out[:-1] = results.pop(name)[:-1].to(out.dtype)
        return results

    return wrong


def contiguous(*names: str) -> Wrong:
    """Inputs read, or outputs written, as if their strides were those of their shape."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        read = [name for name in names if inputs.get(name) is not None]
        results = right(**inputs | {name: packed(inputs[name]) for name in read})
        for name in names:
            if name not in inputs:
                packed(outputs[name]).copy_(results.pop(name))
        return results

    return wrong


def read_in_32_bits(*names: str) -> Wrong:
    """What lies at offsets past element 2^31 of an input is found to be zero."""

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone(memory_format=torch.contiguous_format)
        _bytes(copy)[~_near(tensor)] = 0
        return copy

    return given(**dict.fromkeys(names, seen))


def written_in_32_bits(name: str) -> Wrong:
    """What lies at offsets past element 2^31 of an output stays unwritten."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results, out = right(**inputs), outputs[name]
        if out is not None:
            near, result = _near(out), results.pop(name).to(out.dtype)
            _bytes(out)[near] = _bytes(result)[near]
        return results

    return wrong


def strides_of(name: str, other: str, first: int = 0) -> Wrong:
    """An input read, or an output written, with strides of another tensor of as many dimensions.

    first  from which dimension on: 1 for the stride between heads alone
    """

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        tensor, like = ((inputs | outputs)[key] for key in (name, other))
        if tensor is None or like is None or not first < tensor.dim() - 1 == like.dim() - 1:
            return right(**inputs)
        strides = (*tensor.stride()[:first], *like.stride()[first:-1], 1)
        if name in inputs:
            return right(**inputs | {name: tensor.as_strided(tensor.shape, strides)})
        results = right(**inputs)
        tensor.as_strided(tensor.shape, strides).copy_(results.pop(name))
        return results

    return wrong


def in_16_bits_of_rows(name: str) -> Wrong:
    """Rows of an output from 65535 on stay unwritten: where a grid's second dimension ends."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results, out = right(**inputs), outputs[name]
        near = results.pop(name).flatten(0, -2)[:65535].to(out.dtype)
        out.view(-1, out.shape[-1])[:65535] = near
        return results

    return wrong


def read_after_write(name: str) -> Wrong:
    """The first 8192 columns of an output are stored, then its input is read for the others."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        out = outputs[name]
        if out is None or out.shape[-1] <= 8192:
            return right(**inputs)
        first = right(**inputs)[name][..., :8192].to(out.dtype)
        out[..., :8192] = first
        results = right(**inputs)
        return results | {name: torch.cat([first, results[name][..., 8192:].to(out.dtype)], -1)}

    return wrong


def codes_of_the_other_flavour(*names: str) -> Wrong:
    """e4m3fn read as e4m3fnuz, or the other way round."""
    other = {
        torch.float8_e4m3fn: torch.float8_e4m3fnuz,
        torch.float8_e4m3fnuz: torch.float8_e4m3fn,
    }

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(other.get(tensor.dtype, tensor.dtype))

    return given(**dict.fromkeys(names, swap))


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel finds that takes a strided tensor for a contiguous one."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    return tensor.as_strided(tensor.shape, strides)


def _of(value: Any, change: Any) -> Any:
    if not callable(change):
        return change
    return None if value is None else change(value)


def _near(tensor: torch.Tensor) -> torch.Tensor:
    """Elements whose offset a signed number of 32 bits holds."""
    offset = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = torch.arange(size) * stride
        offset += steps.view(-1, *(1,) * (tensor.dim() - dim - 1))
    return offset < 2**31


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Something that torch can scatter into."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor

# SPDX-License-Identifier: Apache-2.0
"""Right first: what is wrong on the inputs it would be timed with gets no time.

The truth is the operator's reference in float64, on the same inputs and the same device. archkey's
own kernels are held to the exam's bounds. A peer is held to wider ones: they tell a wrong
convention from other roundings, and the error stands beside the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.guard import poison
from archkey.conformance.judge import truth_of
from archkey.conformance.tolerances import bound, distance, source_of
from archkey.kernel import resolve
from archkey.session import Session

__all__ = ["Truth", "Verdict", "compare", "hear", "listen", "soil"]

PEER_BOUND = 2e-2
"""Of a peer's 16-bit output. P rounded to bfloat16 costs 0.002 to 0.004, to FP8 0.012 to 0.017;
a logarithm in the wrong base, a scale that is dropped or a key too many cost more than 0.05."""

PEER_FP8_BOUND = 8e-2
"""Of a peer's FP8 output, or 16-bit output of FP8 inputs that are rounded again on the way."""


@dataclass(frozen=True)
class Truth:
    """What a call comes to.

    problem   the operator's Problem
    outputs   float64, by name; those that the call does not ask for are absent
    source    what it is computed from, see `tolerances.source_of`
    """

    problem: Any
    outputs: Mapping[str, torch.Tensor]
    source: str


@dataclass(frozen=True)
class Verdict:
    """The output that is worst for what it may be: its distance from the truth, and the limit."""

    passed: bool
    error: float
    tolerance: float
    output: str


class _Listener:
    """Stands in for a session during one call, and hears what the kernel is called with."""

    def __init__(self, session: Session, heard: Callable[[Any, tuple[Any, ...]], None]) -> None:
        self._session, self._heard = session, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Any) -> Callable[..., None]:
        """In the place of the kernel."""
        return lambda *arguments: self._heard(problem, arguments)


def hear(session: Session, operator: str, inputs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The Problem of a public call, and what its kernel is called with: inputs, then outputs.

    Nothing is launched, and no input changes.
    """
    found: list[tuple[Any, tuple[Any, ...]]] = []
    listener = _Listener(session, lambda problem, arguments: found.append((problem, arguments)))
    with torch.inference_mode():
        resolve(session.operators[operator].function).__wrapped__(listener, **inputs)
    (call,) = found
    return call


def listen(session: Session, operator: str, inputs: Mapping[str, Any]) -> Truth:
    """The truth of a public call; nothing is launched, and no input changes."""
    contract = session.operators[operator]
    problem, arguments = hear(session, operator, inputs)
    count = len(contract.inputs)
    with torch.inference_mode():
        truth = truth_of(contract, arguments[:count])
    named = zip(contract.outputs, truth, strict=True)
    asked = dict(zip(contract.outputs, arguments[count:], strict=True))
    outputs = {name: value for name, value in named if asked[name] is not None}
    return Truth(problem, outputs, source_of(arguments[:count]))


def compare(
    operator: str, truth: Truth, outputs: Mapping[str, torch.Tensor], *, peer: bool
) -> Verdict:
    """Judge `outputs`. A peer may leave some out, but not all."""
    verdicts = [
        _one(operator, name, outputs[name], want, truth.source, peer)
        for name, want in truth.outputs.items()
        if name in outputs
    ]
    if not verdicts:
        return Verdict(False, float("inf"), 0.0, "none")
    return max(verdicts, key=lambda v: (not v.passed, v.error / v.tolerance if v.tolerance else 0))


def _one(
    operator: str, name: str, out: torch.Tensor, want: torch.Tensor, source: str, peer: bool
) -> Verdict:
    allowed = bound(operator, name, out.dtype, "device", source).value
    if peer and out.dtype.is_floating_point:
        fp8 = source == "fp8" or "float8" in str(out.dtype)
        allowed = max(allowed, PEER_FP8_BOUND if fp8 else PEER_BOUND)
    error = distance(out, want, name)
    return Verdict(error <= allowed, error, allowed, name)


def soil(device: torch.device, size: int = 4 << 30) -> None:
    """See that memory handed out next holds NaN: a call that writes nothing must not pass."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        poison(torch.empty(size // 2, dtype=torch.bfloat16, device=device))

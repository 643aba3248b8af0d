# SPDX-License-Identifier: Apache-2.0
"""Run one case through its public function and judge every output against float64.

The judge taps the one point where all operators meet: the launch. There it sees the kernel's
inputs and outputs by name, so that no operator needs glue of its own - a vendor's neither. The
kernel runs on copies between poisoned guards, with outputs that start as NaN.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.distributions import WINDOW
from archkey.conformance.guard import Guarded, poison
from archkey.conformance.refusal import refused
from archkey.conformance.tolerances import (
    SEQUENTIAL,
    bound,
    distance,
    source_of,
    windows,
)
from archkey.errors import Unsupported
from archkey.explain import headline
from archkey.kernel import resolve
from archkey.launch import interpreting, products_in_order
from archkey.ops import Operator
from archkey.selection import Decision
from archkey.session import Session

__all__ = [
    "Fault",
    "Measure",
    "Measured",
    "Result",
    "by_distance",
    "implementation_of",
    "judge",
    "maker_of",
    "torch_device",
    "truth_of",
    "written",
]

M = TypeVar("M", bound=Maker)


@dataclass(frozen=True)
class Result:
    """What became of a case. `error` and `tolerance` are those of its worst output.

    skipped: the kernel that was asked for does not accept the problem, or the operator does not
    serve it on this device; `reason` says why.
    """

    operator: str
    model: str
    problem: str
    kernel: str
    why: str
    degraded: bool
    error: float
    tolerance: float
    passed: bool
    seconds: float
    reason: str
    skipped: bool = False

    def to_json(self) -> dict[str, Any]:
        """All fields; an infinite error is the text "inf", since JSON has no such number."""
        error = self.error if self.error < float("inf") else "inf"
        return {**self.__dict__, "error": error}


class Measured(NamedTuple):
    """An error, the most that is allowed, and what it is of: an output, or a statistic of one."""

    error: float
    allowed: float
    what: str

    @property
    def passed(self) -> bool:
        """Whether it is allowed."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """How much of what is allowed it takes; where nothing is, all or nothing."""
        if self.allowed:
            return self.error / self.allowed
        return float("inf") if self.error else 0.0


Measure = Callable[
    [Operator, Sequence[Any], Mapping[str, torch.Tensor], Sequence[Any]], list[Measured]
]
"""Errors of a launch: of its operator, its inputs, its outputs by name, and the truth in order."""


def by_distance(level: str) -> Measure:
    """One error an output, or two, as `tolerances` says for the exam's `level`."""

    def measure(
        operator: Operator,
        inputs: Sequence[Any],
        found: Mapping[str, torch.Tensor],
        truth: Sequence[Any],
    ) -> list[Measured]:
        source, measured = source_of(inputs), []
        for name, want in zip(operator.outputs, truth, strict=True):
            if name in found:
                out = found[name]
                allowed = bound(operator.name, name, out.dtype, level, source).value
                measured.append(Measured(distance(out, want, name), allowed, name))
                if SEQUENTIAL.get(operator.name) == name:
                    what = f"{name}: the worst {WINDOW} tokens"
                    measured.append(Measured(windows(out, want), allowed, what))
        return measured

    return measure


class Fault(Exception):
    """A kernel did what no kernel may do, whatever its numbers are."""


class _Tap:
    """Stands in for a session during one call, and keeps what the kernel reads and writes."""

    def __init__(self, session: Session, kernel: str | None, measure: Measure, runs: int) -> None:
        self._session = session
        self._kernel, self._measure, self._runs = kernel, measure, runs
        self.decision: Decision | None = None
        self.seconds = 0.0
        self.errors: list[Measured] = []
        self.found: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Any) -> Callable[..., None]:
        """The bound kernel, wrapped: truth first, then the kernel on poisoned outputs."""
        plan = self._session.plan(problem, kernel=self._kernel)
        self.decision = plan.decision
        operator = self._session.operators[problem.operator]

        def tapped(*arguments: Any) -> None:
            inputs = arguments[: len(operator.inputs)]
            outputs = arguments[len(operator.inputs) :]
            truth = truth_of(operator, inputs)
            found = self.found = self._run(operator, plan.run, arguments)
            self.errors += self._measure(operator, inputs, found, truth)
            for name, out in zip(operator.outputs, outputs, strict=True):
                if out is not None:
                    out.copy_(found[name])

        return tapped

    def _run(
        self, operator: Operator, run: Callable[..., None], arguments: Sequence[Any]
    ) -> dict[str, torch.Tensor]:
        """The outputs of `run`, as often as asked for: the bits must be the same every time."""
        names = (*operator.inputs, *operator.outputs)
        first: dict[str, torch.Tensor] = {}
        for _ in range(self._runs):
            guarded = Guarded(names, arguments, len(operator.outputs))

            def watched(*moved: Any, guarded: Guarded = guarded) -> None:
                guarded.watch()
                self.seconds = _timed(run, moved)

            found = written(operator, watched, guarded.arguments)
            if fault := guarded.trespass():
                raise Fault(fault)
            for name, one in first.items():
                if _differing(one, found[name]):
                    raise Fault(f"two runs on the same inputs differ in {name}")
            first = first or found
        return first


def truth_of(operator: Operator, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The outputs of a kernel that is called with `inputs`, in float64."""
    named = dict(zip(operator.inputs, inputs, strict=True))
    return resolve(operator.reference)(**named, compute_dtype=torch.float64)  # type: ignore[no-any-return]


def judge(
    session: Session,
    case: Case,
    seed: int = 0,
    *,
    kernel: str | None = None,
    level: str = "device",
    runs: int = 1,
    measure: Measure | None = None,
) -> Result:
    """Run `case` on `session`. An exception is a result that did not pass, with its reason.

    kernel  the id of the kernel to judge; default: the one that `session` would choose
    level   the exam's level, which tolerances depend on
    runs    how often the kernel runs on the same inputs; the bits must not differ
    measure  how errors are counted; default: by the distance of `tolerances`
    """
    tap = _Tap(session, kernel, measure or by_distance(level), runs)
    error, allowed, reason, passed, skipped = float("inf"), 0.0, "", False, False
    try:
        inputs = case.inputs(maker_of(session, seed))
        implementation = implementation_of(session, case)
        # A bit that hangs on where in a tile a row lies is the interpreter's, not the kernel's.
        ordered = products_in_order() if case.again and interpreting() else nullcontext()
        with torch.inference_mode(), ordered:
            returned = implementation(tap, **inputs)
            measured = tap.errors
            if not measured:
                if not _empty(returned):
                    raise Fault("the operator launched no kernel, or one without outputs")
                measured = [Measured(0.0, 0.0, "nothing to compute")]
            elif case.again and all(one.passed for one in measured):
                measured = _again(tap, implementation, case.again(maker_of(session, seed)))
        # The one that is worst for what it may be; where nothing may be, the largest.
        error, allowed, reason = max(measured, key=lambda one: (one.share, one.error))
        passed = all(one.passed for one in measured)
    except Exception as failure:  # a kernel may raise anything, and the next case still runs
        reason = f"{type(failure).__name__}: {failure}"
        if kernel and (refusal := refused(failure, kernel)):
            skipped, reason = True, refusal
        elif tap.decision is None and _not_served(failure):
            skipped = True
    decision = tap.decision
    return Result(
        operator=case.operator,
        model=case.model,
        problem=case.label,
        kernel=kernel or (decision.chosen.id if decision and decision.chosen else "none"),
        why=headline(decision) if decision else "",
        degraded=bool(decision and decision.degraded),
        error=error,
        tolerance=allowed,
        passed=passed,
        seconds=tap.seconds,
        reason=reason,
        skipped=skipped,
    )


def implementation_of(session: Session, case: Case) -> Callable[..., Any]:
    """The function `(session, **inputs)` behind the operator's public one."""
    return resolve(session.operators[case.operator].function).__wrapped__  # type: ignore[no-any-return]


def _again(
    tap: _Tap, implementation: Callable[..., Any], arrangements: Iterable[Arrangement]
) -> list[Measured]:
    """How many elements of the outputs in `tap` have other bits in each of `arrangements`.

    If one of these is wrong by itself, what is wrong.
    """
    own, differing = tap.found, []
    for about, inputs, rows in arrangements:
        implementation(tap, **inputs)
        if wrong := [one for one in tap.errors if not one.passed]:
            return [one._replace(what=f"{one.what}: {about}") for one in wrong]
        for name, found in tap.found.items():
            of_it = rows[name] if isinstance(rows, Mapping) else rows
            # What is not ragged has all queries of a sequence in one entry of dimension 0.
            size = found.numel() // len(of_it)
            count = _differing(own[name].reshape(-1, size)[of_it], found)
            differing.append(Measured(count, 0.0, f"{name}: {about}"))
    return differing


def _not_served(failure: Exception) -> bool:
    """Whether the operator itself says that this device cannot: NVFP4 where there is none."""
    return isinstance(failure, Unsupported) and failure.decision is None


def _empty(returned: Any) -> bool:
    """Whether a call had nothing to compute: no launch is needed for outputs without elements."""
    outputs = returned if isinstance(returned, tuple) else (returned,)
    tensors = [out for out in outputs if isinstance(out, torch.Tensor)]
    return bool(tensors) and all(not out.numel() for out in tensors)


def maker_of(session: Session, seed: int = 0, kind: type[M] = Maker) -> M:  # type: ignore[assignment]
    """Makes tensors where the session's are, in its flavour of FP8; `kind` says how."""
    flavour = session.fp8 if session.fp8 in ("e4m3fn", "e4m3fnuz") else "e4m3fn"
    return kind(torch_device(session), seed, flavour)


def torch_device(session: Session) -> str:
    """Where tensors for `session` live; a pretended device is interpreted on the CPU."""
    device = session.device
    kind = device.torch_kind
    if device.source == "pretend" or kind == "cpu":
        return "cpu"
    return f"{kind}:{device.index}"


def written(
    operator: Operator, run: Callable[..., None], arguments: Sequence[Any]
) -> dict[str, torch.Tensor]:
    """Run a kernel once, and give its outputs by name; those that nobody asked for are absent.

    They start as NaN, so that what is not written shows; those that are inputs too start as such.
    """
    count = len(operator.inputs)
    read = {
        value.untyped_storage().data_ptr()
        for value in arguments[:count]
        if isinstance(value, torch.Tensor) and value.numel()
    }
    named = zip(operator.outputs, arguments[count:], strict=True)
    outputs = {name: out for name, out in named if out is not None}
    for out in outputs.values():
        if out.untyped_storage().data_ptr() not in read:
            poison(out)
    run(*arguments)
    return outputs


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _differing(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many elements of as many differ, as integers: NaN equals NaN."""
    kind = _BITS[one.element_size()]
    return int((one.view(kind) != other.view(kind).reshape(one.shape)).sum())


def _timed(run: Callable[..., None], arguments: Sequence[Any]) -> float:
    """Seconds of one run, up to the end of the device's work."""
    away = any(isinstance(a, torch.Tensor) and a.device.type != "cpu" for a in arguments)
    if away:
        torch.accelerator.synchronize()
    start = time.perf_counter()
    run(*arguments)
    if away:
        torch.accelerator.synchronize()
    return time.perf_counter() - start

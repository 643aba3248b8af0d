# SPDX-License-Identifier: Apache-2.0
"""Run one case through its public function and judge every output against float64.

The judge taps the one point where all operators meet: the launch. There it sees the kernel's
inputs and outputs by name, so that no operator needs glue of its own - a vendor's neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Case, Maker
from archkey.conformance.tolerances import distance, tolerance
from archkey.explain import headline
from archkey.kernel import resolve
from archkey.selection import Decision
from archkey.session import Session

__all__ = ["Result", "judge", "torch_device"]


@dataclass(frozen=True)
class Result:
    """What became of a case. `error` and `tolerance` are those of its worst output."""

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

    def to_json(self) -> dict[str, Any]:
        """All fields; an infinite error is the text "inf", since JSON has no such number."""
        error = self.error if self.error < float("inf") else "inf"
        return {**self.__dict__, "error": error}


class _Tap:
    """Stands in for a session during one call, and keeps what the kernel reads and writes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.decision: Decision | None = None
        self.seconds = 0.0
        self.errors: list[tuple[float, float, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Any) -> Callable[..., None]:
        """The bound kernel, wrapped: truth first, then the kernel on poisoned outputs."""
        run = self._session.launcher(problem)
        self.decision = self._session.decide(problem)
        operator = self._session.operators[problem.operator]

        def tapped(*arguments: Any) -> None:
            inputs = arguments[: len(operator.inputs)]
            outputs = arguments[len(operator.inputs) :]
            truth = resolve(operator.reference)(
                **dict(zip(operator.inputs, inputs, strict=True)), compute_dtype=torch.float64
            )
            _poison(inputs, outputs)
            self.seconds = _timed(run, arguments)
            for name, out, want in zip(operator.outputs, outputs, truth, strict=True):
                if out is not None:
                    allowed = tolerance(operator.name, name, out.dtype).value
                    self.errors.append((distance(out, want), allowed, name))

        return tapped


def judge(session: Session, case: Case, seed: int = 0) -> Result:
    """Run `case` on `session`. An exception is a result that did not pass, with its reason."""
    tap = _Tap(session)
    fp8 = session.fp8 if session.fp8 in ("e4m3fn", "e4m3fnuz") else "e4m3fn"
    error, allowed, reason = float("inf"), 0.0, ""
    try:
        inputs = case.inputs(Maker(torch_device(session), seed, fp8))
        implementation = resolve(session.operators[case.operator].function).__wrapped__
        with torch.inference_mode():
            implementation(tap, **inputs)
        # The output that is worst for what it may be; exact ones count as 0 or infinitely bad.
        error, allowed, reason = max(tap.errors, key=lambda e: (e[0] > e[1], e[0]))
    except Exception as failure:  # a kernel may raise anything, and the next case still runs
        reason = f"{type(failure).__name__}: {failure}"
    passed = bool(tap.errors) and all(e <= limit for e, limit, _ in tap.errors)
    decision = tap.decision
    return Result(
        operator=case.operator,
        model=case.model,
        problem=case.label,
        kernel=decision.chosen.id if decision and decision.chosen else "none",
        why=headline(decision) if decision else "",
        degraded=bool(decision and decision.degraded),
        error=error,
        tolerance=allowed,
        passed=passed,
        seconds=tap.seconds,
        reason=reason,
    )


def torch_device(session: Session) -> str:
    """Where tensors for `session` live; a pretended device is interpreted on the CPU."""
    device = session.device
    if device.source == "pretend" or device.target.platform == "cpu":
        return "cpu"
    kind = "cuda" if device.target.platform in ("cuda", "rocm") else device.target.platform
    return f"{kind}:{device.index}"


def _poison(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Fill outputs with NaN, so that what is not written shows; those that are inputs stay."""
    read = {
        t.untyped_storage().data_ptr() for t in inputs if isinstance(t, torch.Tensor) and t.numel()
    }
    for out in outputs:
        if out is not None and out.untyped_storage().data_ptr() not in read:
            if out.dtype.is_floating_point:
                out.fill_(float("nan"))
            else:
                out.view(torch.uint8).fill_(0xA5)


def _timed(run: Callable[..., None], arguments: tuple[Any, ...]) -> float:
    """Seconds of one run, up to the end of the device's work."""
    on_gpu = any(isinstance(a, torch.Tensor) and a.is_cuda for a in arguments)
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(*arguments)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start

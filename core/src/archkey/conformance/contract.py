# SPDX-License-Identifier: Apache-2.0
"""Level "contract": what can be wrong before a number is computed.

Of a kernel: its builder can be imported, and each example problem is either accepted, with a
tuning, or refused with a reason. Of an operator: its reference and its function exist, and a
tensor of the wrong kind is refused by name before anything is launched.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import maker_of
from archkey.conformance.refusal import against
from archkey.errors import ArchkeyError, ArgumentError
from archkey.kernel import Kernel, resolve
from archkey.ops import Operator
from archkey.session import Session

__all__ = ["FUNCTION", "check_builder", "check_example", "check_refusal", "refusals"]

FUNCTION = "public function"
"""Stands for the kernel where an operator's own promises are examined."""

_WRONG: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "of complex numbers": lambda t: torch.zeros(t.shape, dtype=torch.complex64, device=t.device),
    "on another device": lambda t: torch.empty_like(t, device="meta"),
    "as text": str,
}
"""What no operator can take in place of a tensor."""


def check_builder(kernel: Kernel) -> str:
    """What is wrong with the kernel's builder; "" if nothing is."""
    build = kernel.builder()
    if not callable(build):
        return f"{kernel.build} is no function, but {build!r:.100}"
    try:
        inspect.signature(build).bind("problem", "build")
    except TypeError as error:
        return f"{kernel.build} must take (problem, build): {error}"
    return ""


def check_example(session: Session, kernel: Kernel, problem: Any) -> tuple[str, str]:
    """("failed", why), ("skipped", the refusal) or ("passed", "") for one problem."""
    decision = session.decide(problem, kernel=kernel.id)
    if decision != session.decide(problem, kernel=kernel.id):
        return "failed", "asked twice, it is decided in two ways"
    if hash(problem) != hash(problem._replace()) or problem != problem._replace():
        return "failed", "two equal problems are two keys"
    if decision.chosen is None:
        (mine,) = [r for r in decision.rejected if r.kernel == kernel.id]
        if not (mine.required and mine.found and mine.remedy):
            return "failed", "it refuses without saying what it requires, found and advises"
        return "skipped", against(decision, kernel.id)
    if kernel.tuning is not None:
        kernel.tuning.lookup(problem, session.versions)
    return "passed", ""


def _smallest(operator: Operator) -> Case | None:
    """A case whose inputs stand in for all valid ones: an edge, if there is any."""
    cases = sorted(cases_of(operator), key=lambda case: not case.edge)
    return cases[0] if cases else None


def refusals(session: Session, operator: Operator) -> Iterator[str]:
    """Names of the wrong calls of `operator`: "q on another device"."""
    case = _smallest(operator)
    if case is None:
        return
    for name, value in case.inputs(maker_of(session)).items():
        if isinstance(value, torch.Tensor):
            yield from (f"{name} {wrong}" for wrong in _WRONG)


def check_refusal(session: Session, operator: Operator, call: str) -> str:
    """What is wrong with how `operator` takes the wrong call; "" if it refuses it by name."""
    case = _smallest(operator)
    if case is None:
        raise ArchkeyError(f"{operator.name} has no case")
    name, _, wrong = call.partition(" ")
    inputs = dict(case.inputs(maker_of(session)))
    inputs[name] = _WRONG[wrong](inputs[name])
    implementation = resolve(operator.function).__wrapped__
    try:
        with torch.inference_mode():
            implementation(_NoLaunch(session), **inputs)
    except ArgumentError as error:
        known = {*inspect.signature(implementation).parameters} - {"session"}
        if not known & set(re.findall(r"\w+", str(error))):
            return f"refused without the name of an argument: {error}"
        return ""
    except _Launched:
        return "it was not refused: the kernel would have run"
    except Exception as error:
        return f"it must be an ArgumentError, raised {type(error).__name__}: {error}"
    return "it was not refused"


class _Launched(Exception):
    """A call came as far as its kernel."""


class _NoLaunch:
    """Stands in for a session: a launch is an exception."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.problems: dict[Any, Any] = {}  # nothing that passed before passes unseen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Any) -> Callable[..., None]:
        raise _Launched

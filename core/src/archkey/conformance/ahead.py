# SPDX-License-Identifier: Apache-2.0
"""Kernels of an exam's cases, compiled before the card has to wait for the compiler.

In worker processes on a pretended card, which nobody touches, with the facts of the real one. What
they make lies in archkey's store, where the card's worker finds it. What fails here is left
to that worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from archkey._listener import Listener
from archkey.conformance.case import Case
from archkey.conformance.examine import Options, case_of, strategy_of
from archkey.conformance.judge import implementation_of, maker_of
from archkey.conformance.levels import RANDOM, Item, Outcome
from archkey.ops import Problem
from archkey.session import Session

__all__ = ["build"]


def build(
    session: Session, item: Item, options: Options, claims: Path, begin: Callable[[str], None]
) -> Outcome:
    """Bind the Problems of `item`'s cases to its kernel; the outcome says that nothing ran.

    claims  a folder that all processes share: a Problem is built by the first one that comes to it
    """

    def hear(problem: Problem) -> None:
        if _claimed(item.kernel, problem, claims):
            session.plan(problem, kernel=item.kernel)

    tap = Listener(session, hear)

    def one(case: Case) -> None:
        implementation = implementation_of(session, case)
        with suppress(Exception, SystemExit), torch.inference_mode():
            for inputs in _calls(session, case, options.seed):
                implementation(tap, **inputs)

    begin(item.case)
    with suppress(Exception, SystemExit):  # whatever it is, the card's worker says it
        if item.case != RANDOM:
            one(case_of(session, item))
        elif strategy := strategy_of(session, item):
            from archkey.conformance.randomised import each  # hypothesis is an extra

            each(strategy, options.examples, options.seed, one)
    return Outcome(item, "skipped", reason="built, not run")


def _calls(session: Session, case: Case, seed: int) -> Iterator[Mapping[str, Any]]:
    """The keyword arguments of each call of `case`, one after the other."""
    yield case.inputs(maker_of(session, seed))
    for arrangement in case.again(maker_of(session, seed)) if case.again else ():
        yield arrangement.inputs


def _claimed(kernel: str, problem: Problem, claims: Path) -> bool:
    """Whether this process is the first one to ask."""
    name = hashlib.sha256(f"{kernel} {problem!r}".encode()).hexdigest()
    try:
        (claims / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

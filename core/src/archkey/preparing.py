# SPDX-License-Identifier: Apache-2.0
"""`session.prepare`: what problems will run, compiled by several processes at a time.

Each compiles single programs into the store, from where this process loads them. Processes, not
threads: a tenth to a fifth of a compilation holds Python's lock, LLVM's options are one set for a
whole process, and a compiler that crashes takes its process with it, which must not be the engine.
What they cannot do, this process does (`archkey._prepare_pool`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from archkey.compilation import to_compile
from archkey.errors import ArchkeyError, ArgumentValueError, FrozenError, PrepareError
from archkey.launch import Plan, interpreting
from archkey.ops import Problem
from archkey.probe.host import usable_cores

if TYPE_CHECKING:
    from archkey.session import Session

__all__ = ["Unit", "prepare"]

_WORTH = 3
"""Programs from which on workers are started: each needs a second or two before it compiles."""


class Unit(NamedTuple):
    """One program to compile: the `number`-th that the kernel's builder asks for.

    problems  that need it; the builder is asked with the first
    """

    operator: str
    kernel: str
    number: int
    body: str
    problems: list[Problem]

    def __str__(self) -> str:
        return f"{self.body} for {self.operator}"


Step = Callable[[str], None]


def prepare(
    session: Session, problems: Iterable[Problem], jobs: int | None, progress: bool | None
) -> list[Plan]:
    """See `Session.prepare`."""
    if jobs is not None and jobs < 1:
        raise ArgumentValueError(f"prepare: jobs must be 1 or more, found {jobs}")
    listed = list(problems)
    units = [] if interpreting() else _units(session, listed)
    failed: dict[Problem, BaseException] = {}
    if len(units) >= _WORTH and (workers := jobs or usable_cores() or 1) > 1:
        from archkey._prepare_pool import compiled  # processes, pipes: not for every session

        with _told(len(units), progress) as step:
            for outcome in compiled(session.device, units, workers):
                step(f"compiled {outcome.unit}")
                if outcome.died:  # it would take this process, too
                    died = ArchkeyError(f"{outcome.unit.body} in the compiler: {outcome.died}")
                    failed |= dict.fromkeys(outcome.unit.problems, died)
        units = []
    with _told(len(units), progress) as step:
        for problem in dict.fromkeys(listed):
            try:
                if problem not in failed:
                    session.plan(problem)
            except FrozenError:
                raise
            except ArchkeyError as error:
                failed[problem] = error
            for unit in units:
                if unit.problems[0] == problem:
                    step(f"compiled {unit}")
    if failed:
        raise PrepareError(failed)
    return [session.plan(problem) for problem in listed]


def _units(session: Session, problems: Iterable[Problem]) -> list[Unit]:
    """What has to be compiled, each program once. Problems that need no program are bound."""
    found: dict[str, Unit] = {}
    for problem in dict.fromkeys(problems):
        build = session.draft(problem)
        for number, program in enumerate(build.programs if build else ()):
            with suppress(Exception):  # binding says what is wrong with a program
                key = to_compile(program, session.device)
                if key is not None and build is not None:
                    named = build.kernel.operator, build.kernel.id
                    unit = Unit(*named, number, program.body.__name__, [])
                    found.setdefault(key, unit).problems.append(problem)
    return list(found.values())


@contextmanager
def _told(steps: int, progress: bool | None) -> Iterator[Step]:
    """A bar of `steps`, where one is wanted and there is something to tell."""
    if not steps or not (sys.stderr.isatty() if progress is None else progress):
        yield lambda name: None
        return
    from archkey._progress import progress as bar

    with bar(steps) as step:
        yield step

# SPDX-License-Identifier: Apache-2.0
"""Random problems of an operator, judged one after the other, and the smallest one that fails.

hypothesis draws and shrinks; the same seed draws the same problems.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from archkey.conformance.case import Case
from archkey.conformance.judge import Result

__all__ = ["Drawn", "draw", "each"]

SHRINKING = 30.0
"""Seconds to look for a smaller problem after the first one that failed."""


@dataclass
class Drawn:
    """What came of it. `worst` passed or, if any failed, is the smallest that did."""

    judged: int = 0
    skipped: int = 0
    worst: tuple[Case, Result] | None = None


def draw(
    strategy: SearchStrategy[Case],
    judge: Callable[[Case], Result],
    examples: int,
    number: int,
    begin: Callable[[str], None],
) -> Drawn:
    """Judge `examples` cases of `strategy`, drawn with seed `number`.

    begin  is told each case's name before it runs, in case it never ends
    """
    drawn = Drawn()
    failed_at: float | None = None

    def one(case: Case) -> None:
        nonlocal failed_at
        if failed_at is not None and time.monotonic() - failed_at > SHRINKING:
            return
        begin(case.name)
        result = judge(case)
        if result.skipped:
            drawn.skipped += 1
            return
        drawn.judged += 1
        before = drawn.worst
        if not result.passed:
            drawn.worst = case, result
            failed_at = failed_at or time.monotonic()
            raise _Failed
        if before is None or (before[1].passed and _share(result) > _share(before[1])):
            drawn.worst = case, result

    try:
        each(strategy, examples, number, one)
    except Exception:
        # _Failed, or hypothesis on top of it; an error of the strategy itself is neither.
        if drawn.worst is None or drawn.worst[1].passed:
            raise
    return drawn


def each(
    strategy: SearchStrategy[Case], examples: int, number: int, do: Callable[[Case], None]
) -> None:
    """`do` for `examples` cases; which they are follows from `number`. What it raises shrinks."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @seed(number)
    @given(strategy)
    def one(case: Case) -> None:
        do(case)

    one()


class _Failed(Exception):
    """A drawn problem did not pass."""


def _share(result: Result) -> float:
    """How much of what is allowed the error takes."""
    return result.error / result.tolerance if result.tolerance else result.error

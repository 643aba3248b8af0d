# SPDX-License-Identifier: Apache-2.0
"""One measured cost of the host, and how it is measured."""

from __future__ import annotations

import subprocess
import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "best", "do_nothing", "in_new_process", "ratio"]


@dataclass(frozen=True)
class Row:
    """One cost.

    value  None if it could not be measured; `note` says why
    limit  what the design allows, None where it sets none
    note   what a reader of the cost must know
    ratio  of a row for scale: `value` over what archkey costs for the same, its
           `rmsnorm(x, weight, out=...)` or its import; None where the two are no match
    """

    what: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""
    ratio: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the cost is within its limit; what has none, or was not measured, is."""
        return self.limit is None or self.value is None or self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """All fields and `passed`."""
        return {**self.__dict__, "passed": self.passed}


def best(call: Callable[[], object], repeats: int, number: int = 20_000) -> float:
    """The least disturbed of `repeats` means over `number` calls [microseconds]."""
    return min(timeit.repeat(call, number=number, repeat=repeats)) / number * 1e6


def ratio(cost: float, ours: float) -> float | None:
    """`cost` over ours; None if ours is lost in the noise."""
    return cost / ours if ours > 0 else None


def do_nothing(*arguments: Any) -> None:
    """Stands for a launch, so that what remains is the way there."""


def in_new_process(code: str, timeout: float | None = None) -> str:
    """What `code` prints in a fresh Python. Raises what `subprocess.run` raises."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    return done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Numbers given to a kernel body, looked up by problem. Types and lookup; plugins hold the rows.

A table is read top down and the first row whose conditions hold is used, so rows go from special
to general and the last one has no condition: every problem gets a tuning.

A row may be fenced: numbers that are known to be wrong with some version of a distribution say so
in `requires`, are passed over where they do not hold, and the next row that fits is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archkey.conditions import Condition
from archkey.requirements import Requirement

__all__ = ["Fence", "Lookup", "Row", "Table"]


@dataclass(frozen=True)
class Row:
    """`values` for the problems in `when`.

    requires  versions that the numbers are good with; a row that is bad with one is a fence:
              `Requirement("triton", "!=3.7.0", "wrong sums with 8 warps", "accuracy")`
    measured  where the numbers come from
    spills    bytes of memory beside its registers that a thread may take with them: NVIDIA's stack
              frame, AMD's private segment (`archkey.conformance.machine_code`)
    """

    values: Any
    when: tuple[Condition, ...] = ()
    requires: tuple[Requirement, ...] = ()
    measured: str = "not measured"
    spills: int = 0

    def __post_init__(self) -> None:
        if type(self.spills) is not int or self.spills < 0:
            raise ValueError(f"spills is a number of bytes, not {self.spills!r}")

    def accepts(self, problem: Any) -> bool:
        """Whether this row is for `problem`, whatever is installed."""
        return all(c.holds(getattr(problem, c.field)) for c in self.when)

    def violated(self, versions: Mapping[str, str]) -> list[Requirement]:
        """The rules that the installed `versions` break."""
        return [rule for rule in self.requires if not rule.satisfied_by(versions)]


@dataclass(frozen=True)
class Fence:
    """A row that is for the problem and was passed over.

    number  of the row in its table, from 1
    rule    the first that was violated, and what was `found` instead
    """

    number: int
    row: Row
    rule: Requirement
    found: str

    def to_json(self) -> dict[str, Any]:
        """The keys `row`, `values`, `required`, `found`, `severity`, `why`; values as text."""
        return {
            "row": self.number,
            "values": str(self.row.values),
            "required": str(self.rule),
            "found": self.found,
            "severity": self.rule.severity,
            "why": self.rule.why,
        }


@dataclass(frozen=True)
class Lookup:
    """The row that is used, its number in the table from 1, and the fenced ones before it."""

    number: int
    row: Row
    fenced: tuple[Fence, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The keys `row`, `values`, `when`, `measured`, `spills`, `fenced`; values as text."""
        return {
            "row": self.number,
            "values": str(self.row.values),
            "when": [str(condition) for condition in self.row.when],
            "measured": self.row.measured,
            "spills": self.row.spills,
            "fenced": [fence.to_json() for fence in self.fenced],
        }


@dataclass(frozen=True)
class Table:
    """Rows of one kernel on one target, special to general."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows or self.rows[-1].when or self.rows[-1].requires:
            raise ValueError("a tuning table ends with a row that has no condition")
        kinds = {type(row.values) for row in self.rows}
        if len(kinds) > 1:
            names = ", ".join(sorted(k.__name__ for k in kinds))
            raise ValueError(f"a tuning table holds one type of values, not {names}")

    def lookup(self, problem: Any, versions: Mapping[str, str]) -> Row:
        """The first row that is for `problem` and that the installed `versions` allow."""
        return self.consult(problem, versions).row

    def consult(self, problem: Any, versions: Mapping[str, str]) -> Lookup:
        """The same row, with what was passed over on the way to it, and why."""
        meant = [(n, row) for n, row in enumerate(self.rows, 1) if row.accepts(problem)]
        number, row = next((n, row) for n, row in meant if not row.violated(versions))
        fenced = [
            Fence(n, row, rule, rule.found_in(versions))
            for n, row in meant
            if n < number
            for rule in row.violated(versions)[:1]
        ]
        return Lookup(number, row, tuple(fenced))

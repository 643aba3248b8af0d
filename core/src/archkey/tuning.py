# SPDX-License-Identifier: Apache-2.0
"""Numbers given to a kernel body, looked up by problem. Types and lookup; plugins hold the rows.

A table is read top down and the first row whose conditions hold is used, so rows go from special
to general and the last one has no condition: every problem gets a tuning.

A row may be fenced: numbers that are known to be wrong with some version of a distribution say so
in `requires`, are passed over where they do not hold, and the next row that fits is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archkey.conditions import Condition
from archkey.requirements import Requirement, Violation

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities

__all__ = ["Fence", "Lookup", "Measured", "Row", "Source", "Space", "Table"]


@dataclass(frozen=True)
class Measured:
    """Where numbers were measured; as text it is what `archkey explain` says.

    card      as the driver calls it: "NVIDIA H200"
    date      ISO 8601
    versions  of what compiled and timed them: distribution -> version
    us        microseconds a call of what was timed, by name
    """

    card: str
    date: str
    versions: Mapping[str, str] = field(hash=False)
    us: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        said = (f"{name} {version}" for name, version in self.versions.items())
        return ", ".join((self.card, *said, self.date))


@dataclass(frozen=True)
class Row:
    """`values` for the problems in `when`.

    requires  versions that the numbers are good with; a row that is bad with one is a fence:
              `Requirement("triton", "!=3.7.0", "wrong sums with 8 warps", "accuracy")`
    measured  where the numbers come from, or "not measured: " and what they rest on instead
    spills    bytes of memory beside its registers that a thread may take with them: NVIDIA's stack
              frame, AMD's private segment (`archkey.conformance.machine_code`)
    """

    values: Any
    when: tuple[Condition, ...] = ()
    requires: tuple[Requirement, ...] = ()
    measured: str | Measured = "not measured"
    spills: int = 0

    def __post_init__(self) -> None:
        if type(self.spills) is not int or self.spills < 0:
            raise ValueError(f"spills is a number of bytes, not {self.spills!r}")

    def accepts(self, problem: Any) -> bool:
        """Whether this row is for `problem`, whatever is installed."""
        return all(c.holds(getattr(problem, c.field)) for c in self.when)

    def violation(self, versions: Mapping[str, str]) -> Violation | None:
        """The first of its rules that the installed `versions` break; None if they break none."""
        return next(filter(None, (rule.violation(versions) for rule in self.requires)), None)


@dataclass(frozen=True)
class Fence:
    """A row that is for the problem and was passed over.

    number     of the row in its table, from 1
    violation  of the first rule that does not hold
    """

    number: int
    row: Row
    violation: Violation

    def to_json(self) -> dict[str, Any]:
        """The keys `row`, `values` as text, and those of the violation."""
        return {"row": self.number, "values": str(self.row.values), **self.violation.to_json()}


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
            "measured": str(self.row.measured),
            "spills": self.row.spills,
            "fenced": [fence.to_json() for fence in self.fenced],
        }


@dataclass(frozen=True)
class Source:
    """The file that a table was read from, and its name there."""

    path: Path
    name: str


@dataclass(frozen=True)
class Table:
    """Rows of one kernel on one target, special to general.

    source  the file they were read from (`archkey.tables`); None if they are written in Python
    """

    rows: tuple[Row, ...]
    source: Source | None = field(default=None, compare=False, repr=False)

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
        meant = [
            (number, row, row.violation(versions))
            for number, row in enumerate(self.rows, 1)
            if row.accepts(problem)
        ]
        used, row = next((number, row) for number, row, broken in meant if broken is None)
        fenced = [
            Fence(number, row, broken)
            for number, row, broken in meant
            if broken is not None and number < used
        ]
        return Lookup(used, row, tuple(fenced))


def _anything(values: Any, capabilities: Capabilities) -> bool:
    return True


@dataclass(frozen=True)
class Space:
    """Which values a row could have: what `archkey tune` tries.

    fields  field of the values -> candidates, in the order in which they are tried; a field that is
            not named keeps what the row has
    allows  (values, capabilities) -> whether they make sense together on that device; what the
            values' own class refuses with a ValueError needs no rule here
    """

    fields: Mapping[str, tuple[Any, ...]] = field(hash=False)
    allows: Callable[[Any, Capabilities], bool] = _anything

    def around(self, values: Any, capabilities: Capabilities) -> tuple[Any, ...]:
        """`values` themselves, then every other combination that is allowed."""
        found = [values]
        for numbers in itertools.product(*self.fields.values()):
            try:
                other = replace(values, **dict(zip(self.fields, numbers, strict=True)))
            except ValueError:
                continue
            if other not in found and self.allows(other, capabilities):
                found.append(other)
        return tuple(found)

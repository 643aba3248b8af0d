# SPDX-License-Identifier: Apache-2.0
"""Numbers given to a kernel body, looked up by problem. Types and lookup; plugins hold the rows.

A table is read top down and the first row whose conditions hold is used, so rows go from special
to general and the last one has no condition: every problem gets a tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from archkey.conditions import Condition
from archkey.requirements import within


@dataclass(frozen=True)
class Row:
    """`values` for the problems in `when`; `measured` tells where the numbers come from."""

    values: Any
    when: tuple[Condition, ...] = ()
    triton: str = ""  # PEP 440 range of Triton releases; "" is any
    measured: str = "not measured"

    def __post_init__(self) -> None:
        SpecifierSet(self.triton)  # a bad range is the plugin author's error: say so at load

    def fits(self, problem: Any, triton: str | None) -> bool:
        """Whether this row is for `problem` under that Triton version (None: not installed)."""
        if self.triton and triton is not None and not within(triton, self.triton):
            return False
        return all(c.holds(getattr(problem, c.field)) for c in self.when)


@dataclass(frozen=True)
class Table:
    """Rows of one kernel on one target, special to general."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows or self.rows[-1].when or self.rows[-1].triton:
            raise ValueError("a tuning table ends with a row that has no condition")
        kinds = {type(row.values) for row in self.rows}
        if len(kinds) > 1:
            names = ", ".join(sorted(k.__name__ for k in kinds))
            raise ValueError(f"a tuning table holds one type of values, not {names}")

    def lookup(self, problem: Any, versions: Mapping[str, str]) -> Row:
        """The first row that fits."""
        triton = versions.get("triton")
        return next(row for row in self.rows if row.fits(problem, triton))

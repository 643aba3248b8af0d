# SPDX-License-Identifier: Apache-2.0
"""The levels of evidence, and what is asked and answered at each.

| level | what ran | where |
|---|---|---|
| contract | refusals, keys, tuning tables, builders, the logic of the capabilities | anywhere |
| compiled | each kernel x example problem through the real compiler to the target's machine code | anywhere |
| interpreted | Triton's interpreter, against the float64 reference | CPU |
| emulated | the target's own code, instruction by instruction, against the reference | CPU |
| device | the real card, against the reference, twice for the same bits | the card |
| accuracy | numbers as real models have them; statistics of the errors | the card, or a CPU |

The first five are a ladder, `LADDER`: how near to the hardware a kernel has been run. Accuracy is
none of its steps. It says how well a kernel computes, on the card if that is here, or else as level
interpreted does, and each of its outcomes says where.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from archkey.errors import UnknownName

__all__ = ["ALL", "LADDER", "RANDOM", "Item", "Level", "Outcome", "parse_levels"]

ALL = "all cases"
"""The case of the one outcome that stands for a level which was not run for a kernel."""

RANDOM = "random"
"""The case that draws its problems: see `archkey.conformance.cases.random_of`."""


class Level(str, Enum):
    """How far a check goes, weakest first, and after these how well."""

    CONTRACT = "contract"
    COMPILED = "compiled"
    INTERPRETED = "interpreted"
    EMULATED = "emulated"
    DEVICE = "device"
    ACCURACY = "accuracy"


LADDER = tuple(level for level in Level if level is not Level.ACCURACY)
"""The levels of which one is the highest that a kernel has passed, weakest first."""


def parse_levels(names: Iterable[str]) -> tuple[Level, ...]:
    """The levels called `names`, in their order; all for none."""
    wanted = set(names)
    known = [level.value for level in Level]
    for name in wanted:
        if name not in known:
            raise UnknownName("level", name, known)
    return tuple(level for level in Level if not wanted or level.value in wanted)


class Item(NamedTuple):
    """One question of the exam."""

    level: str
    operator: str
    kernel: str
    case: str

    @property
    def name(self) -> str:
        """For progress: `interpreted rmsnorm rocm_gfx950:triton, eps`."""
        return f"{self.level} {self.operator} {self.kernel}, {self.case}"


@dataclass(frozen=True)
class Outcome:
    """The answer to an Item.

    outcome    "passed", "failed" or "skipped"
    error      of the worst output, None where nothing was measured
    tolerance  what was allowed for it
    reason     why it failed or was skipped; of a passed case the output that `error` is of
    details    what else was found: registers, spills, problems drawn; at level accuracy where it
               ran and the statistics, see `archkey.conformance.accuracy`
    """

    item: Item
    outcome: str
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """Keys `operator`, `kernel`, `case`, `outcome`, `error`, `tolerance`, `reason`, `details`.

        An error has three digits. JSON has no infinity: such an error is the text "inf".
        """
        error = None if self.error is None else float(f"{self.error:.2e}")
        return {
            "operator": self.item.operator,
            "kernel": self.item.kernel,
            "case": self.item.case,
            "outcome": self.outcome,
            "error": error if error is None or error < float("inf") else "inf",
            "tolerance": self.tolerance,
            "reason": self.reason,
            **({"details": dict(self.details)} if self.details else {}),
        }

    @classmethod
    def from_json(cls, level: str, row: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`, for an outcome at `level`."""
        item = Item(level, row["operator"], row["kernel"], row["case"])
        error = row["error"] if row["error"] is None else float(row["error"])
        details = row.get("details", {})
        return cls(item, row["outcome"], error, row["tolerance"], row["reason"], details)

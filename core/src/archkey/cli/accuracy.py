# SPDX-License-Identifier: Apache-2.0
"""What level accuracy found, as `archkey check` shows it: the worst of each count of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["show", "worst"]

OVER = ("row", "window", "head", "columns")


def worst(cases: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Of the recorded `cases` of one kernel, by (output, count) and what it is over.

    Each is a statistic as it is recorded, the one that took most of its limit, and the `case`.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for case in cases:
        for one in case.get("details", {}).get("statistics", ()):
            cells = found.setdefault((one["output"], one["name"]), {})
            before = cells.get(one["over"])
            if before is None or _share(one) > _share(before):
                cells[one["over"]] = {**one, "case": case["case"]}
    return found


def show(console: Console, cases: Sequence[Mapping[str, Any]]) -> None:
    """A table of all kernels; nothing if no statistics are recorded."""
    from rich.text import Text

    from archkey.cli import render

    lines: list[list[render.Cell]] = []
    for kernel in dict.fromkeys((row["operator"], row["kernel"]) for row in cases):
        mine = [row for row in cases if (row["operator"], row["kernel"]) == kernel]
        places = {row["details"]["ran on"] for row in mine if "ran on" in row.get("details", {})}
        found = worst(mine)
        if found:
            heading = f"{kernel[0]} {kernel[1]}, on: {', '.join(sorted(places))}"
            lines.append([Text(heading, "bold", overflow="fold"), *("" for _ in OVER)])
        for (output, name), cells in found.items():
            lines.append([f"  {name} of {output}", *(_cell(cells.get(over)) for over in OVER)])
    if lines:
        render.table(console, ("accuracy, beyond one rounding", *OVER), lines)


def _cell(one: Mapping[str, Any] | None) -> Text:
    from rich.text import Text

    if one is None:
        return Text("")
    value, most = float(one["value"]), float(one["limit"])
    sign = "<=" if value <= most else ">"
    return Text(f"{value:.1e}\n{sign} {most:.1e}", "green" if value <= most else "red")


def _share(one: Mapping[str, Any]) -> float:
    return float(one["value"]) / float(one["limit"])

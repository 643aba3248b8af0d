# SPDX-License-Identifier: Apache-2.0
"""Two runs of the bench side by side, for a person: what moved, gravest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from archkey.bench import noise
from archkey.bench.compare import UNCOMPARED, Comparison, Move
from archkey.bench.results import OURS
from archkey.cli import render

__all__ = ["show"]

_STYLES = {noise.SLOWER: "red", noise.FASTER: "green", UNCOMPARED: "yellow"}


def show(console: Console, comparison: Comparison) -> None:
    """Print what moved; what stayed is counted."""
    _surroundings(console, comparison)
    _statuses(console, comparison)
    _moves(console, [m for m in comparison.moves if m.verdict != noise.SAME])
    _choices(console, comparison)
    _shifts(console, comparison)
    _only(console, "only in the old run", comparison.only_old)
    _only(console, "only in the new run", comparison.only_new)
    _summary(console, comparison)


def _surroundings(console: Console, comparison: Comparison) -> None:
    old, new = comparison.cards
    if not comparison.same_card:
        names = f"{old} and {new}" if old != new else f"two kinds of {old}"
        console.print(Text(f"TIMES OF TWO CARDS ARE COMPARED: {names}", "bold red"))
    for name, complete in zip(("old", "new"), comparison.complete, strict=True):
        if not complete:
            text = f"The {name} run was cut off: what it lacks may only not have been reached."
            console.print(Text(text, "yellow"))
    rows = [
        *((v.name, v.old or "none", v.new or "none") for v in comparison.versions),
        *((f"{c.name} [{c.unit}]", f"{c.old:.3g}", f"{c.new:.3g}") for c in comparison.ceilings),
        *((name, str(was), str(now)) for name, (was, now) in comparison.settings.items()),
    ]
    if rows:
        render.table(console, ("around", "old", "new"), rows)
    for operator, workload in comparison.changed:
        text = f"{operator} {workload}: another problem under this name, not compared"
        console.print(Text(text, "yellow"))


def _statuses(console: Console, comparison: Comparison) -> None:
    """Who lost its time or became wrong, each; the others are counted together."""
    grave = [s for s in comparison.statuses if s.new == "wrong" or s.old == "timed"]
    if grave:
        rows: list[list[render.Cell]] = [
            [
                _where(s.operator, s.workload),
                _entrant(s.entrant),
                s.old,
                render.stack(Text(s.new, "bold red"), s.reason),
            ]
            for s in grave
        ]
        render.table(console, ("workload", "entrant", "was", "is"), rows)
    rest = Counter((s.entrant, s.old, s.new) for s in comparison.statuses if s not in grave)
    for (entrant, old, new), number in rest.items():
        console.print(Text(f"{entrant}: {old} -> {new} at {number} workloads"))


def _moves(console: Console, moves: list[Move]) -> None:
    if not moves:
        return
    rows: list[list[render.Cell]] = [
        [
            _where(m.operator, m.workload),
            _entrant(m.entrant),
            f"{m.old_us:.4g}",
            f"{m.new_us:.4g}",
            "" if m.ratio is None else f"{m.ratio:.2f}",
            "" if m.normalised is None else f"{m.normalised:.2f}",
            render.stack(Text(m.verdict, _STYLES[m.verdict]), m.why),
        ]
        for m in moves
    ]
    columns = ("workload", "entrant", "old us", "new us", "ratio", "to bound", "")
    render.table(console, columns, rows, numbers=columns[2:6])
    if any(m.normalised is not None for m in moves):
        text = "to bound: the ratio of the shares of the bound; it decides, as the ceilings differ"
        console.print(Text(f"  {text}\n", "dim"))


def _choices(console: Console, comparison: Comparison) -> None:
    rows: list[list[render.Cell]] = [
        [
            _where(c.operator, c.workload),
            render.stack(c.old, c.old_tuning if c.old_tuning != c.new_tuning else ""),
            render.stack(c.new, c.new_tuning if c.old_tuning != c.new_tuning else ""),
        ]
        for c in comparison.choices
    ]
    if rows:
        render.table(console, ("decided differently", "old", "new"), rows)


def _shifts(console: Console, comparison: Comparison) -> None:
    rows: list[list[render.Cell]] = []
    for shift in comparison.shifts:
        style = {"ahead": "green", "behind": "red"}.get(shift.new.standing, "")
        cells = [
            f"{place.standing}: {place.peer} takes {place.ratio:.2f} of our time"
            for place in (shift.old, shift.new)
        ]
        where = _where(shift.operator, shift.workload)
        rows.append([where, cells[0], Text(cells[1], style)])
    if rows:
        render.table(console, ("ours beside the best peer", "old", "new"), rows)


def _only(console: Console, title: str, names: Iterable[tuple[str, str, str]]) -> None:
    entrants: dict[str, list[str]] = {}
    for operator, workload, entrant in names:
        entrants.setdefault(f"{operator} {workload}", []).append(entrant)
    if entrants:
        rows = [[name, ", ".join(listed)] for name, listed in entrants.items()]
        render.table(console, (title, "entrants"), rows)


def _summary(console: Console, comparison: Comparison) -> None:
    counts = [f"{number} {name}" for name, number in comparison.summary.items() if number]
    console.print(Text(", ".join(counts) or "nothing to compare"))
    if comparison.worse:
        console.print(Text("archkey's own kernels got worse", "red"))


def _where(operator: str, workload: str) -> Text:
    return render.stack(Text(operator, "bold"), workload)


def _entrant(name: str) -> Text:
    return Text(name, "bold" if name == OURS else "")

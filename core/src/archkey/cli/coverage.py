# SPDX-License-Identifier: Apache-2.0
"""`archkey coverage`: operator x target -> kernel and evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.conformance import evidence
from archkey.conformance.levels import Level
from archkey.errors import RecordError
from archkey.explain import short_name
from archkey.plugins import installed_targets
from archkey.target import Target

if TYPE_CHECKING:
    from rich.text import Text

    from archkey.conformance.record import Standing

__all__ = ["Row", "command", "rows"]

NOT_RUN = "none"
"""The evidence level where no check has been recorded."""


class Evidence(TypedDict):
    """What stands behind a level: when, with what, on which device, and how close it was."""

    date: str
    versions: dict[str, str]
    device: str | None
    cases: int
    error: float | None
    tolerance: float | None


class Row(TypedDict):
    """What an operator's first example gets on a target; `kernel` is None if nothing serves it.

    level     the highest that was passed, and the evidence for it
    accuracy  where level accuracy was passed: "device", "interpreter"; "none" if it was not
    problems  why a recorded level does not count: it failed, was cut off, or the code has changed
    """

    operator: str
    target: str
    kernel: str | None
    level: str
    degraded: bool
    accuracy: str
    evidence: Evidence | None
    problems: list[str]


@click.command(short_help="Show operator x target: kernel, evidence.")
@click.option(
    "--target", "-t", "targets", multiple=True, metavar="TARGET", help="Only this; repeatable."
)
@click.option("--markdown", is_flag=True, help="Print a table for a README.")
@json_option
def command(targets: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Show which kernel each operator gets on each target, and to which level it was checked.

    Targets are those of the installed plugins, and the cpu. Judged by the first example problem of
    each operator. Degraded means that the kernel was made for another target: the torch reference.
    The level is the highest that is on record as passed, by the plugins' own records or by yours
    (`archkey check`), for the code that is installed; "none" where there is no such record. Level
    accuracy is none of these steps and is counted beside them.

    \b
    archkey coverage
    archkey coverage --target cuda_sm90 --target rocm_gfx950
    archkey coverage --json | jq -r '.[] | select(.degraded) | .operator + " " + .target'
    """
    found = rows(targets)
    if as_json:
        emit(found)
    elif markdown:
        click.echo(_markdown(found))
    else:
        _show(found)


def rows(targets: Sequence[str] = ()) -> list[Row]:
    """Every operator on each of `targets`; none means those of the installed plugins, and cpu."""
    keys = dict.fromkeys(Target.parse(target).key for target in targets or installed_targets())
    return [row for key in keys for row in _cover(key)]


def _cover(key: str) -> Iterator[Row]:
    session = archkey.open(key)
    known, remarks = _records(session)
    for operator in session.operators.values():
        for problem in [*operator.examples.values()][:1]:
            decision = session.decide(problem)
            found = evidence.standings(session, decision.chosen, known) if decision.chosen else {}
            best = evidence.highest(found)
            yield Row(
                operator=operator.name,
                target=key,
                kernel=decision.chosen.id if decision.chosen else None,
                level=best.level.value if best else NOT_RUN,
                degraded=decision.degraded,
                accuracy=_accuracy(found.get(Level.ACCURACY)),
                evidence=_evidence(best) if best else None,
                problems=[*remarks, *filter(None, map(_problem, found.values()))],
            )


def _records(session: archkey.Session) -> tuple[evidence.Records, list[str]]:
    """The records on the session's target; one that cannot be read is a remark."""
    try:
        return evidence.records(session), []
    except RecordError as error:
        return [], [str(error)]


def _accuracy(found: Standing | None) -> str:
    if found is None or not found.holds:
        return NOT_RUN
    return "device" if found.device else "interpreter"


def _evidence(best: Standing) -> Evidence:
    worst = best.worst
    return Evidence(
        date=best.date,
        versions=dict(best.versions),
        device=str(best.device["name"]) if best.device else None,
        cases=best.passed,
        error=worst.error if worst else None,
        tolerance=worst.tolerance if worst else None,
    )


def _problem(found: Standing) -> str:
    """Why a recorded level does not count; "" if it does, or if nothing of it was run."""
    level = found.level.value
    if not found.passed and not found.failed:
        return ""
    if found.stale:
        return f"{level}: {found.stale}"
    if found.failed:
        return f"{level}: {found.failed} cases failed"
    return "" if found.complete else f"{level}: the exam was cut off"


def _markdown(rows: list[Row]) -> str:
    """A table operator x target, and the notes on it."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    cells = {(row["operator"], row["target"]): _plain(row) for row in rows}
    lines = ["| operator | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        listed = (cells.get((operator, target), "") for target in targets)
        lines.append(f"| `{operator}` | " + " | ".join(listed) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(rows))])


def _notes(rows: list[Row]) -> Iterator[str]:
    """What each level was passed with on a target.

    Operators that were examined apart from most have lines of their own, which name them.
    """
    levels: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["evidence"]:
            groups = levels.setdefault((row["target"], row["level"]), {})
            groups.setdefault(_told(row["evidence"]), []).append(f"`{row['operator']}`")
    for (target, level), groups in levels.items():
        first, *others = sorted(groups, key=lambda told: -len(groups[told]))
        yield f"{target}, {level}: {first}"
        for told in others:
            yield f"{target}, {level} of {', '.join(groups[told])}: {told}"


def _plain(row: Row) -> str:
    kernel = _short(row)
    return f"{kernel}: {row['level']}" if row["level"] != NOT_RUN else kernel


def _told(found: Evidence) -> str:
    """The device, the date, and the versions that results depend on."""
    shown = [f"{name} {found['versions'][name]}" for name in _SHOWN if name in found["versions"]]
    return ", ".join([*filter(None, [found["device"]]), found["date"], *shown])


_SHOWN = ("torch", "triton")


def _show(rows: list[Row]) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    targets = list(dict.fromkeys(row["target"] for row in rows))
    cells: dict[tuple[str, str], render.Cell] = {
        (row["operator"], row["target"]): _cell(row) for row in rows
    }
    lines: list[list[render.Cell]] = [
        [Text(operator, "bold"), *(cells.get((operator, target), "") for target in targets)]
        for operator in dict.fromkeys(row["operator"] for row in rows)
    ]
    wide = console.width >= render.WIDE
    headings = [target if wide else target.replace("_", "\n", 1) for target in targets]
    render.table(console, ("operator", *headings), lines)
    counts = ("made for it", "degraded", "no kernel", "checked", "accurate")
    totals: list[list[render.Cell]] = [
        [Text(target, "bold"), *_count(rows, target)] for target in targets
    ]
    render.table(console, ("target", *counts), totals, numbers=counts)
    if any(row["degraded"] for row in rows):
        console.print(Text("* degraded: a kernel made for another target", "yellow"))
    for target in targets:
        problems = {text for row in rows if row["target"] == target for text in row["problems"]}
        for text in sorted(problems):
            console.print(Text(f"{target}: {text}", "yellow"))


def _cell(row: Row) -> Text:
    """Kernel, without its plugin's name if that is the target's own or the default, and level."""
    from rich.text import Text  # the caller has paid for rich

    if row["kernel"] is None:
        return Text("none", "red")
    name = _short(row)
    level = "" if row["level"] == NOT_RUN else f"\n{row['level']}"
    return Text(name + level, "yellow" if row["degraded"] else "green")


def _short(row: Row) -> str:
    return short_name(row["kernel"] or "none", row["target"], row["degraded"])


def _count(rows: list[Row], target: str) -> tuple[str, ...]:
    """Operators of `target`: kernel made for it, degraded, none; checked; of accuracy checked."""
    mine = [row for row in rows if row["target"] == target]
    degraded = sum(row["degraded"] for row in mine)
    without = sum(row["kernel"] is None for row in mine)
    checked = sum(row["level"] != NOT_RUN for row in mine)
    accurate = sum(row["accuracy"] != NOT_RUN for row in mine)
    return tuple(map(str, (len(mine) - degraded - without, degraded, without, checked, accurate)))

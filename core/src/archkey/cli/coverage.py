# SPDX-License-Identifier: Apache-2.0
"""`archkey coverage`: operator x target -> kernel and evidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.errors import TargetError
from archkey.plugins import DEFAULT, discover
from archkey.target import Target

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Row", "command"]

NOT_RUN = "none"
"""The evidence level where no check has been recorded."""


class Row(TypedDict):
    """What an operator's first example gets on a target; `kernel` is None if nothing serves it."""

    operator: str
    target: str
    kernel: str | None
    level: str
    degraded: bool


@click.command(short_help="Show operator x target: kernel, evidence.")
@click.option(
    "--target", "-t", "targets", multiple=True, metavar="TARGET", help="Only this; repeatable."
)
@json_option
def command(targets: tuple[str, ...], as_json: bool) -> None:
    """Show which kernel each operator gets on each target, and to which level it was checked.

    Targets are those of the installed plugins, and the cpu. Judged by the first example problem of
    each operator. Degraded means that the kernel was made for another target: the torch reference.
    The level is "none" where no check has been recorded.

    \b
    archkey coverage
    archkey coverage --target cuda_sm90 --target rocm_gfx950
    archkey coverage --json | jq -r '.[] | select(.degraded) | .operator + " " + .target'
    """
    keys = dict.fromkeys(Target.parse(target).key for target in targets or _installed())
    rows = [row for key in keys for row in _cover(key)]
    if as_json:
        emit(rows)
    else:
        _show(rows)


def _installed() -> list[str]:
    """Targets of the installed plugins by name, the cpu last."""
    keys = set()
    for found in discover():
        try:
            keys.add(Target.parse(found.name.partition(".")[0]).key)
        except TargetError:
            continue  # a misnamed plugin is refused by name in `archkey plugins`
    return [*sorted(keys - {DEFAULT}), DEFAULT]


def _cover(key: str) -> Iterator[Row]:
    session = archkey.open(key)
    for operator in session.operators.values():
        for problem in [*operator.examples.values()][:1]:
            decision = session.decide(problem)
            yield Row(
                operator=operator.name,
                target=key,
                kernel=decision.chosen.id if decision.chosen else None,
                level=NOT_RUN,
                degraded=decision.degraded,
            )


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
    counts = ("made for it", "degraded", "no kernel", "checked")
    totals: list[list[render.Cell]] = [
        [Text(target, "bold"), *_count(rows, target)] for target in targets
    ]
    render.table(console, ("target", *counts), totals, numbers=counts)
    if any(row["degraded"] for row in rows):
        console.print(Text("* degraded: a kernel made for another target", "yellow"))


def _cell(row: Row) -> Text:
    """Kernel, without its plugin's name if that is the target's own or the default, and level."""
    from rich.text import Text  # the caller has paid for rich

    if row["kernel"] is None:
        return Text("none", "red")
    name = row["kernel"].removeprefix(f"{row['target']}:").removeprefix(f"{DEFAULT}:")
    name += "*" * row["degraded"]
    level = "" if row["level"] == NOT_RUN else f"\n{row['level']}"
    return Text(name + level, "yellow" if row["degraded"] else "green")


def _count(rows: list[Row], target: str) -> tuple[str, ...]:
    """Operators of `target`: kernel made for it, degraded, none at all; with a check on record."""
    mine = [row for row in rows if row["target"] == target]
    degraded = sum(row["degraded"] for row in mine)
    without = sum(row["kernel"] is None for row in mine)
    checked = sum(row["level"] != NOT_RUN for row in mine)
    return tuple(map(str, (len(mine) - degraded - without, degraded, without, checked)))

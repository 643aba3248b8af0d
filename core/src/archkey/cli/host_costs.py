# SPDX-License-Identifier: Apache-2.0
"""`archkey bench --host`: what archkey itself costs on the host, beside its limits."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click
from rich.console import Console
from rich.text import Text

from archkey.bench.host_row import Row
from archkey.cli import render
from archkey.cli.output import emit

__all__ = ["run"]


def run(repeats: int, as_json: bool) -> None:
    """Measure each cost `repeats` times, and show them. Exit 1 if one is over its limit."""
    from archkey.bench.host import measure

    rows = []
    for row in measure(repeats):
        rows.append(row)
        if sys.stderr.isatty():
            cost = row.note if row.value is None else f"{row.value:.2f} {row.unit}"
            click.echo(f"{row.what}: {cost}", err=True)
    if as_json:
        emit([row.to_json() for row in rows])
    else:
        _show(render.open_console(), rows)
    if not all(row.passed for row in rows):
        raise click.exceptions.Exit(1)


def _show(console: Console, rows: Iterable[Row]) -> None:
    """Print each cost beside its limit, and others' beside ours."""
    lines: list[list[render.Cell]] = [
        [
            render.stack(row.what, row.note),
            "-" if row.value is None else f"{row.value:.2f} {row.unit}",
            "" if row.limit is None else f"{row.limit:g} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            _judged(row),
        ]
        for row in rows
    ]
    columns = ("what", "cost", "limit", "of ours", "")
    render.table(console, columns, lines, numbers=columns[1:4])


def _judged(row: Row) -> render.Cell:
    if row.value is None or row.limit is None:
        return ""
    return Text("ok", "green") if row.passed else Text("over", "red")

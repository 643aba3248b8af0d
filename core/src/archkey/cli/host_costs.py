# SPDX-License-Identifier: Apache-2.0
"""What archkey costs on the host, as a table for a person."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from archkey.bench.host_row import Row
from archkey.cli import render

__all__ = ["show"]


def show(console: Console, rows: Iterable[Row]) -> None:
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

# SPDX-License-Identifier: Apache-2.0
"""The table of `archkey bench --host`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archkey.bench.host import Row

__all__ = ["show"]


def show(rows: list[Row]) -> None:
    """Each cost beside its limit."""
    from rich.text import Text

    from archkey.cli import render

    lines: list[list[render.Cell]] = [
        [
            row.what,
            f"{row.value:.2f} {row.unit}",
            "" if row.limit is None else f"{row.limit:g} {row.unit}",
            Text("ok", "green") if row.passed else Text("over", "red"),
        ]
        for row in rows
    ]
    columns = ("what", "cost", "limit", "")
    render.table(render.open_console(), columns, lines, numbers=("cost", "limit"))

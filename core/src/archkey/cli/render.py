# SPDX-License-Identifier: Apache-2.0
"""The reader's half of the output: tables and facts for a terminal, with rich.

Imported by a command only when a person reads. Text that comes from elsewhere (driver, plugin,
user) is never read as markup. Colours appear on a terminal only; 80 columns are enough.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from archkey._progress import progress

__all__ = [
    "Cell",
    "WIDE",
    "facts",
    "open_console",
    "progress",
    "size_text",
    "stack",
    "table",
    "value_text",
]

Cell = str | Text

WIDE = 120
"""Columns from which on prose gets columns of its own; below, it stands under what it explains."""


def open_console(*, stderr: bool = False) -> Console:
    """The terminal, pipe or file behind stdout or stderr."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    spare: Sequence[str] = (),
    numbers: Sequence[str] = (),
    airy: bool = False,
) -> None:
    """Print a table.

    Columns without any content are left out; those in `spare`, the first first, also while the
    table is wider than the console: a line below names them. `numbers` are set to the right.
    airy: a blank line between rows, for cells of several lines.
    """
    listed = [dict(zip(columns, row, strict=True)) for row in rows]
    shown = [c for c in columns if any(str(row[c]) for row in listed)]
    dropped: list[str] = []
    unbounded = console.options.update(max_width=sys.maxsize)
    for name in [name for name in spare if name in shown]:
        grid = _grid(shown, listed, numbers, airy)
        if Measurement.get(console, unbounded, grid).maximum <= console.width:
            break
        shown.remove(name)
        dropped.append(name)
    console.print(_grid(shown, listed, numbers, airy))
    if dropped:
        console.print(Text(f"  left out for want of width: {', '.join(dropped)}\n", "dim"))


def _grid(
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Cell]],
    numbers: Sequence[str],
    airy: bool,
) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for name in columns:
        grid.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    for number, row in enumerate(rows):
        if number and airy:
            grid.add_row()
        grid.add_row(*(_text(row[name]) for name in columns))
    return grid


def facts(console: Console, pairs: Iterable[tuple[str, Cell]]) -> None:
    """Print `name  text` lines with the texts in one column; an empty text is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, text in pairs:
        if str(text):
            grid.add_row(Text(name), _text(text))
    console.print(grid)


def stack(first: Cell, *below: Cell) -> Text:
    """A cell of several lines: the first as it is, what explains it dim below."""
    cell = Text.assemble(first)  # its style is for its own line
    for line in filter(str, below):
        cell.append("\n").append_text(_text(line, "dim"))
    return cell


def _text(cell: Cell, style: str = "") -> Text:
    """A cell as it is; a string becomes plain text of `style`, never markup."""
    return Text(cell, style) if isinstance(cell, str) else cell


def value_text(name: str, value: Any) -> str:
    """The value called `name` for people: yes, no, unknown, a size if the name says bytes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "unknown"
    return size_text(value) if name.endswith("_bytes") else str(value)


def size_text(size: int | None) -> str:
    """Bytes in the largest unit that leaves a number above one; "" if unknown."""
    if size is None:
        return ""
    number = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.4g} {unit}"

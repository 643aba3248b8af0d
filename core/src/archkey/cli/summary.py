# SPDX-License-Identifier: Apache-2.0
"""The results of a bench in the terminal: after a run, and for `archkey report --terminal`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from archkey.bench.report.model import view
from archkey.bench.results import OURS
from archkey.bench.summary import Table, blocks
from archkey.cli import render

__all__ = ["show_summary"]


def show_summary(console: Console, document: Mapping[str, Any]) -> None:
    """Print what the page says. RecordError if the document lacks something."""
    for block in blocks(view(document)):
        console.print(Text(f"\n{block.title}", "bold"))
        render.facts(console, block.facts)
        for warning in block.warnings:
            console.print(Text(warning, "yellow"))
        for table in block.tables:
            _show(console, table)


def _show(console: Console, table: Table) -> None:
    if table.title:
        console.print(Text(f"\n{table.title}"))
    rows = [[Text(cell, _style(row)) for cell in row] for row in table.rows]
    if rows:
        render.table(console, table.columns, rows, numbers=table.right, spare=table.spare)
    render.facts(console, table.notes)


def _style(row: tuple[str, ...]) -> str:
    return "bold" if row[0].rstrip("*") == OURS else ""

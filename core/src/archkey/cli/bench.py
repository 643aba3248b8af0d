# SPDX-License-Identifier: Apache-2.0
"""`archkey bench`: what archkey itself costs on the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from archkey.cli.output import emit, json_option

if TYPE_CHECKING:
    from archkey.bench.host_row import Row

__all__ = ["command"]


@click.command(short_help="Measure what archkey costs on the host.")
@click.option("--host", is_flag=True, help="Import, discovery, decision, plan and calls.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Best of N.")
@json_option
def command(host: bool, repeats: int, as_json: bool) -> None:
    """Measure what archkey costs on the host, beside the limits of its design.

    A kernel that does nothing stands for the launch, so what is left is archkey's own. Each row is
    the best of N repeats. Rows "for scale" are other ways to a kernel, and installed rivals,
    measured in the same run. Exit 1 if a row is over its limit.

    \b
    archkey bench --host
    archkey bench --host --json | jq '.[] | select(.passed | not)'
    """
    if not host:
        raise click.UsageError("say what to measure: --host. Kernels on a card are not there yet.")
    from archkey.bench.host import measure

    rows = list(_watched(measure(repeats)))
    if as_json:
        emit([row.to_json() for row in rows])
    else:
        _show(rows)
    if not all(row.passed for row in rows):
        raise click.exceptions.Exit(1)


def _watched(rows: Iterator[Row]) -> Iterator[Row]:
    """Each row as it is measured, named on stderr of a terminal: the whole takes seconds."""
    for row in rows:
        if sys.stderr.isatty():
            cost = row.note if row.value is None else f"{row.value:.2f} {row.unit}"
            click.echo(f"{row.what}: {cost}", err=True)
        yield row


def _show(rows: list[Row]) -> None:
    from archkey.cli import host_costs, render

    host_costs.show(render.open_console(), rows)

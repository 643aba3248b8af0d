# SPDX-License-Identifier: Apache-2.0
"""`archkey report`: the results of a bench as a page, or in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from archkey.cli.output import emit, json_option
from archkey.errors import RecordError

__all__ = ["command"]


@click.command(short_help="Show the results of a bench as a page.")
@click.argument("results", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the page goes; by default report.html beside the results.",
)
@click.option("--terminal", is_flag=True, help="Print them here instead.")
@click.option("--markdown", is_flag=True, help="Print a table for a README instead.")
@json_option
def command(
    results: Path, output: Path | None, terminal: bool, markdown: bool, as_json: bool
) -> None:
    """Show what `archkey bench` wrote to RESULTS as one HTML page, or in the terminal.

    The page loads nothing: it can be mailed, and read offline. It needs matplotlib and jinja2
    (pip install 'archkey[report]'); the other forms do without. --json prints a line per operator:
    archkey's time, its share of the bound, the best peer and its time over archkey's.

    \b
    archkey report results.json
    archkey report results.json -o h200.html
    archkey report results.json --terminal
    archkey report results.json --json | jq -r '.[] | select(.degraded) | .operator'
    """
    from archkey.bench.results import read

    if terminal + markdown + as_json > 1:
        raise click.UsageError("choose one of --terminal, --markdown and --json.")
    if output and (terminal or markdown or as_json):
        raise click.UsageError("--output is for the page; leave it out with the other forms.")
    document = read(results)
    if as_json:
        from archkey.bench.report.model import view

        emit([operator.glance.to_json() for operator in view(document).operators])
    elif markdown:
        from archkey.bench.markdown import performance

        click.echo(performance(document, quick=False))
    elif terminal:
        from archkey.cli.render import open_console
        from archkey.cli.summary import show_summary

        show_summary(open_console(), document)
    else:
        _write(output or results.with_name("report.html"), document)


def _write(path: Path, document: dict[str, object]) -> None:
    """Write the page, as a whole or not at all."""
    from archkey._files import replace
    from archkey.bench.report.page import render

    page = render(document)
    try:
        replace(path, page)
    except OSError as error:
        raise RecordError(f"the page cannot be written to {path}: {error}") from error
    click.echo(path)

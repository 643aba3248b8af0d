# SPDX-License-Identifier: Apache-2.0
"""`archkey plugins`: what is installed, and what became of it."""

from __future__ import annotations

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.plugins import Entry, State

__all__ = ["STATE_STYLE", "command"]

STATE_STYLE = {
    State.LOADED: "green",
    State.SKIPPED: "dim",
    State.DISABLED: "yellow",
    State.REFUSED: "bold red",
    State.BROKEN: "bold red",
}


@click.command(short_help="List installed plugins and their state.")
@click.option("--target", "-t", metavar="TARGET", help="Judge for this target, not this machine's.")
@click.option("--traceback", "traces", is_flag=True, help="Print the tracebacks of failed plugins.")
@json_option
def command(target: str | None, traces: bool, as_json: bool) -> None:
    """List installed plugins with their state, the reason, and where their files are.

    \b
    loaded     in use
    skipped    for another architecture; not imported
    disabled   by ARCHKEY_PLUGINS or ARCHKEY_DISABLE_PLUGINS; not imported
    refused    it breaks the contract of the door
    broken     it raised while it was loaded

    This is a report: a broken plugin does not change the exit code. A script asks the JSON.

    \b
    archkey plugins --target rocm_gfx950
    archkey plugins --traceback
    archkey plugins --json | jq -e 'all(.state != "broken" and .state != "refused")'
    """
    session = archkey.open(target)
    if as_json:
        emit([entry.to_json() for entry in session.report])
    else:
        _show(str(session.device.target), session.report, traces)


def _show(target: str, report: tuple[Entry, ...], traces: bool) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    wide = console.width >= render.WIDE
    rows: list[tuple[render.Cell, ...]] = []
    for entry in report:
        name, state = (
            Text(entry.found.name, "bold"),
            Text(entry.state.value, STATE_STYLE[entry.state]),
        )
        distribution = f"{entry.found.distribution} {entry.found.version}"
        location = entry.found.location or "files not found"
        if wide:
            rows.append((name, state, entry.reason, distribution, location))
        else:
            rows.append((name, state, render.stack(entry.reason, distribution, location)))
    console.print(f"plugins, judged for {target}")
    columns = ("distribution", "location") if wide else ()
    render.table(console, ("plugin", "state", "reason", *columns), rows, airy=not wide)
    failed = [entry for entry in report if entry.traceback]
    for entry in failed if traces else ():
        console.print(Text(f"{entry.found.name} is {entry.state.value}:", "bold"))
        console.print(entry.traceback, soft_wrap=True)
    if failed and not traces:
        console.print("--traceback shows where the failed ones failed.")

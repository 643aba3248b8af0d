# SPDX-License-Identifier: Apache-2.0
"""`archkey capabilities`: what a device can do, with source and reason."""

from __future__ import annotations

import json

import click

import archkey
from archkey.capabilities import VOCABULARY, Capability
from archkey.cli.output import emit, json_option
from archkey.session import Session

__all__ = ["command"]


@click.command(short_help="Show what a target can do, and why.")
@click.argument("target", required=False)
@click.option("--name", "-n", metavar="NAME", help="One capability; prints its bare value.")
@json_option
def command(target: str | None, name: str | None, as_json: bool) -> None:
    """Show what TARGET can do: each fact with value, source, reason and meaning.

    TARGET is a target (cuda_sm90, gfx950) or a device (cuda:1); default: the first device of this
    machine. It need not be here. Facts come from the target's plugin, and go first where the probe
    has read them from this very card. A bare value is written as in JSON, a string without quotes.

    \b
    archkey capabilities
    archkey capabilities rocm_gfx950
    archkey capabilities cuda_sm90 --name pdl          # true
    archkey capabilities rocm_gfx942 --json | jq -r .capabilities.fp8.value
    """
    session = archkey.open(target)
    known = session.capabilities
    facts = [known[name]] if name else [*known.values()]
    if as_json:
        document = {fact.name: fact.to_json() for fact in facts}
        emit({"target": session.device.target.key, "capabilities": document})
    elif name:
        value = facts[0].value
        click.echo(value if isinstance(value, str) else json.dumps(value))
    else:
        _show(session, facts)


def _show(session: Session, facts: list[Capability]) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    wide = console.width >= render.WIDE
    device = session.device
    where = f"{device.name}, index {device.index}" if device.source != "pretend" else "not probed"
    console.print(f"{device.target}: {where}")
    rows: list[tuple[render.Cell, ...]] = []
    for fact in facts:
        style = "dim" if fact.value in (False, None, "none") else "green"
        value = Text(render.value_text(fact.name, fact.value), style)
        name = Text(fact.name, "bold")
        meaning = VOCABULARY[fact.name].text if fact.name in VOCABULARY else ""
        if wide:
            rows.append((name, value, fact.reason, fact.source, Text(meaning, "dim")))
        else:
            below = f"means: {meaning}" if meaning else ""
            rows.append((name, value, render.stack(f"{fact.reason} [{fact.source}]", below)))
    columns = ("reason", "source", "meaning") if wide else ("reason [source]",)
    render.table(console, ("capability", "value", *columns), rows)

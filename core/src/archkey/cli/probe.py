# SPDX-License-Identifier: Apache-2.0
"""`archkey probe`: which devices are here."""

from __future__ import annotations

import click

from archkey.cli.output import emit, json_option
from archkey.probe import Probe, probe

__all__ = ["command"]


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the devices of this machine.

    Asks the drivers without creating a GPU context and without torch. Sources that did not answer
    are noted below the table. ARCHKEY_TARGET pretends another machine.

    \b
    archkey probe
    archkey probe --json | jq -r '.devices[0].target'
    ARCHKEY_TARGET=gfx950 archkey probe
    """
    found = probe()
    if as_json:
        notes = [str(note) for note in found.notes]
        emit({"devices": [device.to_json() for device in found.devices], "notes": notes})
    else:
        _show(found)


def _show(found: Probe) -> None:
    from rich.text import Text

    from archkey.cli import render

    rows = [
        (
            Text(str(device.target), "bold"),
            str(device.index),
            device.name,
            str(device.compute_units or ""),
            render.size_text(device.shared_memory_bytes),
            render.size_text(device.l2_bytes),
            render.size_text(device.memory_bytes),
            device.partition,
            device.driver or "",
            device.source,
            device.uuid or "",
        )
        for device in found.devices
    ]
    columns = ("target", "index", "name", "units", "shared", "L2", "memory", "partition")
    console = render.open_console()
    render.table(
        console,
        (*columns, "driver", "source", "uuid"),
        rows,
        spare=("uuid", "source", "driver", "L2", "shared"),
        numbers=("index", "units", "shared", "L2", "memory"),
    )
    render.facts(console, [("note", str(note)) for note in found.notes])

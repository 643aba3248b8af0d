# SPDX-License-Identifier: Apache-2.0
"""Devices of vendors that the core has never heard of: entry points of group `archkey.probes`.

An entry is a callable `() -> Iterable[Device]` that needs no torch. Whatever one of them does
wrong becomes a remark and leaves the others alone.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from archkey.probe.device import Device, Note

__all__ = ["GROUP", "find"]

GROUP = "archkey.probes"


def find() -> tuple[list[Device], list[Note]]:
    """The devices of all entries, sorted by entry name, and what went wrong."""
    devices: list[Device] = []
    notes: list[Note] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        try:
            devices += _ask(entry)
        # A vendor's code may raise anything, and must not hide the other devices.
        except Exception as error:
            notes.append(Note(entry.name, f"{entry.value} failed: {type(error).__name__}: {error}"))
    return devices, notes


def _ask(entry: EntryPoint) -> list[Device]:
    """The devices of one entry: all of them, or an exception."""
    found = list(entry.load()())
    for device in found:
        if not isinstance(device, Device):
            raise TypeError(f"expected archkey.probe.Device, found {device!r}")
    return [replace(device, source=entry.name) for device in found]

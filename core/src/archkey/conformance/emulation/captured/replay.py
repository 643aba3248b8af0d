# SPDX-License-Identifier: Apache-2.0
"""A launch of a card on the emulator, and what it wrote otherwise than the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import torch

from archkey.conformance.emulation.captured.archive import Archive, Launch, Place
from archkey.conformance.emulation.ptx.launcher import execute

__all__ = ["Difference", "compare", "compare_all"]


class Difference(NamedTuple):
    """One tensor of one launch.

    differing  elements of `total` that have other bytes
    largest    difference of those that are finite, relative to the largest that the card wrote
    """

    label: str
    argument: str
    differing: int
    total: int
    largest: float


def compare(launch: Launch) -> Iterator[Difference]:
    """Run the launch on the emulator; what it wrote otherwise than the card, by tensor."""
    own = [storage.clone() for storage in launch.before]
    arguments = {
        name: own[value.storage][value.offset :] if isinstance(value, Place) else value
        for name, value in launch.arguments.items()
    }
    execute(launch.text, launch.grid, launch.signature, arguments, launch.shared_bytes)
    for name, place in launch.arguments.items():
        if not isinstance(place, Place):
            continue
        found, want, start = (
            _typed(one[place.storage], place) for one in (own, launch.after, launch.before)
        )
        if torch.equal(want.view(torch.uint8), start.view(torch.uint8)) and torch.equal(
            found.view(torch.uint8), want.view(torch.uint8)
        ):
            continue  # an input
        differs = (found.view(torch.uint8) != want.view(torch.uint8)).view(found.numel(), -1).any(1)
        a, b = found.double(), want.double()
        finite = a.isfinite() & b.isfinite()
        scale = float(b[finite].abs().max()) if finite.any() else 0.0
        gap = float((a - b)[finite].abs().max()) if finite.any() else 0.0
        odd = bool((a.isfinite() != b.isfinite()).any())
        largest = float("inf") if odd else gap / scale if scale else gap
        yield Difference(launch.label, name, int(differs.sum()), found.numel(), largest)


def _typed(storage: torch.Tensor, place: Place) -> torch.Tensor:
    """What lies from the offset on, as many elements as there are whole ones."""
    part, size = storage[place.offset :], place.dtype.itemsize
    return part[: len(part) // size * size].clone().view(place.dtype)


def compare_all(path: Path, bound: float) -> int:
    """The number of launches whose outputs are further apart than `bound`, or that fault."""
    archive, bad = Archive(path), 0
    for at in archive.read()[1]:
        launch = archive.launch(at)
        try:
            differences = list(compare(launch))
        except Exception as error:
            click.echo(f"{launch.label}: {error}")
            bad += 1
            continue
        for one in differences:
            said = f"{one.differing} of {one.total} elements differ, by {one.largest:.1e} at most"
            click.echo(f"{one.label}: {one.argument}: {said}")
        bad += any(not one.largest <= bound for one in differences)
    return bad

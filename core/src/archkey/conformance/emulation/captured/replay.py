# SPDX-License-Identifier: Apache-2.0
"""A launch of a card on the emulator, and what it wrote otherwise than the card."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from archkey.conformance.emulation.captured.archive import Launch, Place
from archkey.conformance.emulation.captured.rounding import LAST, allowed, last_place
from archkey.conformance.emulation.ptx.launcher import execute

__all__ = ["OUTSIDE", "Difference", "compare", "plain"]

OUTSIDE = "outside of what was written"
"""Stands for an argument where bytes differ that no tensor's elements have."""


class Difference(NamedTuple):
    """One tensor of one launch.

    differing  elements of `elements` that are not the same number
    last       the largest difference in units of the dtype's last place at that element
    row        what is more than `rounding.LAST` of these units, relative to the largest that the
               card wrote into its row: the largest
    share      the largest difference as a share of what `rounding` allows there
    """

    argument: str
    dtype: str
    elements: int
    differing: int
    last: float
    row: float
    share: float

    @property
    def explained(self) -> bool:
        """Whether rounding explains it."""
        return self.share <= 1

    def to_json(self) -> dict[str, Any]:
        """All fields; numbers have three digits. JSON has no infinity: then it is a text."""
        return {name: plain(v) if isinstance(v, float) else v for name, v in self._asdict().items()}


def plain(value: float) -> float | str:
    """For JSON."""
    return float(f"{value:.2e}") if value < math.inf else "inf"


def compare(launch: Launch) -> list[Difference]:
    """Run the launch on the emulator; what both wrote, by tensor. Raises what the emulator does."""
    own = [storage.clone() for storage in launch.before]
    arguments = {
        name: own[value.storage][value.offset :] if isinstance(value, Place) else value
        for name, value in launch.arguments.items()
    }
    execute(launch.text, launch.grid, launch.signature, arguments, launch.shared_bytes)
    return list(_differences(launch, own))


def _differences(launch: Launch, own: list[torch.Tensor]) -> Iterator[Difference]:
    covered = [torch.zeros(len(storage), dtype=torch.bool) for storage in own]
    for name, place in launch.arguments.items():
        if not isinstance(place, Place) or not math.prod(place.shape):
            continue
        found, want, start = (
            _elements(one[place.storage], place) for one in (own, launch.after, launch.before)
        )
        inside = covered[place.storage].view(-1)
        spread = (*place.shape, place.dtype.itemsize)
        strides = (*(s * place.dtype.itemsize for s in place.strides), 1)
        inside.as_strided(spread, strides, place.offset).fill_(True)
        if _equal(found, start) and _equal(want, start):
            continue  # an input
        yield _difference(launch, name, place.dtype, found, want)
    stray = [
        int(((a != b) & ~inside).sum())
        for a, b, inside in zip(own, launch.after, covered, strict=True)
    ]
    if any(stray):
        yield Difference(OUTSIDE, "bytes", sum(stray), sum(stray), math.inf, math.inf, math.inf)


def _difference(
    launch: Launch, name: str, dtype: torch.dtype, found: torch.Tensor, want: torch.Tensor
) -> Difference:
    about = (name, str(dtype).removeprefix("torch."), found.numel())
    if not dtype.is_floating_point:
        count = int((found != want).sum())
        far = math.inf if count else 0.0
        return Difference(*about, count, far, far, far)
    a, b = found.double(), want.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return Difference(*about, 0, 0.0, 0.0, 0.0)
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(math.inf, math.inf)
    unit = last_place(torch.maximum(a.abs(), b.abs()).nan_to_num(0.0, 0.0), dtype)
    largest = b.abs().nan_to_num(0.0, 0.0)
    largest = largest.amax(-1, keepdim=True).expand_as(b) if b.ndim else largest
    most = allowed(launch.text, dtype)
    last = float((gap / unit).max())
    rest = (gap - LAST * unit).clamp(min=0)
    row = float((rest / largest.clamp(min=torch.finfo(dtype).smallest_normal)).max())
    share = float((gap / (most.last * unit + most.row * largest)).max())
    return Difference(*about, int((~same).sum()), last, row, share)


def _elements(storage: torch.Tensor, place: Place) -> torch.Tensor:
    """A tensor's elements, from its bytes."""
    part, size = storage[place.offset :], place.dtype.itemsize
    typed = part[: len(part) // size * size].clone().view(place.dtype)
    return typed.as_strided(place.shape, place.strides)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the bits are the same."""
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )

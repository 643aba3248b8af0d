# SPDX-License-Identifier: Apache-2.0
"""What launches did: instructions by class, bytes, operations of the matrix units. Needs no numpy.

Which class a mnemonic has is said by each language: `classes`, and `ptx.counters`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Counters", "Place", "Places", "counting", "places"]

Place = tuple[int, int, int]
"""A workgroup's x, y, z."""


@dataclass
class Counters:
    """Of all workgroups that ran.

    instructions  of warps (waves), by class
    loaded        bytes that threads read of global memory, each as often as it is read
    stored        bytes that threads write to it
    copied        bytes of it that asynchronous copies read into shared memory
    lds_loaded    bytes that threads read of LDS; None where that is not counted, as for PTX
    lds_stored    bytes that threads and copies write to it
    flops         multiplications and additions of the matrix units
    """

    instructions: Counter[str] = field(default_factory=Counter)
    loaded: int = 0
    stored: int = 0
    copied: int = 0
    lds_loaded: int | None = None
    lds_stored: int | None = None
    flops: int = 0

    def add(self, other: Counters, times: float = 1) -> None:
        """And what another has, so many times; whole numbers."""
        for name, count in other.instructions.items():
            self.instructions[name] += round(count * times)
        for name, count in vars(other).items():
            if name != "instructions" and count is not None:
                setattr(self, name, (getattr(self, name) or 0) + round(count * times))

    def take(self) -> Counters:
        """What is counted until now; from here on this counts anew."""
        taken = Counters(**vars(self))
        self.instructions = Counter()
        self.loaded = self.stored = self.copied = self.flops = 0
        self.lds_loaded = self.lds_stored = None
        return taken

    def to_json(self) -> dict[str, object]:
        """All counts; `instructions` by class, sorted."""
        return {**vars(self), "instructions": dict(sorted(self.instructions.items()))}


_COUNTING: ContextVar[tuple[Counters, int] | None] = ContextVar("counting", default=None)


@contextmanager
def counting(sample: int = 0) -> Iterator[Counters]:
    """Counts what the launches within it do.

    sample  run only so many workgroups of a launch, evenly spaced, and multiply what they did: the
            outputs are of no use then. 0: all
    """
    counters = Counters()
    token = _COUNTING.set((counters, sample))
    try:
        yield counters
    finally:
        _COUNTING.reset(token)


class Places(NamedTuple):
    """The workgroups of a launch that run, and of how many each stands for."""

    chosen: Sequence[Place]
    times: float

    def done(self, counters: Counters) -> None:
        """Adds what they did to those who count."""
        if found := _COUNTING.get():
            found[0].add(counters, self.times)


def places(grid: Place) -> Places:
    """Of a grid, x fastest: all, or the sample of `counting`."""
    found = [(x, y, z) for z, y, x in itertools.product(*(range(n) for n in reversed(grid)))]
    _, sample = _COUNTING.get() or (None, 0)
    chosen = found[:: -(-len(found) // sample)] if sample else found
    return Places(chosen, len(found) / max(len(chosen), 1))

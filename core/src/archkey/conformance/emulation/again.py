# SPDX-License-Identifier: Apache-2.0
"""Runs workgroups twice, to see what a result does not show: that it depends on what it must not.

The second time other bits stand in registers and scratch that nobody wrote, and the waves run in
the opposite order. Compilers read registers that nobody wrote, for halves of a pair or lanes that
nobody asks for, and rightly so; what counts is that no byte that is stored depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.memory import Memory, Stored

__all__ = ["LAUNCHES", "WORKGROUPS", "Conditions", "Difference", "twice", "usual"]

WORKGROUPS, LAUNCHES = 16, 8
"""Each 16th workgroup, from the first on, of each 8th launch of a program, runs twice: an error in
one is in many."""

_POISON = 0x7FFBADBA  # as Group has it by itself
_OTHER = 0x3F813F81  # about 1, in every format


class Conditions(NamedTuple):
    """What a program must not depend on.

    fill      32 bits of what nobody wrote
    order     seed of the order of waves
    reversed  the very opposite order: of any two waves the other one is first
    """

    fill: int
    order: str
    reversed: bool = False


class Difference(NamedTuple):
    """label: of the first store that differs, `Memory.label`; how many bytes, and upon what."""

    label: int
    bytes: int
    cause: str


def usual(order: str) -> Conditions:
    """Of a workgroup that runs once."""
    return Conditions(_POISON, order)


def twice(
    memory: Memory, once: Callable[[Conditions], object], order: str, atomics: bool
) -> Difference | None:
    """Run `once`, and again: what differs; memory is as the first run left it.

    order    a seed
    atomics  the program has some: what waves get of them may depend on their order, which stays
    """
    with memory.recorded() as kept:
        once(usual(order))
    another = Conditions(_OTHER, order, reversed=not atomics)
    if (found := _differing(memory, kept, once, another)) is None:
        return None
    filled = _differing(memory, kept, once, Conditions(_OTHER, order))
    cause = "the order of waves" if filled is None else "registers or scratch that nobody wrote"
    return Difference(*found, cause)


def _differing(
    memory: Memory, kept: list[Stored], once: Callable[[Conditions], object], other: Conditions
) -> tuple[int, int] | None:
    """Run under `other` conditions, then restore: the first store that differs, and its bytes."""
    want = [memory.peek(stored) for stored in kept]
    memory.undo(kept)
    try:
        with memory.recorded(kept=False) as found:
            once(other)
    except Fault as error:
        said = "in a second run, with other bits where nobody wrote and the opposite order of waves"
        raise Fault(f"{error}, {said}") from error
    have = [memory.peek(stored) for stored in found]
    again = [memory.peek(stored) for stored in kept]
    memory.undo(found)
    memory.redo(kept)
    # Either run may have written where the other did not.
    pairs = zip(
        (*kept, *found),
        (*want, *have),
        (*again, *(memory.peek(stored) for stored in found)),
        strict=True,
    )
    for stored, one, two in pairs:
        if differs := int(((one ^ two).ravel().view(np.uint8) != 0).sum()):
            return stored.label, differs
    return None

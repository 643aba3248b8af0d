# SPDX-License-Identifier: Apache-2.0
"""Runs workgroups twice, to see what a result does not show: that it depends on what it must not.

The second time other bits stand in registers, scratch and LDS that nobody wrote, and the waves run
in the opposite order. Compilers read registers that nobody wrote, for halves of a pair or lanes
that nobody asks for, and Triton's pipelines read LDS that no copy has filled, where a loop had no
round; rightly so. What counts is that no byte that is stored depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.memory import Memory, Stored

__all__ = ["LAUNCHES", "WORKGROUPS", "Conditions", "Difference", "checked"]

WORKGROUPS, LAUNCHES = 16, 8
"""Each 16th workgroup, from the first on, of each 8th launch of a program, runs twice: an error in
one is in many."""

_POISON = 0x7FFBADBA  # a quiet NaN as float32, and as either half of it
_OTHER = 0x3F813F81  # about 1, in every format


class Conditions(NamedTuple):
    """What a program must not depend on.

    order     seed of the order of waves
    fill      32 bits of registers and scratch that nobody wrote
    lds       a byte of LDS that nobody wrote
    reversed  the very opposite order: of any two waves the other one is first
    """

    order: str
    fill: int = _POISON
    lds: int = 0xFF
    reversed: bool = False


class Difference(NamedTuple):
    """label: of the first store that differs, `Memory.label`; how many bytes, and upon what.

    read  the label of the first read of LDS that nobody wrote, if that is the cause
    """

    label: int
    bytes: int
    cause: str
    read: int | None = None


Once = Callable[[Conditions], "int | None"]
"""Runs a workgroup; the label of the first read of LDS that nobody wrote."""


def checked(
    memory: Memory, once: Once, order: str, *, atomics: bool, always: bool
) -> Difference | None:
    """Run `once`, and again: what differs; memory is as the first run left it.

    order    a seed
    atomics  the program has some: what waves get of them may depend on their order, which stays
    always   else only if the first run read LDS that nobody wrote
    """
    with memory.recorded() as kept:
        read = once(Conditions(order))
    if read is None and not always:
        return None
    other = Conditions(order, _OTHER, _OTHER & 0xFF, reversed=not atomics)
    if (found := _differing(memory, kept, once, other)) is None:
        return None
    if read is not None and _differing(memory, kept, once, Conditions(order, lds=other.lds)):
        return Difference(*found, "LDS that nobody wrote", read)
    filled = _differing(memory, kept, once, Conditions(order, _OTHER))
    cause = "the order of waves" if filled is None else "registers or scratch that nobody wrote"
    return Difference(*found, cause)


def _differing(
    memory: Memory, kept: list[Stored], once: Once, other: Conditions
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

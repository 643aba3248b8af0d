# SPDX-License-Identifier: Apache-2.0
"""A kernel's text, decoded once: one function an instruction."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from archkey.conformance.emulation import (
    atomics,
    convert,
    division,
    floats,
    flow,
    integers,
    lanes,
    lds,
    lds_atomics,
    matrix,
    packed,
    scalar,
    vmem,
)
from archkey.conformance.emulation.builders import Builder, Step
from archkey.conformance.emulation.classes import class_of
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.text import Assembly, Instruction, parse

__all__ = ["TARGETS", "Code", "families", "load"]

TARGETS = tuple(convert.FP8)
"""The architectures whose code can be emulated."""

_COMMON = (
    *(
        scalar,
        flow,
        integers,
        floats,
        division,
        packed,
        convert,
        lanes,
        lds,
        lds_atomics,
        vmem,
        atomics,
    ),
    matrix,
)


@dataclass(frozen=True)
class Code:
    """steps[i] executes assembly.instructions[i], which counts in classes[i].

    launches  how often it was launched before
    """

    assembly: Assembly
    steps: tuple[Step, ...]
    classes: tuple[str, ...]
    launches: Iterator[int] = field(default_factory=itertools.count)


@functools.cache
def families(target: str) -> Mapping[str, Builder]:
    """Every mnemonic that can be executed for `target`, with its builder."""
    if target not in TARGETS:
        raise UnknownInstruction(f"no emulator of {target}; known: {', '.join(TARGETS)}")
    found: dict[str, Builder] = {}
    for family in _COMMON:
        found |= family.TABLE
    return {**found, **convert.of_target(target), **matrix.of_target(target)}


@functools.lru_cache(256)
def load(text: str) -> Code:
    """The text decoded. UnknownInstruction for what is not in the tables, or only in part."""
    assembly = parse(text)
    known = families(assembly.target)
    # Before the builders take the modifiers.
    classes = tuple(class_of(instruction) for instruction in assembly.instructions)
    steps = [_step(instruction, assembly, known) for instruction in assembly.instructions]
    return Code(assembly, tuple(steps), classes)


def _step(instruction: Instruction, assembly: Assembly, known: Mapping[str, Builder]) -> Step:
    if instruction.name not in known:
        raise UnknownInstruction(f"unknown instruction {instruction} of {assembly.target}")
    try:
        step = known[instruction.name](instruction, assembly.labels)
    except UnknownInstruction as error:
        if str(instruction) in str(error):
            raise
        raise UnknownInstruction(f"{error}, in {instruction}") from error
    except (ValueError, KeyError, IndexError) as error:
        raise UnknownInstruction(f"unknown operands in {instruction}: {error}") from error
    if left := instruction.left():
        raise UnknownInstruction(f"unknown modifier {', '.join(left)} of {instruction}")
    return step

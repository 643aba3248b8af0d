# SPDX-License-Identifier: Apache-2.0
"""A kernel's text, read once; its blocks become functions when they are first run."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from archkey.conformance.emulation.counters import Counters
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.ptx import (
    alu,
    arithmetic,
    asynchronous,
    calls,
    cluster,
    collectives,
    control,
    convert,
    local,
    moves,
    rounding,
    tcgen05,
    tcgen05_copies,
    tcgen05_moves,
    tensor_cores,
    tensor_maps,
    tma,
)
from archkey.conformance.emulation.ptx.counters import class_of
from archkey.conformance.emulation.ptx.flow import blocks
from archkey.conformance.emulation.ptx.generate import Builder, Function, function
from archkey.conformance.emulation.ptx.machine import Group, Workgroup
from archkey.conformance.emulation.ptx.parser import parse
from archkey.conformance.emulation.ptx.text import Instruction, Module

__all__ = ["TARGETS", "Code", "families", "load"]

TARGETS = ("sm_90a", "sm_100a")
"""The architectures whose code can be emulated."""

_COMMON = (
    *(alu, rounding, convert, moves, collectives, tensor_cores, tcgen05, tcgen05_copies),
    *(tcgen05_moves, asynchronous, control, tensor_maps, tma, cluster),
    *(local, calls),
)


@functools.cache
def families(target: str) -> Mapping[str, Builder]:
    """Every mnemonic that can be executed for `target`, with its builder."""
    if target not in TARGETS:
        raise UnknownInstruction(f"no emulator of {target}; known: {', '.join(TARGETS)}")
    table: dict[str, Builder] = {}
    for family in _COMMON:
        table |= family.TABLE
    if target == "sm_90a":
        return {name: b for name, b in table.items() if not name.startswith("tcgen05.")}
    return {name: b for name, b in table.items() if not name.startswith("wgmma.")}


_MOVES = {*alu.TABLE, *rounding.TABLE, *convert.TABLE}

HELPERS: dict[str, Any] = {}
for _family in (arithmetic, *_COMMON[1:]):
    HELPERS |= _family.HELPERS


class Code:
    """A kernel that can be run."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.blocks = blocks(module)
        self.kinds = list(module.registers.values())
        self.groups: dict[tuple[int, bytes], Group] = {}
        self._indices = {name: n for n, name in enumerate(module.registers)}
        self._functions: dict[int, Function] = {}
        self._table = families(module.target)
        self._classes = [
            Counter(class_of(i.name) for i in module.instructions[b.start : b.end])
            for b in self.blocks
        ]

    def check(self) -> None:
        """Make all functions. UnknownInstruction for what is not in the tables, or only in part."""
        for number in range(len(self.blocks)):
            self._function(number)

    def call(self, number: int, workgroup: Workgroup, group: Group) -> Any:
        """Run one block."""
        return self._function(number).run(workgroup, group)

    def place(self, frames: Iterable[Any]) -> Instruction | None:
        """The instruction that a traceback leads through."""
        found = None
        pattern = re.compile(rf"<{re.escape(self.module.name)} block (\d+)>$")
        for frame in frames:
            if match := pattern.match(frame.filename):
                at = self._functions[int(match[1])].lines[frame.lineno]
                found = self.module.instructions[at] if at >= 0 else None
        return found

    def count(self, runs: list[int], counters: Counters) -> None:
        """Add the instructions of blocks that warps ran so often."""
        for times, classes in zip(runs, self._classes, strict=True):
            if times:
                for name, n in classes.items():
                    counters.instructions[name] += times * n

    def _function(self, number: int) -> Function:
        found = self._functions.get(number)
        if found is None:
            block = self.blocks[number]
            found = function(self.module, block, self._table, HELPERS, self._indices, _MOVES)
            self._functions[number] = found
        return found


@functools.lru_cache(64)
def load(text: str, strict: bool = True) -> Code:
    """The text, read. strict: what tcgen05.ld loads must not be read before tcgen05.wait::ld."""
    module = parse(text)
    module.strict = strict
    return Code(module)

# SPDX-License-Identifier: Apache-2.0
"""Reads the assembly text of one AMD kernel: instructions, labels, directives, arguments.

The text is what LLVM writes for a Triton kernel, `compiled.asm["amdgcn"]`. Source of its syntax:
LLVM, "User Guide for AMDGPU Backend" (directives, code object metadata) and "Syntax of AMDGPU
Instruction Operands" and "Modifiers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from archkey.conformance.emulation.faults import UnknownInstruction

__all__ = ["Argument", "Assembly", "Instruction", "parse"]


class Argument(NamedTuple):
    """Where one argument lies in the kernarg segment [bytes], and what it is."""

    offset: int
    size: int
    kind: str


class Instruction:
    """One line of the program.

    name       mnemonic without the encoding: "v_add_f32"
    encoding   "", "dpp" or "sdwa"; e32 and e64 mean the same
    operands   texts between the commas: ("v1", "-|v2|", "s[4:5]")
    source     the line as it stands in the text, at `line`

    A builder takes the modifiers that it understands; what is left over is an error.
    """

    def __init__(self, line: int, source: str) -> None:
        self.line, self.source = line, " ".join(source.split())
        mnemonic, _, rest = self.source.partition(" ")
        pieces = _split(rest, ",")
        *most, last = pieces or [""]
        tail = _split(last, " ")
        self.operands = tuple(piece for piece in (*most, *tail[:1]) if piece)
        self.modifiers = dict(_modifier(word) for word in tail[1:])
        match = re.fullmatch(r"(\w+?)(?:_e32|_e64)?(?:_(dpp|sdwa))?", mnemonic)
        if match is None:
            raise UnknownInstruction(f"unknown instruction {self}")
        self.name, self.encoding = match[1], match[2] or ""

    def __str__(self) -> str:
        return f"`{self.source}` (line {self.line})"

    def take(self, name: str, default: str = "") -> str:
        """The text of a modifier, which counts as understood from here on."""
        return self.modifiers.pop(name, default)

    def flag(self, name: str) -> bool:
        """Whether a modifier without a value is there."""
        return self.modifiers.pop(name, None) is not None

    def number(self, name: str, default: int = 0) -> int:
        """The value of a numeric modifier."""
        return int(self.modifiers.pop(name, str(default)), 0)

    def bits(self, name: str, default: int, count: int) -> tuple[int, ...]:
        """A modifier such as op_sel:[0,1,0], filled up with `default` to `count` values."""
        found = self.modifiers.pop(name, "[]").strip("[]")
        given = [int(bit, 0) for bit in found.split(",")] if found else []
        return (*given, *([default] * (count - len(given))))[:count]

    def left(self) -> list[str]:
        """Modifiers that nobody took."""
        return [f"{name}:{value}" if value else name for name, value in self.modifiers.items()]


@dataclass(frozen=True)
class Assembly:
    """The text of one kernel.

    target      "gfx942"
    labels      name -> index into `instructions`
    directives  of .amdhsa_kernel: "next_free_vgpr" -> 46
    arguments   of the kernarg segment, hidden ones too
    """

    name: str
    target: str
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    directives: Mapping[str, int]
    arguments: tuple[Argument, ...]


def parse(text: str) -> Assembly:
    """The kernel in `text`. UnknownInstruction if there is none, or more than one."""
    kernels = re.findall(r"(?m)^\s*\.amdhsa_kernel\s+(\S+)", text)
    target = re.search(r'\.amdgcn_target\s+"[\w.-]*-(gfx\w+)', text)
    if len(kernels) != 1 or target is None:
        raise UnknownInstruction(f"expected the text of one AMD kernel, found {kernels or 'none'}")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    code, _, rest = text.partition(".amdhsa_kernel")
    for number, whole in enumerate(code.splitlines(), 1):
        line = whole.partition(";")[0].strip()
        if label := re.match(r"([.$\w]+):", line):
            labels[label[1]] = len(instructions)
            line = line[label.end() :].strip()
        if line and not line.startswith("."):
            instructions.append(Instruction(number, line))
    block = rest.partition(".end_amdhsa_kernel")[0]
    directives = re.findall(r"(?m)^\s*\.amdhsa_(\w+)\s+(-?\d+)\s*$", block)
    return Assembly(
        kernels[0],
        target[1],
        tuple(instructions),
        labels,
        {name: int(value) for name, value in directives},
        _arguments(rest),
    )


def _arguments(text: str) -> tuple[Argument, ...]:
    """The rows `.args` of the code object metadata."""
    note = text.partition(".amdgpu_metadata")[2].partition(".end_amdgpu_metadata")[0]
    rows = note.partition(".args:")[2].partition(".group_segment_fixed_size")[0]
    found = re.findall(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)\s+\.value_kind:\s+(\w+)", rows)
    return tuple(Argument(int(offset), int(size), kind) for offset, size, kind in found)


def _modifier(word: str) -> tuple[str, str]:
    name, _, value = word.partition(":")
    return name, value


def _split(text: str, separator: str) -> list[str]:
    """Pieces between separators that stand in no bracket."""
    pieces, depth, piece = [], 0, ""
    for sign in text:
        depth += (sign in "[(") - (sign in "])")
        if sign == separator and not depth:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += sign
    return [piece for piece in (*pieces, piece.strip()) if piece]

# SPDX-License-Identifier: Apache-2.0
"""PTX as text into instructions, labels and registers.

Only what a kernel's entry holds is read; scopes in braces (from inline assembly) have registers
and labels of their own. Source: PTX ISA, Syntax; Directives.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from archkey.conformance.emulation.faults import UnknownInstruction

__all__ = [
    *("Address", "Immediate", "Instruction", "Module", "Operand", "Register", "Special", "Symbol"),
    *("Vector", "parse"),
]


@dataclass(frozen=True)
class Register:
    """A virtual register. name: with its scope's number if it is local; kind: "b32", "pred", .."""

    name: str
    kind: str
    negated: bool = False

    @property
    def bits(self) -> int:
        """Its width; 1 of a predicate."""
        return 1 if self.kind == "pred" else int(self.kind[1:])


@dataclass(frozen=True)
class Immediate:
    """An integer, or the value of a float constant."""

    value: int | float


@dataclass(frozen=True)
class Special:
    """A register that the hardware fills, such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A variable's or a parameter's name, or a label's."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset], of a tensor map [base, {coordinates}]."""

    base: Register | Immediate | Symbol
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vector:
    """{a, b, ..}."""

    elements: tuple[Operand, ...]


Operand: TypeAlias = "Register | Immediate | Special | Symbol | Address | Vector | None"
"""None is the sink `_`."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a line of the text.

    name      the mnemonic with all its modifiers
    operands  pairs such as `%r1|%p1` are two of them
    guard     the predicate that it is under
    """

    line: int
    text: str
    name: str
    operands: tuple[Operand, ...]
    guard: Register | None = None

    def __str__(self) -> str:
        said = self.text if len(self.text) < 160 else f"{self.text[:150]} .."
        return f"line {self.line}: {said}"


@dataclass
class Module:
    """A kernel.

    parameters    name -> bits, in order
    registers     name -> kind
    labels        name -> index of the instruction after it
    shared_bytes  of shared memory that the text itself fixes, by the variable's name; -1: what the
                  launch gives
    cluster       workgroups of a cluster
    strict        whether tcgen05.ld must be waited for before its registers are read
    constants     variables in global memory -> their bytes
    tables        of branches by a number: labels, by the table's own label
    """

    name: str
    target: str
    threads: int
    cluster: int = 1
    strict: bool = True
    parameters: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    constants: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)


_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_SHARED = re.compile(
    r"(?:\.extern\s+)?\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\s*\[(\d*)\]\s*;"
)
_GLOBAL = re.compile(
    r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\s*\[(\d+)\]\s*(?:=\s*\{([^}]*)\})?;"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)\s.*?([\w$]+)\s*(?:\[(\d+)\])?\s*$"
)
_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
_ADDRESS = re.compile(r"([^+-]*)([+-]*)(.*)$")
_FLOAT = re.compile(r"0([fFdD])([0-9A-Fa-f]+)$")
_INTEGER = re.compile(r"-?(?:0[xX][0-9A-Fa-f]+|\d+)U?$")


def parse(text: str) -> Module:
    """The one kernel of `text`. UnknownInstruction for what cannot be read."""
    lines = re.sub(r"//[^\n]*", "", text).split("\n")
    kept = ["" if re.match(r"\s*\.(?:loc|file)\b", line) else line for line in lines]
    clean = "\n".join(kept)
    entries = list(_ENTRY.finditer(clean))
    if len(entries) != 1:
        raise UnknownInstruction(f"{len(entries)} kernels in one text: one is expected")
    entry = entries[0]
    before = clean[: entry.start()]
    if re.search(r"(?m)^\s*(?:\.visible |\.weak |\.extern )?\s*\.func\b", before):
        raise UnknownInstruction("functions beside the kernel (.func) are not known")
    target = re.search(r"\.target\s+(\w+)", before)
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", entry[3])
    if threads is None or target is None:
        raise UnknownInstruction("a kernel without .reqntid and .target")
    cluster = re.search(r"\.reqnctapercluster\s+(\d+)((?:\s*,\s*1)*)\s*(\.|$)", entry[3])
    if cluster is None and "cluster" in entry[3]:
        raise UnknownInstruction(f"clusters as {' '.join(entry[3].split())}")
    module = Module(entry[1], target[1], int(threads[1]), int(cluster[1]) if cluster else 1)
    for piece in filter(None, map(str.strip, entry[2].split(","))):
        parameter = _PARAMETER.match(piece)
        if parameter is None:
            raise UnknownInstruction(f"unknown parameter {piece!r}")
        module.parameters[parameter[2]] = int(parameter[1]) * int(parameter[3] or 1)
    for shared in _SHARED.finditer(clean):
        module.shared[shared[1]] = int(shared[2]) if shared[2] else -1
    for constant in _GLOBAL.finditer(clean):
        given = bytes(int(n) & 255 for n in (constant[3] or "").split(",") if n.strip())
        module.constants[constant[1]] = given.ljust(int(constant[2]), b"\0")
    _Body(module, clean, entry.end()).read()
    return module


class _Body:
    """Reads the statements between the braces of the entry."""

    def __init__(self, module: Module, text: str, start: int) -> None:
        self.module, self.text, self.start = module, text, start
        self.scopes: list[int] = [0]
        self.opened = 0
        self.declared: dict[int, dict[str, str]] = {0: {}}
        self.open: list[tuple[Instruction, tuple[int, ...], list[str]]] = []

    def read(self) -> None:
        pending: list[tuple[int, str, tuple[int, ...]]] = []
        label = ""  # the last one before a statement
        for line, statement in self._statements():
            rest = statement
            while found := _LABEL.match(rest):
                label = self._local(found[1])
                self.module.labels[label] = len(pending)
                rest = rest[found.end() :]
            rest = " ".join(rest.split())
            if not rest:
                continue
            if rest.startswith(".branchtargets") and label and not self.scopes[-1]:
                self.module.tables[label] = tuple(rest.partition(" ")[2].replace(",", " ").split())
            elif rest.startswith(".reg"):
                self._declare(rest)
            elif rest.startswith("."):
                if not rest.startswith((".pragma", ".shared")):
                    raise UnknownInstruction(f"unknown directive {rest!r} in line {line}")
            else:
                pending.append((line, rest, tuple(self.scopes)))
            label = ""
        for line, rest, scopes in pending:
            self.module.instructions.append(self._instruction(line, rest, scopes))

    def _statements(self) -> Iterator[tuple[int, str]]:
        """(line, statement), while scopes are opened and closed."""
        line = self.text.count("\n", 0, self.start) + 1
        current, at, vector = "", line, 0
        for token in re.finditer(r"[{};]|\n|[^{};\n]+", self.text[self.start :]):
            piece = token[0]
            if piece == "\n":
                line += 1
                current += " "
                if (found := _LABEL.match(current)) and not current[found.end() :].strip():
                    yield at, current
                    current = ""
            elif piece == ";" and not vector:
                yield at, current
                current = ""
            elif piece == "{" and not _unlabelled(current):
                yield at, current
                current = ""
                self.opened += 1
                self.scopes.append(self.opened)
                self.declared[self.opened] = {}
            elif piece == "}" and not vector:
                yield at, current
                current = ""
                if len(self.scopes) == 1:
                    return
                self.scopes.pop()
            else:
                vector += (piece == "{") - (piece == "}")
                if not current.strip():
                    at = line
                current += piece
        raise UnknownInstruction(f"{self.module.name} does not end")

    def _local(self, name: str) -> str:
        """A label's name in the module, unlike those of other scopes."""
        scope = self.scopes[-1]
        self.declared[scope]["label " + name] = ""
        return f"{name}@{scope}" if scope else name

    def _declare(self, statement: str) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement)
        if found is None:
            raise UnknownInstruction(f"unknown declaration {statement!r}")
        kind = "pred" if found[1] == "pred" else f"b{found[1][1:]}"
        if kind not in ("pred", "b16", "b32", "b64"):
            raise UnknownInstruction(f"registers of .{found[1]} are not known")
        scope = self.scopes[-1]
        for item in found[2].split(","):
            many = re.match(r"\s*([%\w$]+)\s*<(\d+)>", item)
            names = [f"{many[1]}{n}" for n in range(int(many[2]))] if many else [item.strip()]
            for name in names:
                self.declared[scope][name] = kind
                self.module.registers[f"{name}@{scope}" if scope else name] = kind

    def _instruction(self, line: int, statement: str, scopes: tuple[int, ...]) -> Instruction:
        text, guard = statement, None
        if statement.startswith("@"):
            word, _, statement = statement[1:].partition(" ")
            found = self._operand(word.lstrip("!"), scopes)
            if not isinstance(found, Register) or found.kind != "pred":
                raise UnknownInstruction(f"unknown guard in line {line}: {text}")
            guard = Register(found.name, found.kind, word.startswith("!"))
        name, _, rest = statement.strip().partition(" ")
        operands = [self._operand(piece, scopes) for piece in _split(rest)]
        return Instruction(line, text, name, tuple(operands), guard)

    def _operand(self, text: str, scopes: tuple[int, ...]) -> Operand:
        text = text.strip()
        if text == "_":
            return None
        if text[0] == "{":
            return Vector(tuple(self._operand(piece, scopes) for piece in _split(text[1:-1])))
        if text[0] == "[":
            return self._address(text, scopes)
        if (value := _number(text)) is not None:
            return Immediate(value)
        negated = text.startswith("!")
        text = text.lstrip("!")
        for scope in reversed(scopes):
            declared = self.declared[scope]
            local = f"{text}@{scope}" if scope else text
            if text in declared:
                return Register(local, declared[text], negated)
            if "label " + text in declared:
                return Symbol(local)
        if text[0] == "%":
            return Special(text)
        return Symbol(text)

    def _address(self, text: str, scopes: tuple[int, ...]) -> Address:
        place, *rest = _split(text[1:-1])
        inside = _ADDRESS.match(place.strip())
        given = self._operand(rest[0], scopes) if rest else Vector(())
        if inside is None or len(rest) > 1 or not isinstance(given, Vector):
            raise UnknownInstruction(f"unknown address {text}")
        base, sign, offset = inside.groups()
        if not base.strip():
            return Address(Immediate(int(sign + offset, 0)))
        found = self._operand(base, scopes)
        if not isinstance(found, Register | Immediate | Symbol):
            raise UnknownInstruction(f"unknown address {text}")
        size = int(offset, 0) if offset.strip() else 0
        return Address(found, -size if "-" in sign else size, given.elements)


def _unlabelled(current: str) -> str:
    """What of a statement comes after its labels."""
    while label := _LABEL.match(current):
        current = current[label.end() :]
    return current.strip()


def _split(text: str) -> list[str]:
    """At commas and bars outside of braces and brackets."""
    pieces, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter in ",|" and not depth:
            pieces.append(current)
            current = ""
        else:
            current += letter
    return [piece for piece in (*pieces, current) if piece.strip()]


def _number(text: str) -> int | float | None:
    if found := _FLOAT.match(text):
        form = ">f" if found[1] in "fF" else ">d"
        return float(struct.unpack(form, bytes.fromhex(found[2]))[0])
    if _INTEGER.match(text):
        return int(text.rstrip("U"), 0)
    return None

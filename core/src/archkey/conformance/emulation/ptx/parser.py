# SPDX-License-Identifier: Apache-2.0
"""Reads PTX: the kernel of a text, with all that it calls.

Scopes in braces (from inline assembly) have registers and labels of their own. Source: PTX ISA,
Syntax; Directives.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.ptx.functions import (
    EXTERNAL,
    Call,
    call_of,
    functions_of,
    parameter_move,
)
from archkey.conformance.emulation.ptx.text import (
    Address,
    Immediate,
    Instruction,
    Module,
    Operand,
    Register,
    Special,
    Symbol,
    Vector,
)

__all__ = ["parse"]

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
_RETURN = re.compile(r"(@\S+ )?ret(?:\.uni)?$")
_END = "the_end_of_a_function"
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
        self.functions = functions_of(text)
        self.called: list[str] = []
        self.held: dict[str, str] = {}  # registers that stand for variables of calls
        self.pending: list[tuple[int, str, tuple[int, ...]]] = []
        self.scopes: list[int] = [0]
        self.opened = 0
        self.declared: dict[int, dict[str, str]] = {0: {}}
        self.open: list[tuple[Instruction, tuple[int, ...], list[str]]] = []

    def read(self) -> None:
        self._read(self.start)
        for line, rest, scopes in self.pending:
            self.module.instructions.append(self._instruction(line, rest, scopes))

    def _read(self, start: int) -> None:
        """The statements of a body, those of the functions that it calls in their places."""
        label = ""  # the last one before a statement
        for line, statement in self._statements(start):
            rest = statement
            while found := _LABEL.match(rest):
                label = self._local(found[1])
                self.module.labels[label] = len(self.pending)
                rest = rest[found.end() :]
            rest = " ".join(rest.split())
            if not rest:
                continue
            if rest.startswith(".branchtargets") and label:
                scope = f"@{self.scopes[-1]}" if self.scopes[-1] else ""
                names = rest.partition(" ")[2].replace(",", " ").split()
                self.module.tables[label] = tuple(f"{name}{scope}" for name in names)
            elif rest.startswith(".reg"):
                self._declare(rest)
            elif rest.startswith("."):
                self._directive(line, rest)
            elif (called := call_of(rest)) is not None:
                self._call(line, called)
            elif self.called and _RETURN.match(rest):
                self.pending.append((line, _RETURN.sub(rf"\1bra.uni {_END}", rest), self._within()))
            else:
                self.pending.append((line, self._renamed(rest), self._within()))
            label = ""

    def _within(self) -> tuple[int, ...]:
        return tuple(self.scopes)

    def _directive(self, line: int, rest: str) -> None:
        """Variables of .param and .local space; what else there is changes nothing."""
        declared = self.declared[self.scopes[-1]]
        if found := re.match(r"\.param\s+.*?([\w$]+)\s*(?:\[\d+\])?$", rest):
            declared["param " + found[1]] = f"{found[1]}@{self.scopes[-1]}"
        elif found := re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$", rest):
            name = f"{found[2]}@{self.scopes[-1]}"
            first = -(-self.module.local_bytes // 16) * 16
            self.module.local[name] = first
            self.module.local_bytes = first + int(found[3])
            declared["label " + found[2]] = name
        elif not rest.startswith((".pragma", ".shared")):
            raise UnknownInstruction(f"unknown directive {rest!r} in line {line}")

    def _call(self, line: int, call: Call) -> None:
        variables = [self._variable(name) for name in (*call.results, *call.arguments)]
        if call.name in EXTERNAL:
            bits = 64 if call.name == "vprintf" else 0
            given = [self._held(v, bits) for v in variables[len(call.results) :]]
            targets = [self._held(v, 32) for v in variables[: len(call.results)]]
            text = f"call.{call.name} {', '.join([*targets, *given])}"
            self.pending.append((line, text, self._within()))
            return
        function = self.functions.get(call.name)
        if function is None or call.name in self.called:
            raise UnknownInstruction(f"a call of {call.name}: not there, or recursive")
        formal = (*function.results, *function.parameters)
        if len(formal) != len(variables):
            raise UnknownInstruction(f"a call of {call.name} with {len(variables)} variables")
        self.opened += 1
        scope, outer = self.opened, self.scopes
        self.declared[scope] = {f"param {f}": v for f, v in zip(formal, variables, strict=True)}
        self.declared[scope]["label " + _END] = f"{_END}@{scope}"
        self.scopes = [scope]
        self.called.append(call.name)
        self._read(function.start)
        self.called.pop()
        self.module.labels[f"{_END}@{scope}"] = len(self.pending)
        self.scopes = outer

    def _variable(self, name: str) -> str:
        """The one variable of .param space that is called so here."""
        for scope in reversed(self.scopes):
            if (found := self.declared[scope].get("param " + name)) is not None:
                return found
        raise UnknownInstruction(f"the variable {name} of a call is not declared")

    def _held(self, variable: str, bits: int, offset: int = 0) -> str:
        """The register that stands for (a part of) a variable; bits: 0 for what it has."""
        name = f"%{variable.replace('@', '_')}_{offset}"
        kind = self.held.get(name)
        if kind is None and bits:
            kind = self.held[name] = self.module.registers[name] = f"b{bits}"
        if kind is None or (bits and kind != f"b{bits}"):
            raise UnknownInstruction(f"{bits} bits of {variable} at {offset}, which has {kind}")
        return name

    def _renamed(self, rest: str) -> str:
        """Moves of such variables as moves of registers."""
        move = parameter_move(rest)
        if move is None or not self._has(move.variable):
            return rest
        held = self._held(self._variable(move.variable), move.bits, move.offset)
        pair = (move.other, held) if move.load else (held, move.other)
        return f"mov.b{move.bits} {', '.join(pair)}"

    def _has(self, variable: str) -> bool:
        return any("param " + variable in self.declared[scope] for scope in self.scopes)

    def _statements(self, start: int) -> Iterator[tuple[int, str]]:
        """(line, statement), while scopes are opened and closed."""
        line = self.text.count("\n", 0, start) + 1
        depth = len(self.scopes)
        current, at, vector = "", line, 0
        for token in re.finditer(r"[{};]|\n|[^{};\n]+", self.text[start:]):
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
                if len(self.scopes) == depth:
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
        if text in self.held:
            return Register(text, self.held[text])
        negated = text.startswith("!")
        text = text.lstrip("!")
        for scope in reversed(scopes):
            declared = self.declared[scope]
            local = f"{text}@{scope}" if scope else text
            if text in declared:
                return Register(local, declared[text], negated)
            if "label " + text in declared:
                return Symbol(declared["label " + text] or local)
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

# SPDX-License-Identifier: Apache-2.0
"""What a PTX text is made of: instructions with operands, registers, a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    *("Address", "Immediate", "Instruction", "Module", "Operand", "Register", "Special", "Symbol"),
    "Vector",
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
    local         variables of a thread -> where they begin in its own memory of `local_bytes`
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
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)

# SPDX-License-Identifier: Apache-2.0
"""A basic block into one Python function on numpy vectors over the threads that run it.

A function is `block(S, G)`: S is the workgroup, G the group of threads. Registers are bit patterns,
and variables of the function while it runs; a view as another kind of number is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.flow import Block, registers_of, results
from archkey.conformance.emulation.ptx.text import (
    Address,
    Immediate,
    Instruction,
    Module,
    Operand,
    Register,
    Special,
    Symbol,
)

__all__ = ["Builder", "Emitter", "Function", "function"]

Builder: TypeAlias = "Callable[[Emitter, Instruction], None]"
"""Emits one instruction; an entry of the tables of the families."""

_UNSIGNED = {16: "u2", 32: "u4", 64: "u8", 1: "pred"}
_BITS = {"pred": 1, **{f"{c}{n}": 8 * n for c in "uif" for n in (1, 2, 4, 8)}}
SPECIAL = {
    "%tid.x": "S.within(G)",
    "%laneid": "(G.tid & u4(31))",
    "%warpid": "(S.within(G) >> u4(5))",
    **{f"%tid.{axis}": "full(G.n, u4(0))" for axis in "yz"},
    "%ntid.x": "full(G.n, u4(S.threads))",
    **{f"%ntid.{axis}": "full(G.n, u4(1))" for axis in "yz"},
    **{f"%ctaid.{axis}": f"S.at(G, {n})" for n, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"full(G.n, u4(S.grid[{n}]))" for n, axis in enumerate("xyz")},
    **{f"%cluster_ctaid.{axis}": "full(G.n, u4(0))" for axis in "yz"},
    **dict.fromkeys(("%cluster_ctarank", "%cluster_ctaid.x"), "full(G.n, u4(S.rank))"),
    **dict.fromkeys(("%cluster_nctarank", "%cluster_nctaid.x"), "full(G.n, u4(S.cluster.size))"),
}


class Function(NamedTuple):
    """block(S, G), and of each line of its source the index of its instruction."""

    run: Callable[[Any, Any], Any]
    lines: tuple[int, ...]


class Emitter:
    """Writes the source of one block."""

    def __init__(self, module: Module, indices: Mapping[str, int]) -> None:
        self.module, self.indices = module, indices
        self.lines: list[tuple[int, str]] = []
        self.constants: dict[str, Any] = {}
        self._views: dict[str, dict[str, str]] = {}
        self._at, self._made = -1, 0
        self._mask: str | None = None
        self.unwaited: set[str] = set()
        self._moves = self._found_unwaited = False
        self.carry = ""  # the variable that has it, within a block

    # What builders use.

    def line(self, text: str) -> None:
        """One line of source, on behalf of the current instruction."""
        self.lines.append((self._at, text))

    def fresh(self) -> str:
        """A variable's name that is not used yet."""
        self._made += 1
        return f"t{self._made}"

    def constant(self, value: Any) -> str:
        """A name for an object."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    @property
    def mask(self) -> str:
        """The predicate that the current instruction is under, or "None"."""
        return self._mask or "None"

    def read(self, operand: Operand, kind: str) -> str:
        """An expression of the operand as `kind`: "u4", "f4", "pred", .. A scalar if immediate."""
        if isinstance(operand, Register):
            return self._register(operand, kind)
        if isinstance(operand, Immediate):
            return self.constant(_scalar(operand.value, kind))
        if isinstance(operand, Special):
            if operand.name not in SPECIAL or kind not in ("u4", "i4"):
                raise UnknownInstruction(f"special register {operand.name} as {kind}")
            return f"({SPECIAL[operand.name]}).view({kind})"
        if isinstance(operand, Symbol):
            return f"S.symbol(G, {operand.name!r}, {kind})"
        raise UnknownInstruction(f"operand {operand} where a {kind} is expected")

    def vector(self, operand: Operand, kind: str) -> str:
        """The same as an array in any case."""
        found = self.read(operand, kind)
        return f"full(G.n, {found})" if isinstance(operand, Immediate) else found

    def address(self, operand: Operand, wide: bool) -> str:
        """The sum of an address, 64 or 32 bits."""
        if not isinstance(operand, Address) or operand.coordinates:
            raise UnknownInstruction(f"operand {operand} where an address is expected")
        kind = "u8" if wide else "u4"
        base = self.vector(operand.base, kind)
        if not operand.offset:
            return base
        size = 1 << (64 if wide else 32)
        return f"({base} + {self.constant(np.dtype(kind).type(operand.offset % size))})"

    def shared(self, operand: Operand) -> str:
        """An address in shared memory, whose register may have 64 bits: 32 of them."""
        base = operand.base if isinstance(operand, Address) else None
        if isinstance(base, Register) and base.bits == 64:
            return f"({self.address(operand, wide=True)}).astype(u4)"
        return self.address(operand, wide=False)

    def write(self, operand: Operand, kind: str, expression: str) -> None:
        """Assign; under the instruction's predicate, if it has one. Narrow kinds are extended."""
        if operand is None:
            self.line(expression)
            return
        if not isinstance(operand, Register):
            raise UnknownInstruction(f"result {operand} is no register")
        own = _UNSIGNED[operand.bits]
        if kind != own and _BITS[kind] < operand.bits:
            expression = f"({expression}).astype({'i' if kind[0] == 'i' else 'u'}{own[1]})"
            kind = ("i" if kind[0] == "i" else "u") + own[1]
        if _BITS[kind] != operand.bits:
            raise UnknownInstruction(f"a result of {kind} in {operand.name} of {operand.kind}")
        if self._mask is not None:
            expression = f"where({self._mask}, {expression}, {self.read(operand, kind)})"
        self.unwaited.discard(operand.name)
        if self._found_unwaited:
            self.unwaited.add(operand.name)
        name = self._variable(operand.name, kind)
        self.line(f"{name} = {expression}")
        self._views[operand.name] = {kind: name}

    def results(self, operands: list[Operand], kind: str, expression: str) -> None:
        """Assign the rows of an array to registers."""
        name = self.fresh()
        self.line(f"{name} = {expression}")
        for n, operand in enumerate(operands):
            self.write(operand, kind, f"{name}[{n}]")

    # What builds a function.

    def begin(self, at: int, guard: Register | None, moves: bool) -> None:
        """Instruction `at` comes next. moves: it changes nothing but registers of its thread.

        Compilers let such ones pass tcgen05.wait::ld; then their results are not waited for.
        """
        self._at, self._mask = at, None
        self._moves, self._found_unwaited = moves, False
        if guard is not None:
            self._mask = self.fresh()
            self.line(f"{self._mask} = {self._register(guard, 'pred')}")

    def enter(self, names: list[str], registers: Mapping[str, str]) -> None:
        """Fetch the registers that the block finds."""
        self.line("R = S.registers")
        found = []
        for name in names:
            kind = "pred" if registers[name] == "pred" else f"u{int(registers[name][1:]) // 8}"
            found.append(self._variable(name, kind))
            self._views[name] = {kind: found[-1]}
        if found:
            indices = tuple(self.indices[name] for name in names)
            self.line(f"{', '.join(found)}, = fetch(R, G, {self.constant(indices)})")

    def leave(self, names: list[str], registers: Mapping[str, str]) -> None:
        """Put back the registers that others read."""
        self._at, self._moves, self._found_unwaited = -1, False, False
        self.unwaited.clear()
        pairs = []
        for name in names:
            if name in self._views:
                bits = 1 if registers[name] == "pred" else int(registers[name][1:])
                value = self._register(Register(name, registers[name]), _UNSIGNED[bits])
                pairs.append((self.indices[name], value))
        if pairs:
            indices = self.constant(tuple(index for index, _ in pairs))
            self.line(f"keep(R, G, {indices}, ({', '.join(value for _, value in pairs)},))")

    def _variable(self, name: str, kind: str) -> str:
        return f"r{self.indices[name]}{kind}"

    def _register(self, register: Register, kind: str) -> str:
        views = self._views.get(register.name)
        if register.name in self.unwaited and self.module.strict:
            if self._moves:
                self._found_unwaited = True
            else:
                self.line("unwaited()")
                self.unwaited.clear()
        if views is None:
            raise UnknownInstruction(f"{register.name} has no value here")
        if kind == "pred" or register.kind == "pred":
            if (kind, register.kind) != ("pred", "pred"):
                raise UnknownInstruction(f"{register.name} of {register.kind} as {kind}")
            return f"(~{views['pred']})" if register.negated else views["pred"]
        if kind in views:
            return views[kind]
        source, variable = next(iter(views.items()))
        if _BITS[kind] == register.bits:
            name = self._variable(register.name, kind)
            self.line(f"{name} = {variable}.view({kind})")
            views[kind] = name
            return name
        if _BITS[kind] > register.bits:
            raise UnknownInstruction(f"{register.name} of {register.kind} read as {kind}")
        # The low part of a wider register.
        whole = self._register(register, _UNSIGNED[register.bits])
        return f"{whole}.astype(u{kind[1]}).view({kind})"


def _scalar(value: int | float, kind: str) -> Any:
    if kind == "pred":
        return np.bool_(bool(value))
    dtype = np.dtype(kind)
    if isinstance(value, float):
        if dtype.kind == "f":
            return dtype.type(value)
        single = np.float32(value) if dtype.itemsize == 4 else np.float64(value)
        return single.view(f"u{dtype.itemsize}").astype(dtype)
    if dtype.kind == "f":
        unsigned = np.array([value % (1 << 8 * dtype.itemsize)], f"u{dtype.itemsize}")
        return unsigned.view(dtype)[0]
    unsigned = np.array([value % (1 << 8 * dtype.itemsize)], f"u{dtype.itemsize}")
    return unsigned.view(dtype)[0]


def _fetch(registers: list[Any], group: Any, indices: tuple[int, ...]) -> list[Any]:
    """What registers hold in the threads of a group."""
    if group.whole:
        return [registers[index] for index in indices]
    where = group.ix
    return [registers[index][where] for index in indices]


def _keep(
    registers: list[Any], group: Any, indices: tuple[int, ...], values: tuple[Any, ...]
) -> None:
    """Change registers in the threads of a group; others may hold the old arrays."""
    if group.whole:
        for index, value in zip(indices, values, strict=True):
            registers[index] = value
        return
    where = group.ix
    for index, value in zip(indices, values, strict=True):
        changed = registers[index].copy()
        changed[where] = value
        registers[index] = changed


def _unwaited() -> None:
    raise Fault("what tcgen05.ld loads is read before tcgen05.wait::ld")


def _full(n: int, value: Any) -> Any:
    return np.full(n, value)


_BASE: dict[str, Any] = {
    **{
        f"{c}{n}": np.dtype(f"{c}{n}").type
        for c in "uif"
        for n in (1, 2, 4, 8)
        if c + str(n) != "f1"
    },
    **{
        "np": np,
        "where": np.where,
        "full": _full,
        "unwaited": _unwaited,
        "fetch": _fetch,
        "keep": _keep,
    },
}


def _mentioned(code: Sequence[Instruction]) -> set[str]:
    """Registers of these instructions; others only pass through the block."""
    found = {i.guard.name for i in code if i.guard is not None}
    return found | {r.name for i in code for operand in i.operands for r in registers_of(operand)}


def function(
    module: Module,
    block: Block,
    table: Mapping[str, Builder],
    helpers: Mapping[str, Any],
    indices: Mapping[str, int],
    moves: Container[str] = (),
) -> Function:
    """The function of a block.

    table    mnemonic -> builder
    helpers  what their source calls
    moves    mnemonics of what computes registers from registers
    """
    emitter = Emitter(module, indices)
    code = module.instructions[block.start : block.end]
    written = set().union(*(results(instruction) for instruction in code))
    emitter.enter(sorted(block.before & _mentioned(code)), module.registers)
    answer = "None"
    for at, instruction in enumerate(code, block.start):
        emitter.begin(at, instruction.guard, instruction.name in moves)
        builder = table.get(instruction.name)
        if builder is None:
            raise UnknownInstruction(f"unknown instruction {instruction} of {module.target}")
        try:
            builder(emitter, instruction)
        except UnknownInstruction as error:
            raise UnknownInstruction(f"{error}, at {instruction}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UnknownInstruction(f"unknown operands in {instruction}: {error!r}") from error
    if block.ends in ("branch", "exit") and block.guarded:
        answer = emitter.mask
    elif block.ends in ("barrier", "table"):
        answer = emitter.lines.pop()[1]  # what the builder left
    keep = emitter.fresh()
    emitter.line(f"{keep} = {answer}")
    emitter.leave(sorted(written & block.after), module.registers)
    emitter.line(f"return {keep}")
    source = "\n".join(["def block(S, G):", *(f" {text}" for _, text in emitter.lines)])
    scope = {**_BASE, **helpers, **emitter.constants}
    exec(compile(source, f"<{module.name} block {block.number}>", "exec"), scope)
    return Function(scope["block"], (-1, -1, *(at for at, _ in emitter.lines)))

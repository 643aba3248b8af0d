# SPDX-License-Identifier: Apache-2.0
"""Basic blocks of a kernel, and which registers outlive each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.ptx.text import (
    Address,
    Instruction,
    Module,
    Operand,
    Register,
    Symbol,
    Vector,
)

__all__ = ["Block", "blocks", "registers_of"]

_BRANCH = re.compile(r"bra(?:\.uni)?$")
_BARRIER = re.compile(r"(?:bar|barrier)\.(?:cta\.)?sync(?:\.aligned)?$")
_TABLE = re.compile(r"brx\.idx(?:\.uni)?$")
_EXIT = ("ret", "exit")
_WAIT = re.compile(r"(?:mbarrier\.(?:try|test)_wait|barrier\.cluster\.wait)\b")
_GROUP = re.compile(r"wgmma\.mma_async\b")
_NO_RESULT = re.compile(
    r"(?:st|red|bar|barrier|cp|mbarrier\.(?:init|inval|arrive)|wgmma\.(?:fence|commit|wait)|fence|"
    r"membar|bra|brx|ret|trap|brkpt|call\.__assertfail|exit|stmatrix|setmaxnreg|griddepcontrol|nanosleep|prefetch|"
    r"tcgen05\.(?:alloc|dealloc|relinq|st|cp|mma|commit|wait|fence|shift)|tensormap|discard)\b"
)


@dataclass
class Block:
    """Instructions `start` to `end`, the last of which may leave it.

    ends     "fall", "branch", "table" (a branch to one of several), "barrier", "exit"
    waits    whether it begins with a wait for an mbarrier
    together whether it has an instruction that a whole warp group executes
    target   the block that a branch leads to; targets: those of a table
    guarded  whether the last instruction is under a predicate
    uses     registers that must have a value before it; last: those that others read after it
    """

    number: int
    start: int
    end: int
    ends: str
    waits: bool = False
    together: bool = False
    target: int = -1
    targets: tuple[int, ...] = ()
    guarded: bool = False
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()


def registers_of(operand: Operand) -> Iterator[Register]:
    """All registers in an operand."""
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Address):
        for part in (operand.base, *operand.coordinates):
            yield from registers_of(part)
    elif isinstance(operand, Vector):
        for element in operand.elements:
            yield from registers_of(element)


def results(instruction: Instruction) -> set[str]:
    """Registers that are written."""
    if _NO_RESULT.match(instruction.name):
        return set()
    many = 2 if instruction.name.startswith(("shfl", "elect", "setp")) else 1
    found: set[str] = set()
    for operand in instruction.operands[: min(many, _pairs(instruction))]:
        found |= {register.name for register in registers_of(operand)}
    return found


def _pairs(instruction: Instruction) -> int:
    """How many operands before the sources: those that a bar joins are counted apart."""
    return 2 if "|" in instruction.text.partition(",")[0] else 1


def _sources(instruction: Instruction) -> set[str]:
    """Registers that are read; a result under a predicate keeps what it had."""
    skipped = 0 if _NO_RESULT.match(instruction.name) else _pairs(instruction)
    read = {r.name for o in instruction.operands[skipped:] for r in registers_of(o)}
    if instruction.name.startswith("wgmma.mma_async") or instruction.guard is not None:
        read |= {r.name for o in instruction.operands[:skipped] for r in registers_of(o)}
    if instruction.guard is not None:
        read.add(instruction.guard.name)
    return read


def blocks(module: Module) -> list[Block]:
    """All blocks in order, with the registers that live between them."""
    code = module.instructions
    leaders = {0, *module.labels.values()}
    for at, instruction in enumerate(code):
        if _WAIT.match(instruction.name):
            leaders.add(at)
        if _leaves(instruction) != "fall":
            leaders.add(at + 1)
    starts = sorted(at for at in leaders if at < len(code))
    number = {start: n for n, start in enumerate(starts)}
    made = []
    for n, start in enumerate(starts):
        end = starts[n + 1] if n + 1 < len(starts) else len(code)
        last = code[end - 1]
        block = Block(n, start, end, _leaves(last), bool(_WAIT.match(code[start].name)))
        block.guarded = last.guard is not None
        block.together = any(_GROUP.match(i.name) for i in code[start:end])
        if block.ends == "branch":
            target = last.operands[0]
            if not isinstance(target, Symbol) or target.name not in module.labels:
                raise UnknownInstruction(f"a branch to an unknown label, {last}")
            block.target = number.get(module.labels[target.name], len(starts))
        if block.ends == "table":
            block.targets = tuple(number[module.labels[name]] for name in _table(module, last))
        made.append(block)
    _live(made, code)
    return made


def _table(module: Module, instruction: Instruction) -> tuple[str, ...]:
    table = instruction.operands[1]
    if not isinstance(table, Symbol) or table.name not in module.tables:
        raise UnknownInstruction(f"a branch to an unknown table, {instruction}")
    return module.tables[table.name]


def _leaves(instruction: Instruction) -> str:
    if _BRANCH.match(instruction.name):
        return "branch"
    if _TABLE.match(instruction.name):
        if instruction.guard is not None:
            raise UnknownInstruction(f"a table of branches under a predicate, {instruction}")
        return "table"
    if _BARRIER.match(instruction.name):
        if instruction.guard is not None:
            raise UnknownInstruction(f"a barrier under a predicate, {instruction}")
        return "barrier"
    return "exit" if instruction.name in _EXIT else "fall"


_JUMPS = ("branch", "table")


def _live(made: list[Block], code: Iterable[Instruction]) -> None:
    """Fill `before` and `after`, backwards until nothing changes."""
    listed = list(code)
    reads, kills = [], []
    for block in made:
        read: set[str] = set()
        killed: set[str] = set()
        for instruction in listed[block.start : block.end]:
            read |= _sources(instruction) - killed
            killed |= results(instruction)
        reads.append(frozenset(read))
        kills.append(frozenset(killed))
    changed = True
    while changed:
        changed = False
        for block in reversed(made):
            after: frozenset[str] = frozenset()
            if block.ends != "exit" or block.guarded:
                if (block.ends not in _JUMPS or block.guarded) and block.number + 1 < len(made):
                    after |= made[block.number + 1].before
                for target in (block.target, *block.targets):
                    if 0 <= target < len(made):
                        after |= made[target].before
            before = reads[block.number] | (after - kills[block.number])
            if before != block.before or after != block.after:
                block.before, block.after, changed = before, after, True

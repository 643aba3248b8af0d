# SPDX-License-Identifier: Apache-2.0
"""cp.async: copies of threads, which end later than they begin.

A copy is made as late as the program allows, at its wait, or at once: a program that waits rightly
cannot tell. Source: PTX ISA, Data Movement: cp.async.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["Copies", "HELPERS", "TABLE"]


@dataclass
class _Copy:
    """threads, and of each: to, from, how many bytes are read, its group (-1: none yet)."""

    threads: Array
    to: Array
    source: Array
    size: int
    read: Array
    groups: Array


class Copies:
    """cp.async of a workgroup."""

    def __init__(self, workgroup: Any) -> None:
        self.workgroup = workgroup
        self.open: list[_Copy] = []
        self.committed = np.zeros(workgroup.total, np.int64)

    def add(self, G: Any, to: Array, source: Array, size: int, read: Array, mask: Any) -> None:
        """Of the group's threads under `mask`."""
        to = self.workgroup.shared.local(to)
        chosen = np.arange(G.n) if mask is None else np.flatnonzero(mask)
        if not len(chosen):
            return
        threads = G.tid[chosen].astype(np.int64)
        copy = _Copy(
            threads, to[chosen], source[chosen], size, read[chosen], np.full(len(chosen), -1)
        )
        self.workgroup.shared.check(copy.to, size, size, self.workgroup.homes(G)[chosen])
        if (copy.read > size).any():
            raise Fault(f"cp.async of {size} bytes reads more")
        if (copy.source[copy.read > 0] & np.uint64(size - 1)).any():
            raise Fault(f"cp.async reads global memory at no multiple of {size} bytes")
        if self.workgroup.order.eager:
            self._make(copy)
        else:
            self.open.append(copy)

    def commit(self, G: Any) -> None:
        """cp.async.commit_group."""
        member = self._member(G)
        for copy in self.open:
            mine = (copy.groups < 0) & member[copy.threads]
            if mine.any():
                copy.groups = np.where(mine, self.committed[copy.threads], copy.groups)
        self.committed[G.tid] += 1

    def wait(self, G: Any, left: int) -> None:
        """cp.async.wait_group: all but the last `left` groups of each thread are made."""
        member = self._member(G)
        self._finish(
            lambda c: (
                member[c.threads] & (c.groups >= 0) & (c.groups < self.committed[c.threads] - left)
            )
        )

    def wait_all(self, G: Any) -> None:
        """cp.async.wait_all, and what an arrival waits for: those without a group, too."""
        member = self._member(G)
        self._finish(lambda c: member[c.threads])

    def _member(self, G: Any) -> Array:
        member = np.zeros(self.workgroup.total, np.bool_)
        member[G.tid] = True
        return member

    def _finish(self, chosen: Any) -> None:
        kept = []
        for copy in self.open:
            now = chosen(copy)
            if now.all():
                self._make(copy)
            elif now.any():
                self._make(_part(copy, now))
                kept.append(_part(copy, ~now))
            else:
                kept.append(copy)
        self.open = kept

    def _make(self, copy: _Copy) -> None:
        workgroup = self.workgroup
        step = np.arange(copy.size)
        data = np.zeros((len(copy.to), copy.size), np.uint8)
        full = copy.read == copy.size
        workgroup.counters.copied += int(copy.read.sum())
        if full.any():
            words = workgroup.memory.load(copy.source[full], 4, copy.size // 4)
            data[full] = np.ascontiguousarray(words.T).view(np.uint8)
        for n in np.flatnonzero(~full & (copy.read > 0)):
            count = int(copy.read[n])
            data[n, :count] = workgroup.memory.load(copy.source[n : n + 1], 1, count)[:, 0]
        workgroup.shared.put_bytes(copy.to[:, None].astype(np.int64) + step, data)


def _part(copy: _Copy, where: Array) -> _Copy:
    pieces = (copy.threads, copy.to, copy.source, copy.read, copy.groups)
    threads, to, source, read, groups = (piece[where] for piece in pieces)
    return _Copy(threads, to, source, copy.size, read, groups)


HELPERS: dict[str, Any] = {}


def _copy(sizes: tuple[int, ...]) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        to, source, size, *rest = instruction.operands
        if not isinstance(size, Immediate) or int(size.value) not in sizes or len(rest) > 1:
            raise UnknownInstruction(f"sizes {sizes} are known")
        count = int(size.value)
        read = emitter.vector(rest[0], "u4") if rest else f"full(G.n, u4({count}))"
        where = f"{emitter.address(to, wide=False)}, {emitter.address(source, wide=True)}"
        emitter.line(f"S.copies.add(G, {where}, {count}, {read}, {emitter.mask})")

    return build


def _call(text: str) -> Builder:
    """A line in which {0} is the first operand, a constant."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        if instruction.guard is not None:
            raise UnknownInstruction(f"{instruction.name} under a predicate")
        values = [int(o.value) for o in instruction.operands if isinstance(o, Immediate)]
        if len(values) != len(instruction.operands):
            raise UnknownInstruction("an operand that is no constant")
        emitter.line(text.format(*values))

    return build


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {
        "cp.async.commit_group": _call("S.copies.commit(G)"),
        "cp.async.wait_group": _call("S.copies.wait(G, {0})"),
        "cp.async.wait_all": _call("S.copies.wait_all(G)"),
    }
    for space in ("shared", "shared::cta"):
        for prefetch in ("", ".L2::128B", ".L2::256B"):
            table[f"cp.async.ca.{space}.global{prefetch}"] = _copy((4, 8, 16))
            table[f"cp.async.cg.{space}.global{prefetch}"] = _copy((16,))
    return table


TABLE = _table()

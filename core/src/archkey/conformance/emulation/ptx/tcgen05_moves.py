# SPDX-License-Identifier: Apache-2.0
"""Tensor memory and the rest: allocation, and moves to and from registers.

Source: PTX ISA, TensorCore 5th Generation Family Instructions: tcgen05.alloc, ld, st, wait; data
movement shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.collectives import warps
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.moves import elements_of
from archkey.conformance.emulation.ptx.text import Immediate, Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]


def _cells(G: Any, address: Array, count: int, split: int) -> tuple[Array, Array]:
    """(lanes, columns) [count, threads] of tcgen05.ld and st; split: -1 for 32 lanes."""
    total = warps(G)
    rows = address.reshape(total, 32)
    if (rows != rows[:, :1]).any():
        raise Fault("the threads of a warp give different addresses in tensor memory")
    first = (rows[:, 0] >> np.uint32(16)).astype(np.int64)
    column = (rows[:, 0] & np.uint32(0xFFFF)).astype(np.int64)
    quarter = (G.tid.reshape(total, 32)[:, 0].astype(np.int64) >> 5) % 4 * 32
    thread = np.arange(32)
    allowed = (quarter,) if split < 0 else (quarter, quarter + 16)
    if not np.logical_or.reduce([first == one for one in allowed]).all():
        raise Fault(
            f"lanes from {first.tolist()} on are not those of warps {(G.tid[::32] >> 5).tolist()}"
        )
    offset = np.zeros(32, np.int64) if split < 0 else thread // 16 * split
    lane = thread if split < 0 else thread % 16
    lanes = (first[:, None] + lane).reshape(-1)
    columns = (column[:, None] + offset).reshape(-1) + np.arange(count)[:, None]
    return np.broadcast_to(lanes, columns.shape), columns


def _load(S: Any, G: Any, address: Array, count: int, split: int) -> Array:
    where = _cells(G, address, count, split)
    S.tensor_memory.settled(*where)
    return S.tensor_memory.peek(*where)


def _store(S: Any, G: Any, address: Array, registers: list[Array], split: int, mask: Any) -> None:
    part = G if mask is None or mask.all() else G.part(mask)
    if not part.n:
        return
    data = np.stack(registers)
    if part is not G:
        address, data = address[mask], data[:, mask]
    where = _cells(part, address, len(registers), split)
    S.tensor_memory.write(*where, data)
    S.tensor_memory.stored[where] = np.broadcast_to((part.tid >> np.uint32(5)) + 1, data.shape)


def _allocate(S: Any, G: Any, at: Array, columns: int, mask: Any) -> None:
    part = G if mask is None else G.part(mask)
    if not part.n:
        return
    for n in range(warps(part)):
        where = int((at if mask is None else at[mask])[32 * n])
        address = np.array([[S.tensor_memory.allocate(columns)]], np.uint32)
        S.shared.store(np.array([where], np.uint32), address, np.zeros(1, np.int64))


def _free(S: Any, G: Any, at: Array, columns: int, mask: Any) -> None:
    part = G if mask is None else G.part(mask)
    if part.n:
        chosen = at if mask is None else at[mask]
        for n in range(warps(part)):
            S.tensor_memory.free(int(chosen[32 * n]), columns)


def _relinquish(S: Any, mask: Any) -> None:
    if mask is None or mask.any():
        S.tensor_memory.relinquished = True


HELPERS: dict[str, Any] = {
    **{"tcgen05_load": _load, "tcgen05_store": _store, "tcgen05_alloc": _allocate},
    **{"tcgen05_free": _free, "tcgen05_relinquish": _relinquish},
}


def _move(load: bool, count: int, split: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        operands = list(instruction.operands)
        registers = elements_of(operands.pop(0 if load else -1))
        where = operands.pop(0)
        distance = operands.pop() if split else Immediate(-1)
        if operands or len(registers) != count or not isinstance(distance, Immediate):
            raise UnknownInstruction(f"{count} registers are expected")
        at = emitter.address(where, wide=False)
        if load:
            if instruction.guard is not None:
                raise UnknownInstruction("tcgen05.ld under a predicate")
            call = f"tcgen05_load(S, G, {at}, {count}, {int(distance.value)})"
            emitter.results(registers, "u4", call)
            emitter.unwaited |= {r.name for r in registers if r is not None}  # type: ignore[union-attr]
        else:
            given = ", ".join(emitter.vector(r, "u4") for r in registers)
            emitter.line(
                f"tcgen05_store(S, G, {at}, [{given}], {int(distance.value)}, {emitter.mask})"
            )

    return build


def _allocation(call: str, address: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        where, columns = instruction.operands
        if not isinstance(columns, Immediate):
            raise UnknownInstruction("columns that are no constant")
        at = emitter.address(where, wide=False) if address else emitter.vector(where, "u4")
        emitter.line(f"{call}(S, G, {at}, {int(columns.value)}, {emitter.mask})")

    return build


def _wait(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.guard is not None:
        raise UnknownInstruction("a wait under a predicate")
    if "::ld" in instruction.name:
        emitter.unwaited.clear()
    else:
        emitter.line("S.tensor_memory.wait_stores((G.tid >> u4(5)).astype(np.int64))")


def _nothing(emitter: Emitter, instruction: Instruction) -> None:
    """An order between threads, which here is kept anyway."""


def _relinquish_builder(emitter: Emitter, instruction: Instruction) -> None:
    emitter.line(f"tcgen05_relinquish(S, {emitter.mask})")


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        for shape, split in (("32x32b", False), ("16x32bx2", True)):
            name = f"sync.aligned.{shape}.x{count}.b32"
            table[f"tcgen05.ld.{name}"] = _move(True, count, split)
            table[f"tcgen05.st.{name}"] = _move(False, count, split)
    for group in ("cta_group::1", "cta_group::2"):
        allocate = f"tcgen05.alloc.{group}.sync.aligned.shared::cta.b32"
        free = f"tcgen05.dealloc.{group}.sync.aligned.b32"
        table[allocate] = _allocation("tcgen05_alloc", True)
        table[free] = _allocation("tcgen05_free", False)
        table[f"tcgen05.relinquish_alloc_permit.{group}.sync.aligned"] = _relinquish_builder
    return table | {
        "tcgen05.wait::ld.sync.aligned": _wait,
        "tcgen05.wait::st.sync.aligned": _wait,
        "tcgen05.fence::before_thread_sync": _nothing,
        "tcgen05.fence::after_thread_sync": _nothing,
    }


TABLE = _table()

# SPDX-License-Identifier: Apache-2.0
"""Tensor memory and the rest: allocation, and moves to and from registers.

Source: PTX ISA, TensorCore 5th Generation Family Instructions: tcgen05.alloc, ld, st, wait; data
movement shapes.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.collectives import warps
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.moves import elements_of
from archkey.conformance.emulation.ptx.text import Immediate, Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]


class _Shape(NamedTuple):
    """How a tile of a move is spread over a warp, before it is repeated along the columns.

    lanes      (row, column) that each bit of a thread's number adds; the last of 16x32bx2 is given
               in the instruction
    registers  the same of the bits of a register's number
    columns    of the tile
    """

    lanes: tuple[tuple[int, int], ...]
    registers: tuple[tuple[int, int], ...]
    columns: int


_ROWS = ((1, 0), (2, 0), (4, 0), (8, 0))
_SHAPES = {
    "32x32b": _Shape((*_ROWS, (16, 0)), (), 1),
    "16x32bx2": _Shape(_ROWS, (), 1),
    "16x64b": _Shape(((8, 0), (0, 1), *_ROWS[:3]), (), 2),
    "16x128b": _Shape(((0, 1), (0, 2), *_ROWS[:3]), ((8, 0),), 4),
    "16x256b": _Shape(((0, 2), (0, 4), *_ROWS[:3]), ((0, 1), (8, 0)), 8),
}


@functools.lru_cache(256)
def _pattern(name: str, count: int, split: int, packed: bool) -> tuple[Array, Array]:
    """(rows, columns) [registers (x 2 if packed), 32] of `count` tiles.

    packed: a register has the lower halves of two neighbouring columns
    """
    shape = _SHAPES[name]
    bits = shape.lanes if len(shape.lanes) == 5 else (*shape.lanes, (0, split))
    thread, tile = np.arange(32), np.arange(count)
    number = np.arange(1 << len(shape.registers))
    row, column = (
        sum((number >> n & 1) * base[axis] for n, base in enumerate(shape.registers)) + 0 * number
        for axis in (0, 1)
    )
    rows = np.tile(row, count)
    columns = (tile[:, None] * shape.columns + column).reshape(-1)
    if packed:
        rows, columns = rows.repeat(2), (2 * columns[:, None] + np.arange(2)).reshape(-1)
    lane_row, lane_column = (
        sum((thread >> n & 1) * base[axis] for n, base in enumerate(bits)) for axis in (0, 1)
    )
    wide = 2 if packed and name != "16x32bx2" else 1  # the distance of halves is given in columns
    return rows[:, None] + lane_row, columns[:, None] + wide * lane_column


def _cells(G: Any, address: Array, name: str, rows: Array, columns: Array) -> tuple[Array, Array]:
    """(lanes, columns) [registers, threads] of a pattern, at the addresses of warps."""
    total = warps(G)
    given = address.reshape(total, 32)
    if (given != given[:, :1]).any():
        raise Fault("the threads of a warp give different addresses in tensor memory")
    first = (given[:, 0] >> np.uint32(16)).astype(np.int64)
    column = (given[:, 0] & np.uint32(0xFFFF)).astype(np.int64)
    quarter = (G.tid.reshape(total, 32)[:, 0].astype(np.int64) >> 5) % 4 * 32
    allowed = (quarter,) if name == "32x32b" else (quarter, quarter + 16)
    if not np.logical_or.reduce([first == one for one in allowed]).all():
        raise Fault(
            f"lanes from {first.tolist()} on are not those of warps {(G.tid[::32] >> 5).tolist()}"
        )
    lanes = (first[:, None] + rows[:, None]).reshape(len(rows), -1)
    return lanes, (column[:, None] + columns[:, None]).reshape(len(columns), -1)


def _load(S: Any, G: Any, address: Array, name: str, count: int, split: int, packed: bool) -> Array:
    where = _cells(G, address, name, *_pattern(name, count, split, packed))
    S.tensor_memory.settled(*where)
    found = S.tensor_memory.peek(*where)
    if not packed:
        return found
    return found[::2] & np.uint32(0xFFFF) | found[1::2] << np.uint32(16)


def _store(
    S: Any, G: Any, address: Array, registers: list[Array], name: str, count: int, split: int,
    packed: bool, mask: Any,
) -> None:  # fmt: skip
    part = G if mask is None or mask.all() else G.part(mask)
    if not part.n:
        return
    data = np.stack(registers)
    if part is not G:
        address, data = address[mask], data[:, mask]
    if packed:
        halves = np.stack([data & np.uint32(0xFFFF), data >> np.uint32(16)], 1)
        data = halves.reshape(-1, data.shape[1])
    where = _cells(part, address, name, *_pattern(name, count, split, packed))
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


def _move(load: bool, name: str, count: int, packed: bool) -> Builder:
    size = count << len(_SHAPES[name].registers)

    def build(emitter: Emitter, instruction: Instruction) -> None:
        operands = list(instruction.operands)
        registers = elements_of(operands.pop(0 if load else -1))
        where = operands.pop(0)
        distance = operands.pop() if name == "16x32bx2" else Immediate(0)
        if operands or len(registers) != size or not isinstance(distance, Immediate):
            raise UnknownInstruction(f"{size} registers are expected")
        at = emitter.address(where, wide=False)
        how = f"{name!r}, {count}, {int(distance.value)}, {packed}"
        if load:
            if instruction.guard is not None:
                raise UnknownInstruction("tcgen05.ld under a predicate")
            emitter.results(registers, "u4", f"tcgen05_load(S, G, {at}, {how})")
            emitter.unwaited |= {r.name for r in registers if r is not None}  # type: ignore[union-attr]
        else:
            given = ", ".join(emitter.vector(r, "u4") for r in registers)
            emitter.line(f"tcgen05_store(S, G, {at}, [{given}], {how}, {emitter.mask})")

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
    for shape, packed in itertools.product(_SHAPES, (False, True)):
        for count in (1 << n for n in range(8)):
            if count << len(_SHAPES[shape].registers) > 128:
                continue
            ld, st = (".pack::16b", ".unpack::16b") if packed else ("", "")
            name = f"sync.aligned.{shape}.x{count}"
            table[f"tcgen05.ld.{name}{ld}.b32"] = _move(True, shape, count, packed)
            table[f"tcgen05.st.{name}{st}.b32"] = _move(False, shape, count, packed)
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

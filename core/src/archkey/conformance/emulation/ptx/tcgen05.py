# SPDX-License-Identifier: Apache-2.0
"""Blackwell's tensor cores: products from shared into tensor memory, and moves to registers.

Products are asynchronous, in order, and end when an mbarrier is told by tcgen05.commit. Source: PTX
ISA, TensorCore 5th Generation Family Instructions: data path layouts, instruction descriptor,
scale factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.numbers import FORMATS, decode, e8m0
from archkey.conformance.emulation.ptx import descriptors
from archkey.conformance.emulation.ptx.collectives import warps
from archkey.conformance.emulation.ptx.elements import values
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.shared import CHUNK
from archkey.conformance.emulation.ptx.text import Address, Immediate, Instruction, Operand, Vector
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE", "Kind"]


class Kind(NamedTuple):
    """formats: what the descriptor's codes of A and B mean; columns: K of one instruction.

    block   elements that share a scale; 0: none
    padded  4-bit and 6-bit elements are padded: 16 of them in 16 bytes
    """

    formats: dict[int, str]
    columns: int
    block: int = 0
    padded: bool = False


_SMALL = {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"}
KINDS = {
    "f16": Kind({0: "f16", 1: "bf16"}, 16),
    "tf32": Kind({2: "tf32"}, 8),
    "f8f6f4": Kind(_SMALL, 32, 0, True),
    "i8": Kind({0: "u8", 1: "s8"}, 32),
    "mxf8f6f4.block_scale.scale_vec::1X": Kind(_SMALL, 32, 32, True),
    "mxf4.block_scale.scale_vec::2X": Kind({1: "e2m1"}, 64, 32),
    "mxf4.block_scale.block32": Kind({1: "e2m1"}, 64, 32),
    "mxf4nvf4.block_scale.scale_vec::2X": Kind({1: "e2m1"}, 64, 32),
    "mxf4nvf4.block_scale.scale_vec::4X": Kind({1: "e2m1"}, 64, 16),
}
_SUMS = {0: "f2", 1: "f4", 2: "i4"}
_PLAIN_RESERVED = 0b11 << 30 | 1 << 29 | 1 << 23 | 1 << 6 | 0b1111
_SCALED_RESERVED = 1 << 31 | 1 << 6 | 0b1111


class _Shape(NamedTuple):
    """What an instruction descriptor says of one product."""

    rows: int
    columns: int
    total: str
    formats: tuple[str, str]
    signs: tuple[int, int]
    turned: tuple[bool, bool]
    scale_ids: tuple[int, int]
    e8m0: bool


def _shape(kind: Kind, word: int) -> _Shape:
    reserved = _SCALED_RESERVED if kind.block else _PLAIN_RESERVED
    if word & reserved:
        raise UnknownInstruction(
            f"instruction descriptor {word:#010x}: sparse, saturating, or more"
        )
    formats = tuple(word >> at & 7 for at in (7, 10))
    if any(code not in kind.formats for code in formats):
        raise UnknownInstruction(f"instruction descriptor {word:#010x}: formats {formats}")
    return _Shape(
        rows=(word >> 24 & 31) << 4,
        columns=(word >> 17 & 63) << 3,
        total="f4" if kind.block else _SUMS[word >> 4 & 3],
        formats=(kind.formats[formats[0]], kind.formats[formats[1]]),
        signs=(-1 if word >> 13 & 1 else 1, -1 if word >> 14 & 1 else 1),
        turned=(bool(word >> 15 & 1), bool(word >> 16 & 1)),
        scale_ids=(word >> 29 & 3, word >> 4 & 3) if kind.block else (0, 0),
        e8m0=bool(word >> 23 & 1),
    )


def _lanes(rows: int, lane: int) -> Array:
    """Of the rows of an accumulator: one each, or of 64 rows 16 in each quarter."""
    index = np.arange(rows)
    if rows == 128 and lane == 0:
        return index
    if rows == 64 and lane in (0, 16):
        return index // 16 * 32 + index % 16 + lane
    raise Fault(f"a product of {rows} rows from lane {lane} on")


def _operand(S: Any, kind: Kind, descriptor: int, rows: int, form: str, turned: bool) -> Array:
    """[rows, K] float64 of a matrix in shared memory."""
    layout = descriptors.blackwell(descriptor)
    bits = 256 // kind.columns
    at = descriptors.addresses(layout, rows, kind.columns, bits, turned)
    padded = kind.padded and form not in ("e4m3", "e5m2")
    data = S.shared.chunks(at, 2 * FORMATS[form].bits if padded else CHUNK)
    if padded:
        if turned:
            raise UnknownInstruction(f"{form} turned")
        return _padded(data, form).reshape(rows, -1)
    if turned and bits < 8:
        raise UnknownInstruction("elements of 4 bits turned")
    numbers = values(data.reshape(len(at), -1), form)
    return numbers.T if turned else numbers


def _padded(data: Array, form: str) -> Array:
    """Chunks [.., 16 bytes] of 16 elements, packed from the first byte on, to numbers [.., 16]."""
    bits = FORMATS[form].bits
    flat = np.unpackbits(data, axis=-1, bitorder="little")[..., : 16 * bits]
    parts = flat.reshape(*data.shape[:-1], 16, bits) @ (1 << np.arange(bits))
    return decode(parts, form).astype(np.float64)


def _scales(S: Any, address: int, rows: int, kind: Kind, scale_id: int, power: bool) -> Array:
    """[rows, K]: row r lies in lane r % 32 of column r / 32, four scales in a column."""
    count = kind.columns // kind.block
    if scale_id % count or scale_id + count > 4 or address >> 16:
        raise Fault(f"scales at {address:#x} with number {scale_id}")
    index = np.arange(rows)
    cells = S.tensor_memory.read(index % 32, (address & 0xFFFF) + index // 32)
    codes = cells.view(np.uint8).reshape(rows, 4)[:, scale_id : scale_id + count]
    numbers = e8m0(codes) if power else decode(codes & np.uint8(127), "e4m3fn").astype(np.float64)
    return np.repeat(numbers, kind.block, axis=1)


def _product(
    S: Any, kind: Kind, word: int, d: int, a: Any, b: int, scales: Any, keep: bool
) -> None:
    """What one tcgen05.mma does. a: a descriptor, or the address in tensor memory in a tuple."""
    shape, memory = _shape(kind, word), S.tensor_memory
    lanes = _lanes(shape.rows, d >> 16)
    if isinstance(a, tuple):
        left = _from_tensor_memory(S, kind, a[0], shape)
    else:
        left = _operand(S, kind, a, shape.rows, shape.formats[0], shape.turned[0])
    right = _operand(S, kind, b, shape.columns, shape.formats[1], shape.turned[1])
    if kind.block:
        power = shape.e8m0
        left = left * _scales(S, scales[0], shape.rows, kind, shape.scale_ids[0], power)
        right = right * _scales(S, scales[1], shape.columns, kind, shape.scale_ids[1], power)
    total = (left * shape.signs[0]) @ (right.T * shape.signs[1])
    where = (lanes[:, None], (d & 0xFFFF) + np.arange(shape.columns)[None])
    if shape.total == "f2":
        raise UnknownInstruction("float16 accumulators of tcgen05")
    if keep:
        total = total + memory.read(*where).view(shape.total)
    rounded = total.astype(np.int64 if shape.total == "i4" else np.float32)
    memory.write(*where, rounded.astype(shape.total).view(np.uint32))
    S.counters.flops += 2 * shape.rows * shape.columns * kind.columns


def _from_tensor_memory(S: Any, kind: Kind, address: int, shape: _Shape) -> Array:
    """A [rows, K] float64: elements side by side in the columns of a lane."""
    lanes = _lanes(shape.rows, address >> 16)
    if kind.padded and shape.formats[0] not in ("e4m3", "e5m2"):
        raise UnknownInstruction(f"{shape.formats[0]} in tensor memory")
    columns = (address & 0xFFFF) + np.arange(8)
    cells = S.tensor_memory.read(lanes[:, None], columns[None])
    return values(np.ascontiguousarray(cells).view(np.uint8), shape.formats[0])


def _mma(
    S: Any, name: str, d: Array, a: Any, b: Array, word: Array, scales: Any, keep: Array, mask: Any
) -> None:
    """Issue, by each thread under the mask."""
    chosen = range(len(d)) if mask is None else np.flatnonzero(mask)
    for n in chosen:
        left = (int(a[0][n]),) if isinstance(a, tuple) else int(a[n])
        given = tuple(int(one[n]) for one in scales)
        arguments = (KINDS[name], int(word[n]), int(d[n]), left, int(b[n]), given, bool(keep[n]))
        shape = _shape(arguments[0], int(word[n]))
        memory = S.tensor_memory
        memory.check(int(d[n]) & 0xFFFF, shape.columns)
        rows = _lanes(shape.rows, int(d[n]) >> 16)[:, None]
        if keep[n]:
            memory.settled(rows, (int(d[n]) & 0xFFFF) + np.arange(shape.columns))
        if isinstance(left, tuple):
            memory.settled(
                _lanes(shape.rows, left[0] >> 16)[:, None], (left[0] & 0xFFFF) + np.arange(8)
            )
        for one in given:
            memory.settled(np.arange(32)[:, None], (one & 0xFFFF) + np.arange(1))
        memory.in_flight += 1
        _later(S, arguments)


def _later(S: Any, arguments: tuple[Any, ...]) -> None:
    def work() -> None:
        S.tensor_memory.in_flight -= 1
        try:
            _product(S, *arguments)
        except (Fault, UnknownInstruction) as error:
            raise type(error)(f"{error}, in a tcgen05.mma that was issued") from error

    S.later(work, "tcgen05.mma")


def _commit(S: Any, at: Array, mask: Any) -> None:
    for one in (at if mask is None else at[mask]).tolist():
        where = one & 0xFFFFFFFF
        barrier = S.mbarriers.at(where)
        S.later(lambda at=where, to=barrier: S.mbarriers.told(at, to), "tcgen05.commit")


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
    **{"tcgen05_mma": _mma, "tcgen05_commit": _commit, "tcgen05_load": _load},
    **{"tcgen05_store": _store, "tcgen05_alloc": _allocate, "tcgen05_free": _free},
    "tcgen05_relinquish": _relinquish,
}


def _elements(operand: Operand) -> list[Operand]:
    return list(operand.elements) if isinstance(operand, Vector) else [operand]


def _mma_builder(name: str) -> Builder:
    scaled = KINDS[name].block > 0

    def build(emitter: Emitter, instruction: Instruction) -> None:
        d, a, b, word, *rest = instruction.operands
        if len(rest) != (3 if scaled else 1):
            raise UnknownInstruction(f"{len(rest)} operands after the descriptor")
        *scales, keep = rest
        if isinstance(a, Address):
            left = f"({emitter.address(a, wide=False)},)"
        else:
            left = emitter.vector(a, "u8")
        tables = "".join(f"{emitter.address(s, wide=False)}, " for s in scales)
        emitter.line(
            f"tcgen05_mma(S, {name!r}, {emitter.address(d, wide=False)}, {left}, "
            f"{emitter.vector(b, 'u8')}, {emitter.vector(word, 'u4')}, ({tables}), "
            f"{emitter.vector(keep, 'pred')}, {emitter.mask})"
        )

    return build


def _move(load: bool, count: int, split: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        operands = list(instruction.operands)
        registers = _elements(operands.pop(0 if load else -1))
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


def _commit_builder(emitter: Emitter, instruction: Instruction) -> None:
    (where,) = instruction.operands
    wide = isinstance(where, Address) and getattr(where.base, "bits", 32) == 64
    emitter.line(f"tcgen05_commit(S, {emitter.address(where, wide=wide)}, {emitter.mask})")


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


_ONE = "tcgen05.{}.cta_group::1"


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {
        f"{_ONE.format('mma')}.kind::{name}": _mma_builder(name) for name in KINDS
    }
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        for shape, split in (("32x32b", False), ("16x32bx2", True)):
            name = f"sync.aligned.{shape}.x{count}.b32"
            table[f"tcgen05.ld.{name}"] = _move(True, count, split)
            table[f"tcgen05.st.{name}"] = _move(False, count, split)
    commit = _ONE.format("commit") + ".mbarrier::arrive::one"
    return table | {
        f"{_ONE.format('alloc')}.sync.aligned.shared::cta.b32": _allocation("tcgen05_alloc", True),
        f"{_ONE.format('dealloc')}.sync.aligned.b32": _allocation("tcgen05_free", False),
        f"{_ONE.format('relinquish_alloc_permit')}.sync.aligned": _relinquish_builder,
        f"{commit}.b64": _commit_builder,
        f"{commit}.shared::cluster.b64": _commit_builder,
        "tcgen05.wait::ld.sync.aligned": _wait,
        "tcgen05.wait::st.sync.aligned": _wait,
        "tcgen05.fence::before_thread_sync": _nothing,
        "tcgen05.fence::after_thread_sync": _nothing,
    }


TABLE = _table()

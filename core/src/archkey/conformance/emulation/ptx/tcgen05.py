# SPDX-License-Identifier: Apache-2.0
"""Blackwell's tensor cores: products from shared or tensor memory into tensor memory.

Products are asynchronous, in order, and end when an mbarrier is told by tcgen05.commit. Source: PTX
ISA, TensorCore 5th Generation Family Instructions: data path layouts, instruction descriptor,
scale factors.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.numbers import FORMATS, decode, e8m0
from archkey.conformance.emulation.ptx import descriptors
from archkey.conformance.emulation.ptx.elements import values
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.shared import CHUNK
from archkey.conformance.emulation.ptx.text import Address, Instruction
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
    # The same as later compilers say it.
    "mxf8f6f4.block_scale.block32": Kind(_SMALL, 32, 32, True),
    "mxf4nvf4.block_scale.block32": Kind({1: "e2m1"}, 64, 32),
    "mxf4nvf4.block_scale.block16": Kind({1: "e2m1"}, 64, 16),
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
    S: Any, kind: Kind, word: int, d: int, a: Any, b: int, scales: Any, keep: bool, pair: bool
) -> None:
    """What one tcgen05.mma does. a: a descriptor, or the address in tensor memory in a tuple.

    pair: each of two workgroups has half of the rows of A and of D, and of the columns of B
    """
    shape, members = _shape(kind, word), _members(S, pair)
    part = shape._replace(rows=shape.rows // len(members))
    each = shape.columns // len(members)
    right = np.concatenate(
        [_operand(one, kind, b, each, shape.formats[1], shape.turned[1]) for one in members]
    )
    for one in members:
        _own_rows(one, kind, part, d, a, right, scales, keep)
    S.counters.flops += 2 * shape.rows * shape.columns * kind.columns


def _members(S: Any, pair: bool) -> list[Any]:
    """The workgroups that a product is made by: of a pair the even one comes first."""
    return [S.cluster.at(rank) for rank in (S.rank & ~1, S.rank | 1)] if pair else [S]


def _own_rows(
    S: Any, kind: Kind, shape: _Shape, d: int, a: Any, right: Array, scales: Any, keep: bool
) -> None:
    """One workgroup's rows of a product with `right` [columns, K]."""
    memory, lanes = S.tensor_memory, _lanes(shape.rows, d >> 16)
    if isinstance(a, tuple):
        left = _from_tensor_memory(S, kind, a[0], shape)
    else:
        left = _operand(S, kind, a, shape.rows, shape.formats[0], shape.turned[0])
    if kind.block:
        power = shape.e8m0
        left = left * _scales(S, scales[0], shape.rows, kind, shape.scale_ids[0], power)
        right = right * _scales(S, scales[1], shape.columns, kind, shape.scale_ids[1], power)
    total = (left * shape.signs[0]) @ (right.T * shape.signs[1])
    where = (lanes[:, None], (d & 0xFFFF) + np.arange(shape.columns)[None])
    if keep:
        total = total + _numbers(memory.read(*where), shape.total)
    if shape.total == "f2":  # in the lower half of a cell
        memory.write(*where, total.astype(np.float16).view(np.uint16).astype(np.uint32))
    else:
        whole = total.astype(np.int64 if shape.total == "i4" else np.float32)
        memory.write(*where, whole.astype(shape.total).view(np.uint32))


def _numbers(cells: Array, kind: str) -> Array:
    """Accumulators as they lie in tensor memory."""
    return cells.astype(np.uint16).view(np.float16) if kind == "f2" else cells.view(kind)


def _from_tensor_memory(S: Any, kind: Kind, address: int, shape: _Shape) -> Array:
    """A [rows, K] float64: elements side by side in the columns of a lane."""
    lanes = _lanes(shape.rows, address >> 16)
    if kind.padded and shape.formats[0] not in ("e4m3", "e5m2"):
        raise UnknownInstruction(f"{shape.formats[0]} in tensor memory")
    columns = (address & 0xFFFF) + np.arange(8)
    cells = S.tensor_memory.read(lanes[:, None], columns[None])
    return values(np.ascontiguousarray(cells).view(np.uint8), shape.formats[0])


def _mma(
    S: Any, name: str, pair: bool, d: Array, a: Any, b: Array, word: Array, scales: Any,
    keep: Array, mask: Any,
) -> None:  # fmt: skip
    """Issue, by each thread under the mask."""
    chosen = range(len(d)) if mask is None else np.flatnonzero(mask)
    for n in chosen:
        left = (int(a[0][n]),) if isinstance(a, tuple) else int(a[n])
        given = tuple(int(one[n]) for one in scales)
        numbers = (int(word[n]), int(d[n]), left, int(b[n]), given, bool(keep[n]), pair)
        if pair and (S.cluster.size < 2 or S.rank & 1):
            raise Fault("a product of two workgroups, not by the even one of a pair")
        shape = _shape(KINDS[name], int(word[n]))
        members = _members(S, pair)
        if pair and shape.rows != 256:
            raise UnknownInstruction(f"{shape.rows} rows in two workgroups")
        for one in members:
            _check_issued(one, shape, shape.rows // len(members), numbers)
        _later(S, members, (KINDS[name], *numbers))


def _check_issued(S: Any, shape: _Shape, count: int, numbers: tuple[Any, ...]) -> None:
    """Fault for tensor memory of a workgroup that a product must not use yet."""
    _, d, left, _, scales, keep, _ = numbers
    memory = S.tensor_memory
    memory.check(d & 0xFFFF, shape.columns)
    if keep:
        memory.settled(_lanes(count, d >> 16)[:, None], (d & 0xFFFF) + np.arange(shape.columns))
    if isinstance(left, tuple):
        memory.settled(_lanes(count, left[0] >> 16)[:, None], (left[0] & 0xFFFF) + np.arange(8))
    for one in scales:
        memory.settled(np.arange(32)[:, None], (one & 0xFFFF) + np.arange(1))
    memory.in_flight += 1


def _later(S: Any, members: list[Any], arguments: tuple[Any, ...]) -> None:
    def work() -> None:
        for one in members:
            one.tensor_memory.in_flight -= 1
        try:
            _product(S, *arguments)
        except (Fault, UnknownInstruction) as error:
            raise type(error)(f"{error}, in a tcgen05.mma that was issued") from error

    S.later(work, "tcgen05.mma")


def _commit(S: Any, at: Array, ranks: Any, mask: Any) -> None:
    """ranks: bits of the workgroups whose mbarrier at that place is told; None: the own one's."""
    for n in range(len(at)) if mask is None else np.flatnonzero(mask):
        owner, where = S.owner(int(at[n]) & 0xFFFFFFFF)
        owners = [owner]
        if ranks is not None:
            owners = [S.cluster.at(r) for r in range(16) if int(ranks[n]) >> r & 1]
        for one in owners:
            told = functools.partial(one.mbarriers.told, where, one.mbarriers.at(where))
            S.later(told, "tcgen05.commit")


HELPERS: dict[str, Any] = {
    **{"tcgen05_mma": _mma, "tcgen05_commit": _commit},
}


def _mma_builder(name: str, pair: bool) -> Builder:
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
            f"tcgen05_mma(S, {name!r}, {pair}, {emitter.address(d, wide=False)}, {left}, "
            f"{emitter.vector(b, 'u8')}, {emitter.vector(word, 'u4')}, ({tables}), "
            f"{emitter.vector(keep, 'pred')}, {emitter.mask})"
        )

    return build


def _commit_builder(emitter: Emitter, instruction: Instruction) -> None:
    where, *rest = instruction.operands
    several = ".multicast::cluster" in instruction.name
    if len(rest) != several:
        raise UnknownInstruction(f"{len(instruction.operands)} operands")
    ranks = emitter.vector(rest[0], "u2") if several else "None"
    emitter.line(f"tcgen05_commit(S, {emitter.shared(where)}, {ranks}, {emitter.mask})")


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for group in (1, 2):
        pair, name = group == 2, f"tcgen05.mma.cta_group::{group}.kind::"
        # Scaled products of two workgroups: where their scales lie is not known here.
        kinds = [kind for kind, facts in KINDS.items() if not (pair and facts.block)]
        table |= {name + kind: _mma_builder(kind, pair) for kind in kinds}
        commit = f"tcgen05.commit.cta_group::{group}.mbarrier::arrive::one"
        for more in ("", ".shared::cluster", ".shared::cluster.multicast::cluster"):
            table[f"{commit}{more}.b64"] = _commit_builder
    return table


TABLE = _table()

# SPDX-License-Identifier: Apache-2.0
"""Matrix products of a warp and of a warp group, and moves of 8 x 8 tiles to and from registers.

wgmma reads shared memory until it is waited for: its operands are kept, and compared at its wait.
Source: PTX ISA, Matrix multiply-accumulate: mma, ldmatrix, stmatrix, wgmma.mma_async.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx import descriptors, fragments
from archkey.conformance.emulation.ptx.accumulators import added
from archkey.conformance.emulation.ptx.collectives import warps
from archkey.conformance.emulation.ptx.elements import ELEMENTS, values
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction, Operand, Vector
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]

_GROUP = 128  # threads of a warp group


def _mma(
    S: Any, G: Any, kinds: tuple[str, str, str], a: list[Array], b: list[Array], c: list[Array]
) -> Array:
    count = warps(G)
    x, y = fragments.left(a, kinds[0]), fragments.right(b, kinds[1])
    S.counters.flops += 2 * 16 * 8 * y.shape[1] * count
    total = _sum(S, kinds, x, y, fragments.whole(fragments.apart(c, kinds[2]), 16))
    return fragments.packed(fragments.spread(_rounded(total, kinds[2])))


def _sum(S: Any, kinds: tuple[str, str, str], x: Array, y: Array, c: Array) -> Array:
    """x times y plus c, float64: as the card adds them where that is known, else exactly."""
    width = S.widths.get(kinds[0]) if kinds[2] == "f4" else None
    return x @ y + c if width is None else added(x, y, c.astype(np.float64), width)


def _rounded(total: Array, kind: str) -> Array:
    if kind == "i4":
        # Sums of less than 2^24 products of bytes; .satfinite makes no difference to them.
        if np.abs(total).max() >= 2.0**31:
            raise Fault("a sum of integers leaves 32 bits")
        return total.astype(np.int32)
    return total.astype(kind)


def _load_matrix(S: Any, G: Any, at: Array, count: int, turned: bool) -> Array:
    rows = at.reshape(warps(G), 32)[:, : 8 * count].reshape(-1).astype(np.uint32)
    homes = S.homes(G).reshape(-1, 32)[:, : 8 * count].reshape(-1)
    words = S.shared.load(rows, 4, 4, homes).T.reshape(-1, count, 8, 4)  # [warp, tile, row, word]
    if turned:
        halves = np.ascontiguousarray(words).view(np.uint16).transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(halves).view(np.uint32)
    return np.ascontiguousarray(words.transpose(1, 0, 2, 3)).reshape(count, -1)


def _store_matrix(S: Any, G: Any, at: Array, registers: list[Array], turned: bool) -> None:
    count = len(registers)
    rows = at.reshape(warps(G), 32)[:, : 8 * count].reshape(-1).astype(np.uint32)
    words = np.stack(registers).reshape(count, -1, 8, 4).transpose(1, 0, 2, 3)
    if turned:
        halves = np.ascontiguousarray(words).view(np.uint16).transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(halves).view(np.uint32)
    data = np.ascontiguousarray(words.reshape(-1, 4).T)
    who = np.repeat(G.tid.reshape(-1, 32)[:, 0].astype(np.int64) >> 5, 8 * count)
    S.shared.store(rows, data, who, np.repeat(S.homes(G)[::32], 8 * count))


def _wgmma(
    S: Any, G: Any, kinds: tuple[str, str, str], n: int, c: list[Array], a: Any, b: Array,
    keep: Array, signs: tuple[int, int], turned: tuple[bool, bool],
) -> Array:  # fmt: skip
    """The accumulators after it, [n / 2, threads]."""
    if G.n % _GROUP or int(G.tid[0]) % _GROUP or warps(G) != G.n // 32:
        raise Fault("wgmma without all 128 threads of its warp group")
    groups = G.n // _GROUP
    columns = 256 // ELEMENTS[kinds[1]].bits
    before = fragments.apart(c, kinds[2])
    kept = np.where(keep[None], before, before.dtype.type(0)).astype(np.float64)
    sums = fragments.whole(kept, 64)
    if isinstance(a, list):
        registers = fragments.left(a, kinds[0]).reshape(groups, 64, columns)
    parts = []
    for group in range(groups):
        first = int(G.tid[group * _GROUP]) // _GROUP
        if isinstance(a, list):
            left = registers[group]
        else:
            left = _matrix(S, first, a[group * _GROUP :], 64, columns, kinds[0], turned[0])
        right = _matrix(S, first, b[group * _GROUP :], n, columns, kinds[1], turned[1])
        parts.append(_sum(S, kinds, left * signs[0], right.T * signs[1], sums[group]))
    S.counters.flops += 2 * 64 * n * columns * groups
    return fragments.packed(_rounded(fragments.spread(np.stack(parts)), kinds[2]))


def _matrix(
    S: Any, group: int, descriptor: Array, rows: int, columns: int, kind: str, turned: bool
) -> Array:
    """[rows, columns] float64, and a watch over its bytes."""
    if (descriptor[:_GROUP] != descriptor[0]).any():
        raise Fault("the threads of a warp group give wgmma different descriptors")
    layout = descriptors.hopper(int(descriptor[0]))
    # A descriptor has no room for more than a workgroup's own address.
    layout = layout._replace(start=layout.start % S.shared.room)
    at = descriptors.addresses(layout, rows, columns, ELEMENTS[kind].bits, turned)
    home = group * _GROUP // S.threads * S.shared.room
    at = at + home
    data = S.shared.chunks(at, home=home)
    S.watch.add(group, at, data)
    numbers = values(data.reshape(len(at), -1), kind)
    return numbers.T if turned else numbers


HELPERS: dict[str, Any] = {
    **{"mma": _mma, "load_matrix": _load_matrix, "store_matrix": _store_matrix, "wgmma": _wgmma},
}


class Watch:
    """Operands of wgmma that were not waited for yet."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self.open: dict[int, list[tuple[Array, Array]]] = {}
        self.groups: dict[int, list[list[tuple[Array, Array]]]] = {}

    def add(self, group: int, at: Array, data: Array) -> None:
        """An operand of the warp group's next commit group."""
        self.open.setdefault(group, []).append((at, data))

    def commit(self, G: Any) -> None:
        """wgmma.commit_group."""
        for group in _groups(G):
            self.groups.setdefault(group, []).append(self.open.pop(group, []))

    def wait(self, G: Any, left: int) -> None:
        """wgmma.wait_group: all but the last `left` groups must still have their operands."""
        for group in _groups(G):
            waiting = self.groups.get(group, [])
            for at, data in [one for part in waiting[: len(waiting) - left] for one in part]:
                if not np.array_equal(
                    self.shared.bytes[at[..., None] + np.arange(16)], data.reshape(*at.shape, 16)
                ):
                    raise Fault(
                        "an operand of wgmma in shared memory was overwritten before its wait"
                    )
            self.groups[group] = waiting[max(0, len(waiting) - left) :]

    def check_done(self) -> None:
        """Fault at the end of a workgroup that never waited."""
        if any(self.open.values()) or any(
            any(part for part in parts) for parts in self.groups.values()
        ):
            raise Fault("a workgroup ends with wgmma that nobody waited for")


def _groups(G: Any) -> list[int]:
    return sorted({int(tid) // _GROUP for tid in G.tid[::32]})


def _elements(operand: Operand) -> list[Operand]:
    return list(operand.elements) if isinstance(operand, Vector) else [operand]


def _list(emitter: Emitter, operand: Operand, kind: str = "u4") -> str:
    return "[" + ", ".join(emitter.vector(e, kind) for e in _elements(operand)) + "]"


_SUMS = {"f32": "f4", "s32": "i4", "f16": "f2", "f64": "f8"}
_HELD = {"f4": "f4", "i4": "i4", "f2": "u4", "f8": "f8"}
"""What the registers of accumulators hold: two numbers of float16."""


def _mma_builder(kinds: tuple[str, str, str], counts: tuple[int, int]) -> Builder:
    """counts: registers of A and of B."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        d, a, b, c = instruction.operands
        sizes = tuple(len(_elements(operand)) for operand in (d, a, b, c))
        many = 2 if kinds[2] == "f2" else 4
        if sizes != (many, *counts, many):
            raise UnknownInstruction(f"{sizes} registers")
        own = "u8" if kinds[2] == "f8" else "u4"
        given = ", ".join(_list(emitter, operand, own) for operand in (a, b, c))
        emitter.results(_elements(d), _HELD[kinds[2]], f"mma(S, G, {kinds}, {given})")

    return build


def _wgmma_builder(kinds: tuple[str, str, str], n: int) -> Builder:
    turnable = ELEMENTS[kinds[0]].bits == 16

    def build(emitter: Emitter, instruction: Instruction) -> None:
        d, a, b, keep, *rest = instruction.operands
        numbers = [int(r.value) for r in rest if isinstance(r, Immediate)]
        registers = isinstance(a, Vector)
        floats = kinds[2] != "i4"
        signs = (numbers.pop(0), numbers.pop(0)) if floats else (1, 1)
        turns = (
            0 if registers or not turnable else numbers.pop(0),
            numbers.pop(0) if turnable else 0,
        )
        if (
            len(_elements(d)) != (n // 4 if kinds[2] == "f2" else n // 2)
            or numbers
            or len(rest) != 2 * floats + turnable * (2 - registers)
        ):
            raise UnknownInstruction(f"operands {rest}")
        left = _list(emitter, a) if registers else emitter.vector(a, "u8")
        if registers and len(_elements(a)) != 4:
            raise UnknownInstruction("registers of A")
        call = (
            f"wgmma(S, G, {kinds}, {n}, {_list(emitter, d)}, {left}, {emitter.vector(b, 'u8')}, "
            f"{emitter.vector(keep, 'pred')}, {signs}, {tuple(map(bool, turns))})"
        )
        emitter.results(_elements(d), _HELD[kinds[2]], call)

    return build


def _matrix_move(load: bool, count: int, turned: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        if instruction.guard is not None:
            raise UnknownInstruction("a move of matrices under a predicate")
        registers, where = instruction.operands if load else instruction.operands[::-1]
        if len(_elements(registers)) != count:
            raise UnknownInstruction(f"{count} registers are expected")
        at = emitter.address(where, wide=False)
        if load:
            call = f"load_matrix(S, G, {at}, {count}, {turned})"
            emitter.results(_elements(registers), "u4", call)
        else:
            emitter.line(f"store_matrix(S, G, {at}, {_list(emitter, registers)}, {turned})")

    return build


def _source(text: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        count = instruction.operands[0] if instruction.operands else None
        left = int(count.value) if isinstance(count, Immediate) else 0
        emitter.line(text.format(left))

    return build


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for count, turned, space in (
        (c, t, s) for c in (1, 2, 4) for t in (False, True) for s in ("shared", "shared::cta")
    ):
        name = f"sync.aligned.m8n8.x{count}{'.trans' if turned else ''}.{space}.b16"
        table[f"ldmatrix.{name}"] = _matrix_move(True, count, turned)
        table[f"stmatrix.{name}"] = _matrix_move(False, count, turned)
    for kind, total in (
        ("bf16", "f32"),
        ("f16", "f32"),
        ("tf32", "f32"),
        ("s8", "s32"),
        ("e4m3", "f32"),
        ("e5m2", "f32"),
        *(("f16", "f16"), ("e4m3", "f16"), ("e5m2", "f16"), ("u8", "s32")),
    ):
        k = 256 // ELEMENTS[kind].bits
        kinds = (kind, kind, _SUMS[total])
        for size, registers in ((k, (4, 2)), (k // 2, (2, 1))):
            shape = f"m16n8k{size}.row.col.{total}.{kind}.{kind}.{total}"
            table[f"mma.sync.aligned.{shape}"] = _mma_builder(kinds, registers)
            if total == "s32":
                saturating = shape.replace(".col.", ".col.satfinite.")
                table[f"mma.sync.aligned.{saturating}"] = _mma_builder(kinds, registers)
        for n in range(8, 257, 8):
            name = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{total}.{kind}.{kind}"
            table[name] = _wgmma_builder(kinds, n)
    for k, registers in ((4, (2, 1)), (8, (4, 2)), (16, (8, 4))):
        shape = f"m16n8k{k}.row.col.f64.f64.f64.f64"
        table[f"mma.sync.aligned.{shape}"] = _mma_builder(("f64", "f64", "f8"), registers)
    table["wgmma.fence.sync.aligned"] = _source("whole_warps(G)")
    table["wgmma.commit_group.sync.aligned"] = _source("S.watch.commit(G)")
    table["wgmma.wait_group.sync.aligned"] = _source("S.watch.wait(G, {})")
    return table


TABLE = _table()

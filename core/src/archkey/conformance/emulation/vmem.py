# SPDX-License-Identifier: Apache-2.0
"""Vector memory: global, buffer and scratch loads and stores.

Source: CDNA3 ISA reference, "Vector memory operations" (buffer resources and their range check),
"Flat memory instructions" (global and scratch).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.operands import Operand, Read, operand, reader, scalar
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.transfer import LOADS, STORES, Shape, gathered, scatter
from archkey.conformance.emulation.wave import LANES, M0, Array, Wave

__all__ = ["TABLE", "Buffer", "global_address"]

_POLICIES = ("sc0", "sc1", "nt")
"""How to cache, which means nothing where memory is one and in order."""


def global_address(instruction: Instruction, lane: Operand, base: Operand) -> Read:
    """Addresses of working lanes: 64 bits a lane, or a scalar base and 32 bits a lane."""
    for policy in _POLICIES:
        instruction.flag(policy)
    offset = np.array(instruction.number("offset") & 0xFFFFFFFFFFFFFFFF, np.uint64)
    if base.text == "off":
        whole = reader(lane, "u64")
        return lambda w: _working(w, whole(w) + offset)
    start, index = scalar(base, True), reader(lane, "u32")
    return lambda w: _working(w, index(w) + (np.array(start(w), np.uint64) + offset))


def _working(w: Wave, lanes: Array) -> Array:
    return lanes if w.full else lanes[w.mask]


def _global_load(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        to, lane, base = (operand(text) for text in instruction.operands)
        address, row = global_address(instruction, lane, base), to.index

        def step(w: Wave) -> None:
            if w.exec:
                at = address(w)
                scatter(w, row, shape, w.group.load(at, shape.size, shape.count))

        return step

    return build


def _global_store(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        lane, data, base = (operand(text) for text in instruction.operands)
        address, row = global_address(instruction, lane, base), data.index

        def step(w: Wave) -> None:
            if w.exec:
                w.group.store(address(w), gathered(w, row, shape))

        return step

    return build


class Buffer:
    """The operands of a buffer access: an offset a lane, a resource in 4 SGPRs, a scalar offset."""

    def __init__(self, instruction: Instruction, texts: tuple[str, ...], shape: Shape) -> None:
        for policy in _POLICIES:
            instruction.flag(policy)
        lane, resource, more = (operand(text) for text in texts)
        self._lane = reader(lane, "u32") if instruction.flag("offen") else _zeros
        self._more, self._resource = scalar(more), resource.index
        self.fixed, self._shape = instruction.number("offset"), shape

    def inside(self, w: Wave) -> tuple[Array, Array, Array]:
        """Of working lanes: addresses; whether each element is in range; lanes that are wholly."""
        low, high, records, _ = w.s[self._resource : self._resource + 4]
        if high >> 16:
            raise UnknownInstruction("a buffer with a stride or a swizzle is not defined here")
        offset = _working(w, self._lane(w)).astype(np.int64) + (self._more(w) + self.fixed)
        ends = offset + self._shape.size * np.arange(1, self._shape.count + 1)[:, None]
        valid: Array = ends <= records
        start = np.uint64(low | (high & 0xFFFF) << 32)
        return start + offset.astype(np.uint64), valid, np.asarray(valid.all(0))

    def load(self, w: Wave, into_lds: bool = False) -> Array:
        """What the working lanes load: [count, lanes]. Elements out of range are 0."""
        at, valid, whole = self.inside(w)
        load, shape = w.group.copy if into_lds else w.group.load, self._shape
        if whole.all():
            return load(at, shape.size, shape.count)
        values = np.zeros(valid.shape, f"u{shape.size}")
        for n, lanes in enumerate(valid):
            if lanes.any():
                element = at[lanes] + np.uint64(n * shape.size)
                values[n, lanes] = load(element, shape.size)[0]
        return values


def _zeros(w: Wave) -> Array:
    return np.zeros(LANES, np.uint32)


def _buffer_load(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        if instruction.flag("lds"):
            access = Buffer(instruction, instruction.operands, shape)
            return _into_lds(lambda w: access.load(w, True), shape, access.fixed)
        to, *rest = instruction.operands
        row, access = operand(to).index, Buffer(instruction, tuple(rest), shape)

        def step(w: Wave) -> None:
            if w.exec:
                scatter(w, row, shape, access.load(w))

        return step

    return build


def _into_lds(load: Callable[[Wave], Array], shape: Shape, offset: int) -> Step:
    """A load that passes the registers by: lane after lane into LDS, from M0 + offset on."""
    if shape.size != 4 or shape.count == 2:
        raise UnknownInstruction(f"no load into LDS of {shape.count} x {shape.size} bytes")
    place = np.arange(LANES) * shape.span

    def step(w: Wave) -> None:
        if w.exec:
            w.group.write_lds(place[w.mask] + (w.s[M0] + offset), load(w))

    return step


def _global_into_lds(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        lane, base = (operand(text) for text in instruction.operands)
        # The offset counts for both addresses.
        offset = int(instruction.modifiers.get("offset", "0"), 0)
        address = global_address(instruction, lane, base)

        def load(w: Wave) -> Array:
            return w.group.copy(address(w), 4, shape.count)

        return _into_lds(load, shape, offset)

    return build


def _buffer_store(shape: Shape) -> Builder:
    """Elements out of range are dropped."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        data, *rest = instruction.operands
        row, access = operand(data).index, Buffer(instruction, tuple(rest), shape)

        def step(w: Wave) -> None:
            if not w.exec:
                return
            at, valid, whole = access.inside(w)
            values, store = gathered(w, row, shape), w.group.store
            if whole.all():
                store(at, values)
                return
            for n, lanes in enumerate(valid):
                if lanes.any():
                    store(at[lanes] + np.uint64(n * shape.size), values[n : n + 1, lanes])

        return step

    return build


def _private(instruction: Instruction, lane: Operand, base: Operand) -> Callable[[Wave], Array]:
    """Byte offsets into each lane's scratch."""
    for policy in _POLICIES:
        instruction.flag(policy)
    fixed = instruction.number("offset")
    index = _zeros if lane.text == "off" else reader(lane, "u32")
    start = (lambda w: 0) if base.text == "off" else scalar(base)
    return lambda w: index(w).astype(np.int64) + (start(w) + fixed)


def _cells(w: Wave, offsets: Array, shape: Shape) -> tuple[Array, Array]:
    """Indices of the bytes that the working lanes access: lanes and offsets."""
    at = offsets[w.mask]
    size = w.scratch.shape[1]
    if int(at.min()) < 0 or int(at.max()) + shape.span > size:
        raise Fault(f"access outside of the {size} bytes of scratch that a lane has")
    return np.flatnonzero(w.mask)[:, None], at[:, None] + np.arange(shape.span)


def _scratch_load(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        to, lane, base = (operand(text) for text in instruction.operands)
        offsets, row = _private(instruction, lane, base), to.index

        def step(w: Wave) -> None:
            if w.exec:
                cells = w.scratch[_cells(w, offsets(w), shape)]
                scatter(w, row, shape, cells.view(f"u{shape.size}").T)

        return step

    return build


def _scratch_store(shape: Shape) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        lane, data, base = (operand(text) for text in instruction.operands)
        offsets, row = _private(instruction, lane, base), data.index

        def step(w: Wave) -> None:
            if w.exec:
                values = np.ascontiguousarray(gathered(w, row, shape).T).view(np.uint8)
                w.scratch[_cells(w, offsets(w), shape)] = values

        return step

    return build


_ACCESS: tuple[tuple[str, Callable[[Shape], Builder], Callable[[Shape], Builder]], ...] = (
    ("global", _global_load, _global_store),
    ("buffer", _buffer_load, _buffer_store),
    ("scratch", _scratch_load, _scratch_store),
)

TABLE: dict[str, Builder] = {
    **{f"{s}_load_{name}": load(shape) for s, load, _ in _ACCESS for name, shape in LOADS.items()},
    **{
        f"global_load_lds_{name}": _global_into_lds(LOADS[name])
        for name in ("dword", "dwordx3", "dwordx4")
    },
    **{f"{s}_store_{n}": store(shape) for s, _, store in _ACCESS for n, shape in STORES.items()},
}

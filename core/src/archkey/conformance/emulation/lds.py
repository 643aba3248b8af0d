# SPDX-License-Identifier: Apache-2.0
"""LDS: loads and stores of a workgroup's shared memory, and the transposing loads of gfx950.

Source: CDNA3 ISA reference, "Data share"; CDNA4 for ds_read_b64_tr_*. An access past the LDS that
the launch asked for reads 0 on the hardware; here it is a fault.
"""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.operands import Operand, Read, operand, reader
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.transfer import Shape, gathered, scatter
from archkey.conformance.emulation.wave import LANES, Array, Wave

__all__ = ["TABLE", "places", "transposed"]

_LOADS = {
    "b32": Shape(4),
    "b64": Shape(4, 2),
    "b96": Shape(4, 3),
    "b128": Shape(4, 4),
    "u8": Shape(1),
    "i8": Shape(1, signed=True),
    "u16": Shape(2),
    "i16": Shape(2, signed=True),
    **{f"u8_d16{hi}": Shape(1, half=n) for n, hi in enumerate(("", "_hi"))},
    **{f"i8_d16{hi}": Shape(1, signed=True, half=n) for n, hi in enumerate(("", "_hi"))},
    **{f"u16_d16{hi}": Shape(2, half=n) for n, hi in enumerate(("", "_hi"))},
}
_STORES = {
    **{name: _LOADS[name] for name in ("b32", "b64", "b96", "b128")},
    "b8": Shape(1),
    "b8_d16_hi": Shape(1, half=1),
    "b16": Shape(2),
    "b16_d16_hi": Shape(2, half=1),
}


def places(w: Wave, base: Array, offset: Array) -> Array:
    """Addresses of the working lanes. The sum wraps: LLVM puts negative bases before an offset."""
    return ((base if w.full else base[w.mask]) + offset).astype(np.int64)


def _fetch(w: Wave, base: Array, offset: Array, shape: Shape) -> Array:
    return w.group.read_lds(places(w, base, offset), shape.size, shape.count)


def _offsets(instruction: Instruction, stride: int) -> tuple[Array, ...]:
    """Byte offsets: one, or two in units of `stride`."""
    names = ("offset0", "offset1") if stride else ("offset",)
    return tuple(np.array(instruction.number(n) * (stride or 1), np.uint32) for n in names)


def _load(shape: Shape, stride: int = 0) -> Builder:
    """stride: bytes of the unit of a load of two, 0 for a load of one."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, address = (operand(text) for text in instruction.operands)
        read, offsets = reader(address, "u32"), _offsets(instruction, stride)
        rows = [to.index + n * shape.count for n in range(len(offsets))]

        def step(w: Wave) -> None:
            if w.exec:
                base = read(w)
                found = [_fetch(w, base, offset, shape) for offset in offsets]
                for row, values in zip(rows, found, strict=True):
                    scatter(w, row, shape, values)

        return step

    return build


def _store(shape: Shape, stride: int = 0) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        address, *data = (operand(text) for text in instruction.operands)
        read, offsets = reader(address, "u32"), _offsets(instruction, stride)
        sources: list[Operand] = data

        def step(w: Wave) -> None:
            if w.exec:
                base = read(w)
                for offset, source in zip(offsets, sources, strict=True):
                    w.group.write_lds(places(w, base, offset), gathered(w, source.index, shape))

        return step

    return build


def transposed(values: Array, bits: int) -> Array:
    """64 bits of each lane [lanes, 8 bytes], transposed within each 16 lanes.

    The lanes hold a tile of 64 / bits rows of 16 elements, row after row; each gets a column.
    """
    rows = 64 // bits
    if bits == 4:
        codes = np.stack([values & 15, values >> 4], -1).reshape(-1, rows, 16)
        turned = codes.transpose(0, 2, 1).reshape(LANES, 8, 2)
        return turned[..., 0] | turned[..., 1] << 4
    tile = np.ascontiguousarray(values).view(f"u{bits // 8}").reshape(-1, rows, 16)
    return np.ascontiguousarray(tile.transpose(0, 2, 1)).reshape(LANES, rows).view(np.uint8)


def _transposing(bits: int) -> Builder:
    shape = Shape(4, 2)

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, address = (operand(text) for text in instruction.operands)
        read: Read = reader(address, "u32")
        (offset,), row = _offsets(instruction, 0), to.index

        def step(w: Wave) -> None:
            if not w.full:
                raise Fault("a transposing load whose lanes do not all work is not defined")
            words = np.ascontiguousarray(_fetch(w, read(w), offset, shape).T)
            turned = transposed(words.view(np.uint8), bits).view(np.uint32)
            scatter(w, row, shape, turned.T)

        return step

    return build


TABLE: dict[str, Builder] = {
    **{f"ds_read_{name}": _load(shape) for name, shape in _LOADS.items()},
    **{f"ds_write_{name}": _store(shape) for name, shape in _STORES.items()},
    **{
        f"ds_{way}2{far}_{name}": build(_LOADS[name], _LOADS[name].span * scale)
        for way, build in (("read", _load), ("write", _store))
        for far, scale in (("", 1), ("st64", 64))
        for name in ("b32", "b64")
    },
    **{f"ds_read_b64_tr_b{bits}": _transposing(bits) for bits in (4, 8, 16)},
}

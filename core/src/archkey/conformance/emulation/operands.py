# SPDX-License-Identifier: Apache-2.0
"""Operands: from their text to functions that read and write a wave's registers.

A *kind* says how the bits of an operand are meant: a key of KINDS, or "mask" for a lane mask in a
pair of scalar registers. Readers for vector instructions give all 64 lanes, whatever the operand
is: a row, a scalar register or a constant. Source: LLVM, "Syntax of AMDGPU Instruction Operands".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.wave import (
    AGPR,
    EXEC,
    LANES,
    M0,
    VCC,
    Array,
    Wave,
    int_of,
    mask_of,
)

__all__ = ["KINDS", "Operand", "Read", "Write", "operand", "reader", "scalar", "writer"]

Read = Callable[[Wave], Array]
Write = Callable[[Wave, Array], None]

KINDS: dict[str, np.dtype[Any]] = {
    **{"u32": np.dtype("u4"), "i32": np.dtype("i4"), "f32": np.dtype("f4")},
    **{"u16": np.dtype("u2"), "i16": np.dtype("i2"), "f16": np.dtype("f2")},
    **{"u64": np.dtype("u8"), "i64": np.dtype("i8"), "f64": np.dtype("f8")},
    **{"u24": np.dtype("u4"), "i24": np.dtype("i4")},  # the low 24 bits of a register
}


@dataclass(frozen=True)
class Operand:
    """An operand as it is written.

    file      "v" (AGPRs from row 256 on), "s", "constant", or "name" for anything else
    index     of the first register
    count     of registers
    negative  and the other two: -x, |x|, sext(x)
    """

    text: str
    file: str
    index: int = 0
    count: int = 1
    negative: bool = False
    absolute: bool = False
    extended: bool = False


_NAMED = {
    **{"vcc": (VCC, 2), "vcc_lo": (VCC, 1), "vcc_hi": (VCC + 1, 1)},
    **{"exec": (EXEC, 2), "exec_lo": (EXEC, 1), "exec_hi": (EXEC + 1, 1), "m0": (M0, 1)},
}


def operand(text: str) -> Operand:
    """What `text` names."""
    negative = text[:1] == "-" and not text[1:2].isdigit()
    inner = text[negative:]
    if inner.startswith("neg("):  # of a number, whose sign would be a part of it
        negative, inner = True, inner[4:-1]
    absolute = inner[:1] == "|"
    inner = inner.strip("|") if absolute else inner
    extended = inner.startswith("sext(")
    inner = inner[5:-1] if extended else inner
    signs = (negative, absolute, extended)
    if match := re.fullmatch(r"([sva])(?:(\d+)|\[(\d+)(?::(\d+))?\])", inner):
        first = int(match[2] or match[3])
        count = int(match[4]) - first + 1 if match[4] else 1
        if match[1] == "s":
            return Operand(text, "s", first, count, *signs)
        return Operand(text, "v", first + (AGPR if match[1] == "a" else 0), count, *signs)
    if inner in _NAMED:
        return Operand(text, "s", *_NAMED[inner], *signs)
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+(\.\d+)?)", inner):
        return Operand(inner, "constant", 0, 0, *signs)
    return Operand(text, "name")


def constant(text: str, kind: str) -> int:
    """The bits of a constant where `kind` is expected.

    Whole numbers are bit patterns, also for floats; 1.0 and its like are in the operand's format.
    """
    dtype = KINDS[kind]
    bits = dtype.itemsize * 8
    if "." not in text:
        return int(text, 0) & ((1 << bits) - 1)
    if kind == "f64":
        return int(struct.unpack("<Q", struct.pack("<d", float(text)))[0])
    if dtype.itemsize == 2:
        return int(np.float16(text).view(np.uint16))
    # float32, and what takes its bits as they are
    return int(np.float32(text).view(np.uint32))


def reader(found: Operand, kind: str, half: int = 0) -> Read:
    """Reads all lanes of a source. half: 1 for the upper 16 bits of a register"""
    read = _plain(found, kind, half)
    if not (found.negative or found.absolute):
        return read
    if kind not in ("f32", "f16", "f64"):
        raise UnknownInstruction(f"unknown operand {found.text!r} where {kind} is expected")
    if not found.negative:
        return lambda w: np.abs(read(w))
    if found.absolute:
        return lambda w: -np.abs(read(w))
    return lambda w: -read(w)


def _plain(found: Operand, kind: str, half: int) -> Read:
    index = found.index
    if kind == "mask":
        if found.file == "constant":
            value = int(found.text, 0) & ((1 << LANES) - 1)
            return lambda w: mask_of(value)
        _expect(found, found.file == "s", kind)
        return lambda w: mask_of(w.get64(index))
    dtype = KINDS[kind]
    if found.file == "constant":
        value = constant(found.text, kind)
        fixed = np.full(LANES, value, f"u{dtype.itemsize}").view(dtype)
        fixed = _narrow(fixed, kind)
        fixed.flags.writeable = False
        return lambda w: fixed
    if found.file == "s":
        return _of_scalar(index, kind, half)
    _expect(found, found.file == "v", kind)
    if dtype.itemsize == 8:
        return lambda w: _joined(w, index).view(dtype)
    if dtype.itemsize == 2:
        return lambda w: w.u32[index].view(dtype)[half::2]
    if kind in ("u24", "i24"):
        return lambda w: _narrow(w.u32[index].view(dtype), kind)
    return _ROWS[kind](index)


_ROWS: dict[str, Callable[[int], Read]] = {
    "u32": lambda index: lambda w: w.u32[index],
    "i32": lambda index: lambda w: w.i32[index],
    "f32": lambda index: lambda w: w.f32[index],
}


def _joined(w: Wave, index: int) -> Array:
    both = np.empty((LANES, 2), np.uint32)
    both[:, 0], both[:, 1] = w.u32[index], w.u32[index + 1]
    return both.view(np.uint64)[:, 0]


def _narrow(value: Array, kind: str) -> Array:
    if kind == "u24":
        return value & np.uint32(0xFFFFFF)
    return value << 8 >> 8 if kind == "i24" else value


def _of_scalar(index: int, kind: str, half: int) -> Read:
    dtype = KINDS[kind]
    size = dtype.itemsize
    raw = np.dtype(f"u{size}")
    get = scalar_register(index, size == 8)
    shift, bits = (16 * half, 0xFFFF) if size == 2 else (0, (1 << 8 * size) - 1)

    def read(w: Wave) -> Array:
        spread = np.empty(LANES, raw)
        spread.fill(get(w) >> shift & bits)
        return _narrow(spread.view(dtype), kind)

    return read


def scalar_register(index: int, pair: bool) -> Callable[[Wave], int]:
    """Reads one scalar register, or two."""
    if pair:
        return lambda w: w.get64(index)
    if index in (EXEC, EXEC + 1):
        return lambda w: w.exec >> 32 * (index - EXEC) & 0xFFFFFFFF
    return lambda w: w.s[index]


def scalar(found: Operand, pair: bool = False) -> Callable[[Wave], int]:
    """Reads a scalar source as an unsigned integer of 32 bits, or of 64."""
    if found.file == "constant":
        value = constant(found.text, "u64" if pair and "." not in found.text else "u32")
        if pair and found.text.startswith("0x"):
            value &= 0xFFFFFFFF
        return lambda w: value
    _expect(found, found.file == "s", "scalar")
    return scalar_register(found.index, pair)


def scalar_writer(found: Operand, pair: bool = False) -> Callable[[Wave, int], None]:
    """Writes one scalar register, or two."""
    _expect(found, found.file == "s", "scalar destination")
    index = found.index
    if pair:
        return lambda w, value: w.set64(index, value)
    if index in (EXEC, EXEC + 1):
        raise UnknownInstruction(f"half of exec is not written here: {found.text}")

    def write(w: Wave, value: int) -> None:
        w.s[index] = value

    return write


def writer(found: Operand, kind: str, half: int | None = None) -> Write:
    """Writes the working lanes of a destination.

    half  of a 16-bit result: 0 or 1 keeps the other half, None zeroes it
    """
    index = found.index
    if kind == "mask":
        _expect(found, found.file == "s", kind)
        return lambda w, r: w.set64(index, int_of(r & w.mask))
    _expect(found, found.file == "v", kind)
    size = KINDS[kind].itemsize
    if size == 8:
        return _pair_writer(index)
    if size == 2:
        return _half_writer(index, half)
    row = _ROWS[kind](index)

    def write(w: Wave, r: Array) -> None:
        if w.full:
            row(w)[...] = r
        else:
            np.copyto(row(w), r, where=w.mask)

    return write


def _pair_writer(index: int) -> Write:
    def write(w: Wave, r: Array) -> None:
        words = np.ascontiguousarray(r).view(np.uint32)
        if w.full:
            w.u32[index][...], w.u32[index + 1][...] = words[::2], words[1::2]
        else:
            np.copyto(w.u32[index], words[::2], where=w.mask)
            np.copyto(w.u32[index + 1], words[1::2], where=w.mask)

    return write


def _half_writer(index: int, half: int | None) -> Write:
    def write(w: Wave, r: Array) -> None:
        bits = r.view(np.uint16)
        if half is None:
            np.copyto(w.u32[index], bits, where=w.mask)
        else:
            np.copyto(w.u32[index].view(np.uint16)[half::2], bits, where=w.mask)

    return write


def _expect(found: Operand, right: bool, what: str) -> None:
    if not right:
        raise UnknownInstruction(f"unknown operand {found.text!r} where {what} is expected")

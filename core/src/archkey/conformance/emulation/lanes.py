# SPDX-License-Identifier: Apache-2.0
"""Instructions that move values between lanes, or between a lane and a scalar register.

Source: CDNA3 and CDNA4 ISA references; ds_swizzle's patterns are in LLVM, "Syntax of AMDGPU
Instruction Modifiers", swizzle.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.operands import (
    operand,
    reader,
    scalar,
    scalar_writer,
    writer,
)
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import LANES, Array, Wave

__all__ = ["TABLE"]

_LANE = np.arange(LANES)


def _read_first(instruction: Instruction, labels: Labels) -> Step:
    to, source = (operand(text) for text in instruction.operands)
    read, write = reader(source, "u32"), scalar_writer(to)

    def step(w: Wave) -> None:
        first = (w.exec & -w.exec).bit_length() - 1 if w.exec else 0
        write(w, int(read(w)[first]))

    return step


def _read_lane(instruction: Instruction, labels: Labels) -> Step:
    to, source, lane = (operand(text) for text in instruction.operands)
    read, at, write = reader(source, "u32"), scalar(lane), scalar_writer(to)
    return lambda w: write(w, int(read(w)[at(w) % LANES]))


def _write_lane(instruction: Instruction, labels: Labels) -> Step:
    to, source, lane = (operand(text) for text in instruction.operands)
    read, at, row = scalar(source), scalar(lane), to.index

    def step(w: Wave) -> None:
        w.u32[row][at(w) % LANES] = read(w)

    return step


def _swap(first: Array, second: Array) -> Builder:
    """v_permlane32_swap and v_permlane16_swap: lanes `first` of D and `second` of S change."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        one, two = (operand(text).index for text in instruction.operands)

        def step(w: Wave) -> None:
            if not w.full:
                raise UnknownInstruction("a swap of lanes that do not all work is not defined here")
            kept = w.u32[one][first]
            w.u32[one][first] = w.u32[two][second]
            w.u32[two][second] = kept

        return step

    return build


def _swap_registers(instruction: Instruction, labels: Labels) -> Step:
    """v_swap_b32."""
    one, two = (operand(text) for text in instruction.operands)
    reads = reader(one, "u32"), reader(two, "u32")
    writes = writer(one, "u32"), writer(two, "u32")

    def step(w: Wave) -> None:
        first, second = (np.copy(read(w)) for read in reads)
        writes[0](w, second)
        writes[1](w, first)

    return step


def _permute(forward: bool) -> Builder:
    """ds_permute (push) and ds_bpermute (pull): the address is 4 x the other lane."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, address, data = (operand(text) for text in instruction.operands)
        offset = instruction.number("offset")
        where, read, write = reader(address, "u32"), reader(data, "u32"), writer(to, "u32")

        def step(w: Wave) -> None:
            other = (where(w) + np.uint32(offset)) // 4 % LANES
            value = np.where(w.mask, read(w), 0)
            if forward:
                moved = np.zeros(LANES, np.uint32)
                moved[other[w.mask]] = value[w.mask]
                value = moved
            else:
                value = value.take(other)
            write(w, value)

        return step

    return build


def _pattern(pattern: str) -> Array:
    """The lane that each lane reads for a pattern of ds_swizzle, as text or as number."""
    match = re.fullmatch(r"swizzle\((\w+),(.*)\)", pattern.replace(" ", ""))
    if match is None:
        return _numbered(int(pattern, 0))
    name, given = match[1], match[2].replace('"', "").split(",")
    if name == "BITMASK_PERM":
        keep = int("".join("1" if bit in "pi" else "0" for bit in given[0]), 2)
        put = int("".join("1" if bit == "1" else "0" for bit in given[0]), 2)
        flip = int("".join("1" if bit == "i" else "0" for bit in given[0]), 2)
        return _masked(keep, put, flip)
    numbers = [int(number, 0) for number in given]
    if name == "QUAD_PERM":
        return _LANE // 4 * 4 + np.array(numbers)[_LANE % 4]
    if name == "SWAP":
        return _masked(0x1F, 0, numbers[0])
    if name == "REVERSE":
        return _masked(0x1F, 0, numbers[0] - 1)
    if name == "BROADCAST":
        return _masked(0x20 - numbers[0], numbers[1], 0)
    raise UnknownInstruction(f"unknown pattern {pattern}")


def _numbered(offset: int) -> Array:
    if offset & 0x8000:
        return _LANE // 4 * 4 + np.array([offset >> 2 * n & 3 for n in range(4)])[_LANE % 4]
    return _masked(offset & 0x1F, offset >> 5 & 0x1F, offset >> 10 & 0x1F)


def _masked(keep: int, put: int, flip: int) -> Array:
    """Within each 32 lanes."""
    return _LANE & 32 | (((_LANE & 31 & keep) | put) ^ flip)


def _swizzle(instruction: Instruction, labels: Labels) -> Step:
    to, data = (operand(text) for text in instruction.operands)
    lanes = _pattern(instruction.take("offset", "0"))
    read, write = reader(data, "u32"), writer(to, "u32")
    return lambda w: write(w, np.where(w.mask, read(w), 0)[lanes].astype(np.uint32))


def _optional(build: Builder) -> Builder:
    """Without the modifiers that only matter for lanes that do not work."""

    def without(instruction: Instruction, labels: Labels) -> Step:
        instruction.take("bound_ctrl")
        instruction.take("fi")
        return build(instruction, labels)

    return without


_HALF: Callable[[int], Array] = lambda n: _LANE[_LANE // n % 2 == 1]  # noqa: E731 - two uses

TABLE: dict[str, Builder] = {
    "v_readfirstlane_b32": _read_first,
    "v_readlane_b32": _read_lane,
    "v_writelane_b32": _write_lane,
    "v_permlane32_swap_b32": _optional(_swap(_HALF(32), _HALF(32) - 32)),
    "v_permlane16_swap_b32": _optional(_swap(_HALF(16), _HALF(16) - 16)),
    "v_swap_b32": _swap_registers,
    "ds_bpermute_b32": _permute(False),
    "ds_permute_b32": _permute(True),
    "ds_swizzle_b32": _swizzle,
}

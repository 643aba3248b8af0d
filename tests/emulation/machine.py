# SPDX-License-Identifier: Apache-2.0
"""Runs single instructions on one emulated wave."""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.group import Group
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.program import families
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import ALL, LANES, Array, Wave

LANE = np.arange(LANES)
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-45, -1e-45, 1.1754944e-38, 1e-39, 3.4e38]
    + [-3.4e38, np.inf, -np.inf, np.nan, 65504.0, 65520.0, 448.0, 464.0, 240.0, 256.0, 57344.0],
    np.float32,
)


def bits(values: Any) -> Array:
    """64 lanes of anything that has 32 bits, or halves of it, as a register holds them."""
    array = np.asarray(values)
    array = np.broadcast_to(array, (LANES,)).copy()
    if array.dtype.itemsize == 8:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    if array.dtype == np.int64:
        array = (array & 0xFFFFFFFF).astype(np.uint32)
    return array.view(f"u{array.dtype.itemsize}").astype(np.uint32)


def numbers(seed: int, scale: float = 1.0) -> Array:
    """64 random float32 of many sizes, the edges first."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(LANES) * np.exp2(random.uniform(-scale, scale, LANES))
    values = values.astype(np.float32)
    return values


def wave(exec_mask: int = ALL, lds: int = 1024, rooms: tuple[Room, ...] = (), **given: Any) -> Wave:
    """A wave with registers as `given`: v1=array, a0=array, s4=number, vcc=mask."""
    made = Wave(Group(Memory(list(rooms)), lds), 64, 64, 256)
    for name, value in given.items():
        if name == "vcc":
            made.set64(106, value)
        elif name[0] == "s":
            made.s[int(name[1:])] = value & 0xFFFFFFFF
        else:
            row = int(name[1:]) + (256 if name[0] == "a" else 0)
            made.u32[row][:] = bits(value)
    made.set_exec(exec_mask)
    return made


def run(on: Wave, *lines: str, target: str = "gfx942") -> Wave:
    """Execute `lines` one after the other; they hold no branches."""
    known = families(target)
    with np.errstate(all="ignore"):
        for number, line in enumerate(lines, 1):
            instruction = Instruction(number, line)
            step = known[instruction.name](instruction, {})
            assert not instruction.left(), instruction.left()
            step(on)
    return on


def one(line: str, *, target: str = "gfx942", **given: Any) -> Array:
    """Register v0 as unsigned after `line`."""
    return run(wave(**given), line, target=target).u32[0].copy()


def one_float(line: str, *, target: str = "gfx942", **given: Any) -> Array:
    """Register v0 as float32 after `line`."""
    return one(line, target=target, **given).view(np.float32)

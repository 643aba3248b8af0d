# SPDX-License-Identifier: Apache-2.0
"""The state of one wave of 64 lanes.

Registers hold bit patterns. A vector register is a row of 64 lanes; AGPR n is row 256 + n, as in
the unified register file of CDNA3. Scalars are Python integers, and so are lane masks in scalar
registers; the execution mask is kept as an array of booleans too.

What no one has written holds what the workgroup is filled with.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from archkey.conformance.emulation.group import Group

__all__ = [
    *("AGPR", "ALL", "EXEC", "LANES", "M0", "VCC"),
    *("Array", "Wave", "int_of", "mask_of"),
]

Array: TypeAlias = npt.NDArray[Any]

LANES = 64
ALL = (1 << LANES) - 1
"""The execution mask with every lane."""

AGPR, VCC, M0, EXEC = 256, 106, 124, 126
"""First row of the AGPRs; scalar registers by LLVM's numbers (exec is kept apart)."""


class Wave:
    """64 lanes in lock step.

    s, scc          scalar registers as unsigned integers; the condition code
    u32, i32, f32   rows of the same vector registers as unsigned, signed and float numbers
    registers       of them all, [rows, lanes] as unsigned numbers; floats: as float32
    exec, mask      lanes that work, as an integer and as booleans; full: all of them
    saturate        MODE.FP16_OVFL: conversions to FP8 clamp instead of overflowing
    scratch         private bytes of each lane
    pc, state       index of the next instruction; "running", "barrier" or "ended"
    """

    def __init__(self, group: Group, vgprs: int, agprs: int, scratch_bytes: int) -> None:
        self.group = group
        self.s = [group.fill] * 128
        self.scc = 0
        rows = AGPR + agprs if agprs else vgprs
        self.registers: Array = np.full((rows, LANES), group.fill, np.uint32)
        self.u32 = list(self.registers)
        self.i32 = list(self.registers.view(np.int32))
        self.floats: Array = self.registers.view(np.float32)
        self.f32 = list(self.floats)
        self.scratch: Array = np.full((LANES, scratch_bytes), group.fill >> 8 & 0xFF, np.uint8)
        self.saturate = False
        self.pc = 0
        self.state = "running"
        self.set_exec(ALL)

    def set_exec(self, value: int) -> None:
        """Choose the lanes that work."""
        self.exec = value
        self.full = value == ALL
        self.mask = mask_of(value)

    def get64(self, register: int) -> int:
        """A pair of scalar registers."""
        if register == EXEC:
            return self.exec
        return self.s[register] | self.s[register + 1] << 32

    def set64(self, register: int, value: int) -> None:
        """Write a pair of scalar registers."""
        if register == EXEC:
            self.set_exec(value)
        else:
            self.s[register] = value & 0xFFFFFFFF
            self.s[register + 1] = value >> 32


@functools.lru_cache(4096)
def mask_of(value: int) -> Array:
    """Lane masks as booleans; do not write into the result."""
    packed = np.frombuffer(value.to_bytes(8, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little").view(np.bool_)


def int_of(mask: Array) -> int:
    """A lane mask as a scalar register pair holds it."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")

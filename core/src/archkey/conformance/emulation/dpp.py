# SPDX-License-Identifier: Apache-2.0
"""DPP: from which lane each lane takes its first source, and which lanes are written.

Source: CDNA3 ISA reference, "Data parallel processing". Rows are 16 lanes, banks are 4 of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.operands import Read
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import ALL, LANES, Array, Wave, mask_of

__all__ = ["Routing", "routing"]

_LANE = np.arange(LANES)
_ROW, _IN_ROW = _LANE // 16, _LANE % 16


def _in_row(at: Array) -> Array:
    """Lanes `at` of each row, -1 where that is outside of the row."""
    return np.where((at >= 0) & (at < 16), _ROW * 16 + at, -1)


def _outside(at: Array) -> Array:
    return np.where((at >= 0) & (at < LANES), at, -1)


_CONTROLS: dict[str, Callable[[int], Array]] = {
    "row_shl": lambda n: _in_row(_IN_ROW + n),
    "row_shr": lambda n: _in_row(_IN_ROW - n),
    "row_ror": lambda n: _in_row((_IN_ROW - n) % 16),
    "row_newbcast": lambda n: _in_row(np.full(LANES, n)),
    "row_bcast": lambda n: _outside(
        np.where(_ROW > 0, _ROW * 16 - 1, -1) if n == 15 else np.where(_LANE > 31, 31, -1)
    ),
    "wave_shl": lambda n: _outside(_LANE + 1),
    "wave_shr": lambda n: _outside(_LANE - 1),
    "wave_rol": lambda n: (_LANE + 1) % LANES,
    "wave_ror": lambda n: (_LANE - 1) % LANES,
}
_FLAGS = {
    "row_mirror": _in_row(15 - _IN_ROW),
    "row_half_mirror": _in_row(_IN_ROW ^ 7),
}


def _sources(control: str, value: str = "") -> Array:
    """The lane that each of the 64 lanes reads, -1 for none, for a control such as row_shr:1."""
    if control == "quad_perm":
        chosen = np.array([int(lane) for lane in value.strip("[]").split(",")])
        return _LANE // 4 * 4 + chosen[_LANE % 4]
    if control in _FLAGS:
        return _FLAGS[control]
    return _CONTROLS[control](int(value, 0))


class Routing:
    """What the modifiers of one DPP instruction mean.

    A source outside of the row, or in a lane that does not work, reads as 0 with bound_ctrl;
    without it the lane keeps its old value.
    """

    def __init__(self, lanes: Array, zero: bool, enabled: Array) -> None:
        self._valid, self._lanes = lanes >= 0, np.maximum(lanes, 0)
        self._zero, self._enabled = zero, enabled

    def _counts(self, w: Wave) -> Array:
        """Which lanes have a source."""
        return self._valid if w.exec == ALL else self._valid & mask_of(w.exec)[self._lanes]

    def source(self, read: Read) -> Read:
        """The first source, from other lanes."""

        def routed(w: Wave) -> Array:
            value = read(w).take(self._lanes)
            if not self._zero:
                return value
            return np.where(self._counts(w), value, value.dtype.type(0))

        return routed

    def written(self, w: Wave) -> Array:
        """The lanes that are written."""
        enabled = mask_of(w.exec) & self._enabled
        return enabled if self._zero else enabled & self._counts(w)


def routing(instruction: Instruction) -> Routing:
    """Takes the DPP modifiers of `instruction`."""
    known = ("quad_perm", *_FLAGS, *_CONTROLS)
    controls = [name for name in instruction.modifiers if name in known]
    if len(controls) != 1:
        raise UnknownInstruction(f"unknown DPP control in {instruction}")
    lanes = _sources(controls[0], instruction.take(controls[0]))
    rows, banks = instruction.number("row_mask", 0xF), instruction.number("bank_mask", 0xF)
    # LLVM writes bound_ctrl:1 for the bit that makes invalid sources 0 (older versions wrote :0).
    zero = instruction.take("bound_ctrl") != ""
    enabled = (rows >> _ROW & 1) & (banks >> (_IN_ROW // 4) & 1)
    return Routing(lanes, zero, enabled.astype(np.bool_))

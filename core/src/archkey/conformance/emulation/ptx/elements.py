# SPDX-License-Identifier: Apache-2.0
"""Elements of matrices from bytes to numbers.

Products are exact in float64, and so are nearly all sums of one instruction: they are rounded once,
into the accumulator. The hardware keeps fewer bits of FP8 sums. Source: PTX ISA, matrix data types.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.numbers import bf16_values, decode
from archkey.conformance.emulation.wave import Array

__all__ = ["ELEMENTS", "Element", "values"]


class Element(NamedTuple):
    """bits in shared memory, where FP6 and FP4 of mixed kinds have a byte each; a numpy kind."""

    bits: int
    raw: str


ELEMENTS = {
    "bf16": Element(16, "u2"),
    "f16": Element(16, "f2"),
    "tf32": Element(32, "u4"),
    "e4m3": Element(8, "u1"),
    "e5m2": Element(8, "u1"),
    "f64": Element(64, "f8"),
    "s8": Element(8, "i1"),
    "u8": Element(8, "u1"),
}


def values(raw: Array, kind: str) -> Array:
    """The last axis, uint8, as numbers: float64."""
    if kind == "e2m1":  # two a byte, the lower half first
        codes = np.stack([raw & np.uint8(15), raw >> np.uint8(4)], -1)
        return decode(codes, "e2m1").astype(np.float64).reshape(*raw.shape[:-1], -1)
    typed = np.ascontiguousarray(raw).view(ELEMENTS[kind].raw)
    if kind == "bf16":
        return bf16_values(typed).astype(np.float64)
    if kind == "tf32":
        return (typed & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        return decode(typed, "e4m3fn" if kind == "e4m3" else kind).astype(np.float64)
    return typed.astype(np.float64)

# SPDX-License-Identifier: Apache-2.0
"""How loads and stores move values between memory and vector registers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archkey.conformance.emulation.wave import Array, Wave

__all__ = ["LOADS", "STORES", "Shape", "gathered", "scatter"]


@dataclass(frozen=True)
class Shape:
    """What one lane moves: `count` elements of `size` bytes.

    signed  a byte or short is extended with its sign
    half    it goes to, or comes from, the lower (0) or upper (1) half of a register, whose other
            half stays as it is
    """

    size: int
    count: int = 1
    signed: bool = False
    half: int | None = None

    @property
    def span(self) -> int:
        """Bytes of a lane."""
        return self.size * self.count


_WORDS = {"dword": Shape(4), **{f"dwordx{n}": Shape(4, n) for n in (2, 3, 4)}}

LOADS = {
    **_WORDS,
    "ubyte": Shape(1),
    "sbyte": Shape(1, signed=True),
    "ushort": Shape(2),
    "sshort": Shape(2, signed=True),
    **{f"ubyte_d16{hi}": Shape(1, half=n) for n, hi in enumerate(("", "_hi"))},
    **{f"sbyte_d16{hi}": Shape(1, signed=True, half=n) for n, hi in enumerate(("", "_hi"))},
    **{f"short_d16{hi}": Shape(2, half=n) for n, hi in enumerate(("", "_hi"))},
}
"""What follows global_load_, buffer_load_ and scratch_load_."""

STORES = {
    **_WORDS,
    "byte": Shape(1),
    "byte_d16_hi": Shape(1, half=1),
    "short": Shape(2),
    "short_d16_hi": Shape(2, half=1),
}
"""What follows global_store_, buffer_store_ and scratch_store_."""


def scatter(w: Wave, to: int, shape: Shape, values: Array) -> None:
    """Write loaded `values` [count, working lanes] into registers from row `to` on."""
    if shape.size < 4:
        (value,) = values
        if shape.signed:
            value = value.view(f"i{shape.size}").astype(np.int32).view(np.uint32)
        if shape.half is None:
            w.u32[to][w.mask] = value
        else:
            w.u32[to].view(np.uint16)[shape.half :: 2][w.mask] = value.astype(np.uint16)
        return
    for row, value in zip(w.u32[to : to + shape.count], values, strict=True):
        if w.full:
            row[...] = value
        else:
            row[w.mask] = value


def gathered(w: Wave, source: int, shape: Shape) -> Array:
    """What the working lanes store: [count, working lanes] unsigned of the element's size."""
    if shape.size < 4:
        value = w.u32[source] >> (16 * (shape.half or 0))
        return value.astype(f"u{shape.size}")[w.mask][None]
    rows = w.registers[source : source + shape.count]
    return rows if w.full else rows[:, w.mask]

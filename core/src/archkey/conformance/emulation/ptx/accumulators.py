# SPDX-License-Identifier: Apache-2.0
"""How Hopper's matrix units add: not exactly, and to the bit as an H200 does.

An instruction adds all its products of a row and a column, and what was there, at once. Each is cut
off `bits` behind the point of the largest, whose exponent is the sum of its factors' exponents; the
sum is cut off as well. Nothing is rounded up. This was found by launches of a card, see
`archkey.conformance.emulation.captured`: with it the sums of `mma.sync` and `wgmma` have its bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.wave import Array

__all__ = ["HOPPER", "Width", "added"]


class Width(NamedTuple):
    """bits  of each summand behind the point of the largest; result: of the sum behind its own."""

    bits: int
    result: int


HOPPER = {
    **dict.fromkeys(("bf16", "f16", "tf32"), Width(25, 23)),
    **dict.fromkeys(("e4m3", "e5m2"), Width(13, 13)),
}
"""By the format of the operands; sums of integers are exact."""

_NONE = -12000
"""The exponent of 0, less than others; twice it has 16 bits, too."""

_LEAST = -500
"""Of a sum of nothing but zeros: a power of two that float64 still has, and its inverse."""

_MANY = 1 << 15
"""Products that are kept at once, so that they stay in a cache."""


def added(x: Array, y: Array, c: Array, width: Width) -> Array:
    """x [.., rows, K] times y [.., K, columns], plus c [.., rows, columns]; all are float64."""
    if all(np.isfinite(one).all() for one in (x, y, c)):
        return _added(x, y, c, width)
    exact = x @ y + c
    p, q, r = (np.where(np.isfinite(one), one, 0.0) for one in (x, y, c))
    return np.where(np.isfinite(exact), _added(p, q, r, width), exact)


def _added(x: Array, y: Array, c: Array, width: Width) -> Array:
    k = x.shape[-1]
    step = max(1, min(k, _MANY // c.size))
    parts = [slice(n, n + step) for n in range(0, k, step)]
    of_x, of_y = _exponent(x), _exponent(y)
    top = _exponent(c)
    for part in parts:
        np.maximum(top, (of_x[..., part, None] + of_y[..., None, part, :]).max(-2), out=top)
    np.maximum(top, _LEAST, out=top)
    unit = np.ldexp(1.0, (top - width.bits).astype(np.int32))
    many = 1 / unit
    total = np.trunc(c * many)
    for part in parts:
        products = x[..., part, None] * y[..., None, part, :]
        products *= many[..., None, :]
        total += np.trunc(products, out=products).sum(-2)
    total *= unit
    # Cut off towards zero, in the bits of a float64.
    total.view(np.int64)[...] &= -1 << 52 - width.result
    return total


def _exponent(values: Array) -> Array:
    """Of the leading bit, int16."""
    _, found = np.frexp(values)
    return np.where(values == 0, _NONE, found - 1).astype(np.int16)

# SPDX-License-Identifier: Apache-2.0
"""The three instructions around a division of float32, which make it exact.

v_div_scale brings numerator and denominator into a range where Newton's iteration neither
overflows nor loses bits, v_div_fmas takes that back, v_div_fixup mends the special cases.
Source: CDNA3 ISA reference, the three instructions' pseudocode.
"""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.builders import Builder
from archkey.conformance.emulation.numbers import to_odd
from archkey.conformance.emulation.vector import Alu, built
from archkey.conformance.emulation.wave import Array

__all__ = ["TABLE"]

_TINY = 2.0**-126
_UP, _DOWN = np.float32(2.0**64), np.float32(2.0**-64)


def _exponent(a: Array) -> Array:
    """The biased exponent as the bits have it."""
    return (a.view(np.uint32) >> 23 & 0xFF).astype(np.int32)


def _scale(a: Array, denominator: Array, numerator: Array) -> tuple[Array, Array]:
    """a, which is one of the two others, scaled; and whether the quotient must be scaled back."""
    wide = numerator.astype(np.float64) / denominator
    inverse_tiny = np.abs(1 / denominator.astype(np.float64)) < _TINY
    quotient_tiny = np.abs(wide) < _TINY
    below = (np.abs(denominator) < _TINY) & (denominator != 0)
    is_denominator, is_numerator = a == denominator, a == numerator
    up, down = a * _UP, a * _DOWN
    cases = [
        (numerator == 0) | (denominator == 0),
        _exponent(numerator) - _exponent(denominator) >= 96,
        below,
        inverse_tiny & quotient_tiny,
        inverse_tiny,
        quotient_tiny,
        _exponent(numerator) <= 23,
    ]
    values = [
        np.full_like(a, np.nan),
        np.where(is_denominator, up, a),
        up,
        # The reference writes 2^64 here, which would overflow: with 2^-64 the quotient is exact.
        np.where(is_denominator, down, a),
        down,
        np.where(is_numerator, up, a),
        up,
    ]
    back = np.select(cases, [False, True, False, True, False, True, False], False)
    return np.select(cases, values, a), back


def _fmas(a: Array, b: Array, c: Array, back: Array) -> Array:
    """a * b + c, times 2^64 or 2^-64 where `back` says so, rounded once."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    exact = to_odd(product, addend, product + addend)
    factor = np.where(_exponent(c) > 127, 2.0**64, 2.0**-64)
    return np.where(back, exact * factor, exact).astype(np.float32)


def _fixup(quotient: Array, denominator: Array, numerator: Array) -> Array:
    sign = np.signbit(denominator) ^ np.signbit(numerator)
    # Of two numbers, only a quotient that overflowed on the way is NaN.
    bare = np.where(np.isnan(quotient), np.float32(np.inf), np.abs(quotient))
    nothing = ((denominator == 0) & (numerator == 0)) | (
        np.isinf(denominator) & np.isinf(numerator)
    )
    far = _exponent(numerator) - _exponent(denominator) < -150
    size = np.select(
        [
            (denominator == 0) | np.isinf(numerator),
            np.isinf(denominator) | (numerator == 0) | far,
        ],
        [np.float32(np.inf), np.float32(0)],
        bare,
    )
    result = np.where(sign, -size, size)
    result = np.where(nothing, np.float32(np.nan), result)
    result = np.where(np.isnan(denominator), denominator, result)
    return np.where(np.isnan(numerator), numerator, result)


_F32 = ("f32",) * 3

TABLE: dict[str, Builder] = {
    "v_div_scale_f32": built(Alu(_scale, _F32, ("f32", "mask"))),
    "v_div_fmas_f32": built(Alu(_fmas, (*_F32, "mask"), implied=True)),
    "v_div_fixup_f32": built(Alu(_fixup, _F32)),
}

# SPDX-License-Identifier: Apache-2.0
"""Number formats and exact arithmetic that numpy lacks.

Small floats are described by a row of a table; their codes are decoded through a table of all
values, and encoded by rounding to the nearest, ties to the even code. Sources: OCP "8-bit Floating
Point Specification" and "Microscaling Formats (MX)"; for fnuz the CDNA3 ISA reference, FP8.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.wave import Array

__all__ = [
    *("FORMATS", "Format", "bf16_bits", "bf16_values", "decode", "e8m0", "encode", "fma", "to_odd"),
]


class Format(NamedTuple):
    """A float of at most 8 bits: a sign, `exponent` and `mantissa` bits.

    special  which codes are no numbers: "fnuz" (-0 is NaN, no infinity), "fn" (all ones is NaN),
             "ieee" (the last exponent is infinity and NaN), "none"
    """

    exponent: int
    mantissa: int
    bias: int
    special: str

    @property
    def bits(self) -> int:
        """Of a code."""
        return 1 + self.exponent + self.mantissa


FORMATS = {
    "e4m3fn": Format(4, 3, 7, "fn"),
    "e5m2": Format(5, 2, 15, "ieee"),
    "e4m3fnuz": Format(4, 3, 8, "fnuz"),
    "e5m2fnuz": Format(5, 2, 16, "fnuz"),
    "e2m3": Format(2, 3, 1, "none"),
    "e3m2": Format(3, 2, 3, "none"),
    "e2m1": Format(2, 1, 1, "none"),
}


@functools.cache
def _values(name: str) -> Array:
    """The value of every code, float32."""
    form = FORMATS[name]
    code = np.arange(1 << form.bits)
    mantissa = code & ((1 << form.mantissa) - 1)
    exponent = code >> form.mantissa & ((1 << form.exponent) - 1)
    normal = exponent > 0
    fraction = np.where(normal, 1 << form.mantissa, 0) + mantissa
    power = np.where(normal, exponent, 1) - form.bias - form.mantissa
    value = np.ldexp(fraction.astype(np.float64), power)
    value = np.where(code >> (form.bits - 1), -value, value)
    last = exponent == (1 << form.exponent) - 1
    if form.special == "fnuz":
        value[1 << (form.bits - 1)] = np.nan
    elif form.special == "fn":
        value[last & (mantissa == (1 << form.mantissa) - 1)] = np.nan
    elif form.special == "ieee":
        value[last] = np.where(mantissa[last] == 0, np.copysign(np.inf, value[last]), np.nan)
    return value.astype(np.float32)


def decode(codes: Array, name: str) -> Array:
    """Codes of a small float as float32."""
    return _values(name)[codes]


@functools.cache
def _positive(name: str) -> Array:
    """The finite values of the codes without a sign, which ascend."""
    values = _values(name)[: 1 << (FORMATS[name].bits - 1)].astype(np.float64)
    return values[np.isfinite(values)]


def encode(values: Array, name: str, saturate: bool) -> Array:
    """float32 or float64 to codes (uint8): nearest, ties to even.

    saturate  too large becomes the largest number; else infinity, or NaN where there is none
    """
    form, known = FORMATS[name], _positive(name)
    sign = np.uint8(1 << (form.bits - 1))
    size = np.abs(values.astype(np.float64))
    exact = np.where(np.isfinite(size), size, 0.0)
    _, exponent = np.frexp(exact)
    lowest = 1 - form.bias
    quantum = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - form.mantissa)
    rounded = np.rint(exact / quantum) * quantum
    code = np.searchsorted(known, np.minimum(rounded, known[-1])).astype(np.uint8)
    code = np.where(np.signbit(values), code | sign, code)
    over = (rounded > known[-1]) | np.isinf(size)
    if form.special == "none" or saturate:
        most = np.where(np.signbit(values), sign | np.uint8(len(known) - 1), len(known) - 1)
        code = np.where(over, most.astype(np.uint8), code)
        over = np.zeros_like(over)
    nothing = np.isnan(size)
    if form.special == "fnuz":
        code = np.where(code == sign, np.uint8(0), code)  # there is no -0
        return np.where(over | nothing, sign, code)
    signed = np.where(np.signbit(values), sign, np.uint8(0))
    if form.special == "fn":
        return np.where(over | nothing, signed | np.uint8(0x7F), code)
    if form.special == "ieee":
        infinite = np.uint8(((1 << form.exponent) - 1) << form.mantissa)
        code = np.where(over, signed | infinite, code)
        return np.where(nothing, signed | np.uint8(0x7F), code)
    return code


def e8m0(codes: Array) -> Array:
    """Scales of MX: 2^(code - 127) as float64, NaN for 255."""
    return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int32) - 127))


def bf16_values(bits: Array) -> Array:
    """bfloat16 as float32; `bits` are uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# numpy takes a constant faster as an array without axes than as a number.
_SIXTEEN, _HALF, _ONE = (np.array(n, np.uint32) for n in (16, 0x7FFF, 1))


def bf16_bits(values: Array) -> Array:
    """float32 to the nearest bfloat16 as uint16, ties to even; NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    upper = bits >> _SIXTEEN
    rounded = (bits + _HALF + (upper & _ONE)) >> _SIXTEEN
    nan = np.isnan(values)
    if np.count_nonzero(nan):
        rounded = np.where(nan, upper | 0x40, rounded)
    return rounded.astype(np.uint16)


_TIE = np.array(1 << 28, np.int64)
_BELOW = np.array((1 << 29) - 1, np.int64)
_SIZE, _SMALLEST = np.array(0x7FFFFFFF, np.uint32), np.array(0x00800000, np.uint32)
"""Of a float32 all but its sign; the bits of the smallest one that is normal."""


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32, rounded once.

    The product is exact in float64, and the sum nearly: only where it lies in the middle between
    two float32 (or the result is subnormal) can what was lost decide, and it is looked at.
    """
    addend = c.astype(np.float64)
    product = a.astype(np.float64) * b.astype(np.float64)
    total = product + addend
    result = total.astype(np.float32)
    # Counting is what numpy does fastest to a few booleans.
    ties = np.count_nonzero((total.view(np.int64) & _BELOW) == _TIE)
    small = (result.view(np.uint32) & _SIZE) <= _SMALLEST
    if ties or (np.count_nonzero(small) and np.count_nonzero(total[small])):
        back = total - product
        if np.count_nonzero((product - (total - back)) + (addend - back)):
            return to_odd(product, addend, total).astype(np.float32)
    return result


def to_odd(x: Array, y: Array, total: Array) -> Array:
    """x + y in float64, rounded to odd: a later rounding to float32 is then the only one."""
    back = total - x
    lost = (x - (total - back)) + (y - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(lost) & (lost != 0) & (bits & 1 == 0)
    away = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + away, bits).view(np.float64)

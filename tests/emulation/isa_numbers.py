# SPDX-License-Identifier: Apache-2.0
"""Numbers of AMD's pseudocode, and its functions: see `pseudocode`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FUNCTIONS", "N", "power", "typed", "wrapped"]


class N(NamedTuple):
    """A number.

    kind   u, i, b (bits), f or bf
    width  bits, None of a literal that has none
    loud   a signalling NaN
    """

    value: Any
    kind: str = "u"
    width: int | None = 32
    loud: bool = False

    @property
    def bits(self) -> int:
        """As bits."""
        if self.kind == "f":
            return int.from_bytes(_pack(self.value, self.width or 64), "little")
        if self.kind == "bf":
            return int.from_bytes(_pack(self.value, 32)[2:], "little")
        return int(self.value) & (1 << (self.width or 128)) - 1


_FORMATS = {16: "<e", 32: "<f", 64: "<d"}


def _pack(value: float, width: int) -> bytes:
    with np.errstate(all="ignore"):
        kind = {16: np.float16, 32: np.float32, 64: np.float64}[width]
        return kind(value).tobytes()


def typed(number: N, kind: str, width: int) -> N:
    """What `.f32` and its like mean."""
    if kind in ("f", "bf"):
        if number.kind in ("f", "bf"):
            return N(_rounded(number.value, kind, width), kind, width, number.loud)
        raw = number.bits & (1 << width) - 1
        if kind == "bf":
            return N(struct.unpack("<f", struct.pack("<I", raw << 16))[0], "bf", 16)
        value = struct.unpack(_FORMATS[width], raw.to_bytes(width // 8, "little"))[0]
        quiet = 1 << {16: 9, 32: 22, 64: 51}[width]
        return N(value, "f", width, math.isnan(value) and not raw & quiet)
    raw = number.bits & (1 << width) - 1
    if kind == "i" and raw >> (width - 1):
        raw -= 1 << width
    return N(raw, kind, width)


def _rounded(value: float, kind: str, width: int) -> float:
    if kind == "bf":
        bits = struct.unpack("<I", _pack(value, 32))[0]
        if not math.isnan(value):
            bits = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
        return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])
    return float(struct.unpack(_FORMATS[width], _pack(value, width))[0])


def wrapped(value: int, kind: str, width: int | None) -> N:
    if width is None:
        return N(value, kind, None)
    return typed(N(value, "b", None if value >= 0 else width), kind, width)


def _fma(a: N, b: N, c: N) -> N:
    """Exact, rounded once."""
    width = a.width or 32
    if not all(math.isfinite(n.value) for n in (a, b, c)):
        return N(a.value * b.value + c.value, "f", width)
    exact = Fraction(a.value) * Fraction(b.value) + Fraction(c.value)
    if exact == 0:
        return N(a.value * b.value + c.value, "f", width)
    kind = {16: np.float16, 32: np.float32, 64: np.float64}[width]
    with np.errstate(all="ignore"):
        near = kind(float(exact))
        if not np.isfinite(near):
            return N(float(near), "f", width)
        around = (np.nextafter(near, kind(-np.inf)), near, np.nextafter(near, kind(np.inf)))
    even = {16: "u2", 32: "u4", 64: "u8"}[width]

    def far(one: Any) -> tuple[Fraction, int]:
        return abs(Fraction(float(one)) - exact), int(one.view(even)) & 1

    return N(float(min((one for one in around if np.isfinite(one)), key=far)), "f", width)


def _to_int(low: int, high: int, width: int, kind: str) -> Callable[[N], N]:
    def apply(a: N) -> N:
        if math.isnan(a.value):
            return N(0, kind, width)
        return N(int(min(max(a.value, low), high)), kind, width)

    return apply


def _float_bits(a: N) -> tuple[int, int, int]:
    """Sign, biased exponent, mantissa."""
    width = a.width or 32
    exponent, mantissa = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[width]
    raw = a.bits
    return raw >> (width - 1), raw >> mantissa & (1 << exponent) - 1, raw & (1 << mantissa) - 1


def _nan(quiet: bool | None) -> Callable[[N], N]:
    """The pseudocode widens to 64 bits first, which keeps a NaN what it is."""

    def apply(a: N) -> N:
        return N(int(math.isnan(a.value) and quiet in (None, not a.loud)), "u", 1)

    return apply


def _sign_extended(a: N, bits: N) -> N:
    width = bits.value
    if not width:
        return N(0, "i", a.width)
    return N(typed(N(a.bits & (1 << width) - 1, "b", width), "i", width).value, "i", a.width or 32)


def _log2(a: N) -> N:
    if math.isnan(a.value) or a.value < 0:
        return N(math.nan, "f", a.width)
    if a.value in (0, math.inf):
        return N(-math.inf if a.value == 0 else math.inf, "f", a.width)
    return N(math.log2(a.value), "f", a.width)


def power(a: N, b: N) -> N:
    """Of 2, whose exponents may be anything."""
    if a.kind != "f":
        return N(a.value**b.value, a.kind, a.width)
    assert a.value == 2.0
    with np.errstate(all="ignore"):
        return N(float(np.exp2(np.float64(b.value))), "f", a.width)


def _propagating(pick: Callable[[N, N], N]) -> Callable[[N, N], N]:
    """maximum and minimum of IEEE 754-2019, of which there is no pseudocode: a NaN wins."""

    def apply(a: N, b: N) -> N:
        if math.isnan(a.value) or math.isnan(b.value):
            return N(math.nan, "f", a.width)
        return pick(a, b)

    return apply


def _by_size(a: N) -> tuple[float, float]:
    return a.value, math.copysign(1, a.value)


def _sqrt(a: N) -> N:
    return N(math.nan if math.isnan(a.value) or a.value < 0 else math.sqrt(a.value), "f", a.width)


def _whole(apply: Callable[[float], float]) -> Callable[[N], N]:
    def whole(a: N) -> N:
        if not math.isfinite(a.value):
            return a
        return N(math.copysign(float(apply(a.value)), a.value), "f", a.width)

    return whole


def _mantissa(a: N) -> N:
    return N(math.frexp(a.value)[0], "f", a.width)


def _as(kind: str, width: int) -> Callable[[N], N]:
    return lambda a: N(_rounded(float(a.value), kind, width), kind, width)


FUNCTIONS: dict[str, Callable[..., N]] = {
    "fma": _fma,
    "isNAN": _nan(None),
    "isQuietNAN": _nan(True),
    "isSignalNAN": _nan(False),
    "cvtToQuietNAN": lambda a: a,
    "exponent": lambda a: N(_float_bits(a)[1], "i", 32),
    "sign": lambda a: N(_float_bits(a)[0], "u", 1),
    "mantissa": _mantissa,
    "abs": lambda a: N(abs(a.value), a.kind, a.width),
    "floor": _whole(math.floor),
    "trunc": _whole(math.trunc),
    "fract": lambda a: N(a.value - math.floor(a.value), "f", a.width),
    "isEven": lambda a: N(int(math.isfinite(a.value) and a.value % 2 == 0), "u", 1),
    "sqrt": _sqrt,
    "pow": power,
    "log2": _log2,
    "ldexp": lambda a, by: N(math.ldexp(a.value, by.value), "f", a.width),
    "signext": lambda a: N(a.value, "i", None),
    "signext_from_bit": _sign_extended,
    "f32_to_i32": _to_int(-(1 << 31), (1 << 31) - 1, 32, "i"),
    "f32_to_u32": _to_int(0, (1 << 32) - 1, 32, "u"),
    "f16_to_i16": _to_int(-(1 << 15), (1 << 15) - 1, 16, "i"),
    "f16_to_u16": _to_int(0, (1 << 16) - 1, 16, "u"),
    "i8_to_i32": lambda a: N(a.value, "i", 32),
    **{f"{n}_to_f32": _as("f", 32) for n in ("u32", "i32", "f16", "bf16")},
    **{f"{n}_to_f16": _as("f", 16) for n in ("u16", "i16", "f32")},
    "f32_to_bf16": _as("bf", 16),
    "v_maximum_f32": _propagating(lambda a, b: max(a, b, key=_by_size)),
    "v_minimum_f32": _propagating(lambda a, b: min(a, b, key=_by_size)),
    **{
        f"Calc{space}Addr": lambda address, *rest: address
        for space in ("Ds", "Global", "Buffer", "Scratch", "ScalarGlobal")
    },
}

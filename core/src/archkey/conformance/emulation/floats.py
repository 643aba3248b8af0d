# SPDX-License-Identifier: Apache-2.0
"""Vector instructions on floats, one at a time or packed in pairs, and comparisons.

Sums, products and fused products are rounded as IEEE says, subnormal numbers are kept. What the
hardware approximates to one unit in the last place (rcp, rsq, sqrt, exp, log) is here the nearest
number, so it may differ in the last bit.

Source: CDNA3 and CDNA4 ISA references, VOP1, VOP2, VOP3, VOP3P and VOPC instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from archkey.conformance.emulation.builders import Builder
from archkey.conformance.emulation.numbers import fma
from archkey.conformance.emulation.vector import Alu, built
from archkey.conformance.emulation.wave import Array

__all__ = ["TABLE", "maximum", "minimum"]

_QUIET = {"f4": np.uint32(0x400000), "f2": np.uint16(0x200)}


def _bits(a: Array) -> Array:
    return a.view(f"u{a.dtype.itemsize}")


def _better(pick: Callable[[Array, Array], Array], zeros: Callable[[Array, Array], Array]) -> Any:
    """minNum and maxNum of IEEE 754-2008: a number goes before a NaN, and -0 is less than +0.

    With IEEE_MODE, which Triton's kernels set, a signalling NaN wins and becomes quiet.
    """

    def apply(a: Array, b: Array) -> Array:
        result = pick(a, b)
        # The usual case is fast: no zeros, no NaN.
        if np.count_nonzero(result) < result.size:
            same = a == b
            result = np.where(same, zeros(_bits(a), _bits(b)).view(a.dtype), result)
        if np.count_nonzero(np.isnan(a + b)):
            quiet = _QUIET[a.dtype.str[1:]]
            for source in (b, a):
                signalling = np.isnan(source) & (_bits(source) & quiet == 0)
                loud = (_bits(source) | quiet).view(a.dtype)
                result = np.where(signalling, loud, result)
        return result

    return apply


maximum = _better(np.fmax, np.bitwise_and)
minimum = _better(np.fmin, np.bitwise_or)


def _propagating(pick: Callable[..., Array], zeros: Callable[..., Array]) -> Any:
    """A NaN wins, and -0 is less than +0."""

    def apply(a: Array, b: Array) -> Array:
        return np.where(a == b, zeros(_bits(a), _bits(b)).view(a.dtype), pick(a, b))

    return apply


def _median(a: Array, b: Array, c: Array) -> Array:
    """The middle one; with a NaN the least of all."""
    middle = maximum(minimum(a, b), minimum(maximum(a, b), c))
    least = minimum(minimum(a, b), c)
    return np.where(np.isnan(a) | np.isnan(b) | np.isnan(c), least, middle)


def _near(apply: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function computed in float64 and rounded once."""
    return lambda a: apply(a.astype(np.float64)).astype(a.dtype)


def _ldexp(a: Array, by: Array) -> Array:
    scaled = np.ldexp(a.astype(np.float64), np.clip(by.astype(np.int32), -400, 400))
    return scaled.astype(a.dtype)


def _fraction(a: Array) -> Array:
    return np.minimum(a - np.floor(a), np.nextafter(a.dtype.type(1), a.dtype.type(0)))


def _mantissa(a: Array) -> Array:
    found, _ = np.frexp(a)
    return np.where(np.isfinite(a), found, a)


def _exponent(a: Array) -> Array:
    _, found = np.frexp(a)
    return np.where(np.isfinite(a), found, 0).astype(np.int32)


def _fma16(a: Array, b: Array, c: Array) -> Array:
    """In float64 the product is exact, and the sum too unless it is far from a tie."""
    return (a.astype(np.float64) * b + c).astype(np.float16)


def _of_three(apply: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
    return lambda a, b, c: apply(apply(a, b), c)


def _legacy(a: Array, b: Array) -> Array:
    """Zero times anything is zero."""
    return np.where((a == 0) | (b == 0), a.dtype.type(0), a * b)


_ONE: dict[str, Callable[[Array], Array]] = {
    "rcp": _near(np.reciprocal),
    "rsq": _near(lambda a: 1 / np.sqrt(a)),
    "sqrt": _near(np.sqrt),
    "exp": _near(np.exp2),
    "log": _near(np.log2),
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rndne": np.rint,
    "fract": _fraction,
    "frexp_mant": _mantissa,
}
_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "subrev": lambda a, b: b - a,
    "mul": np.multiply,
    "max": maximum,
    "min": minimum,
}
_THREE: dict[str, Callable[[Array, Array, Array], Array]] = {
    "max3": _of_three(maximum),
    "min3": _of_three(minimum),
    "med3": _median,
}


def _all(kind: str) -> dict[str, Alu]:
    tables: tuple[Mapping[str, Callable[..., Array]], ...] = (_ONE, _TWO, _THREE)
    return {
        # Of three float16 the upper half of the destination stays, of fewer it becomes 0.
        f"v_{name}_{kind}": Alu(apply, (kind,) * count, (kind,), half=count == 3)
        for count, table in enumerate(tables, 1)
        for name, apply in table.items()
    }


_F32, _F16 = ("f32",) * 3, ("f16",) * 3

_ALU: dict[str, Alu] = {
    **_all("f32"),
    **_all("f16"),
    "v_rcp_iflag_f32": Alu(_near(np.reciprocal), ("f32",)),
    "v_mul_legacy_f32": Alu(_legacy, ("f32", "f32")),
    "v_fma_f32": Alu(fma, _F32),
    "v_fmac_f32": Alu(fma, _F32, old=True),
    "v_fmamk_f32": Alu(fma, _F32),  # a * K + b, in the order of the text
    "v_fmaak_f32": Alu(fma, _F32),  # a * b + K
    "v_fma_f16": Alu(_fma16, _F16, ("f16",), half=True),
    "v_fmac_f16": Alu(_fma16, _F16, ("f16",), old=True),
    "v_ldexp_f32": Alu(_ldexp, ("f32", "i32")),
    "v_ldexp_f16": Alu(_ldexp, ("f16", "i16"), ("f16",)),
    "v_frexp_exp_i32_f32": Alu(_exponent, ("f32",), ("i32",)),
    # Of gfx950; as IEEE 754-2019 says of maximum and minimum.
    "v_maximum3_f32": Alu(_of_three(_propagating(np.maximum, np.bitwise_and)), _F32),
    "v_minimum3_f32": Alu(_of_three(_propagating(np.minimum, np.bitwise_or)), _F32),
}

_ORDER: dict[str, Callable[[Array, Array], Array]] = {
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_FLOATS: dict[str, Callable[[Array, Array], Array]] = {
    **_ORDER,
    "lg": lambda a, b: (a < b) | (a > b),
    "neq": np.not_equal,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "nlt": lambda a, b: ~(a < b),
}
_INTEGERS: dict[str, Callable[[Array, Array], Array]] = {**_ORDER, "ne": np.not_equal}


def _class(a: Array, wanted: Array) -> Array:
    """v_cmp_class: bit of `wanted` for each kind of float, from signalling NaN to +infinity."""
    quiet = _bits(a) & _QUIET[a.dtype.str[1:]] != 0
    tiny = np.abs(a) < np.finfo(a.dtype).tiny
    negative = np.signbit(a)
    kind = np.select(
        [np.isnan(a) & ~quiet, np.isnan(a), np.isinf(a), a == 0, tiny],
        [0, 1, np.where(negative, 2, 9), np.where(negative, 5, 6), np.where(negative, 4, 7)],
        np.where(negative, 3, 8),
    )
    return (wanted.astype(np.uint32) >> kind.astype(np.uint32) & 1).astype(np.bool_)


_COMPARE: dict[str, Alu] = {
    **{
        f"v_cmp_{name}_{kind}": Alu(apply, (kind, kind), ("mask",))
        for kind in ("f32", "f16", "f64")
        for name, apply in _FLOATS.items()
    },
    **{
        f"v_cmp_{name}_{kind}": Alu(apply, (kind, kind), ("mask",))
        for kind in ("i16", "u16", "i32", "u32", "i64", "u64")
        for name, apply in _INTEGERS.items()
    },
    "v_cmp_class_f32": Alu(_class, ("f32", "u32"), ("mask",)),
    "v_cmp_class_f16": Alu(_class, ("f16", "u32"), ("mask",)),
}

TABLE: dict[str, Builder] = {name: built(alu) for name, alu in {**_ALU, **_COMPARE}.items()}

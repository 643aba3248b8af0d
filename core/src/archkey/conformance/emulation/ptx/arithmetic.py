# SPDX-License-Identifier: Apache-2.0
"""What numpy lacks for PTX's integers and floats, on vectors over threads.

Approximations (ex2, rsqrt, ..) are the nearest number here, as far as numpy's are. Source: PTX ISA,
Integer Arithmetic, Floating Point, Half Precision and Logic Instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.numbers import bf16_bits, bf16_values, fma, to_odd
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS"]


def _divide(a: Array, b: Array) -> Array:
    """Toward zero; all ones for a division by zero, as the hardware leaves it."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(b == 0, ~a.dtype.type(0), a // safe)
    quotient = a // safe
    quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, a.dtype.type(-1), quotient).astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, a - _divide(a, b) * b).astype(a.dtype)


def _high(a: Array, b: Array) -> Array:
    """The upper half of a product, of 16 or 32 bits."""
    bits = 8 * a.dtype.itemsize
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}").type
    return (a.astype(wide) * b.astype(wide) >> wide(bits)).astype(a.dtype)


def _high64(a: Array, b: Array) -> Array:
    """The upper half of an unsigned product of 64 bits."""
    low, c32 = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> c32, b & low, b >> c32
    middle = a1 * b0 + (a0 * b0 >> c32)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> c32) + (other >> c32)


def _high64_signed(a: Array, b: Array) -> Array:
    x, y = a.view(np.uint64), b.view(np.uint64)
    zero = np.uint64(0)
    return _high64(x, y) - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)


def _shifted(left: bool) -> Any:
    def apply(a: Array, by: Array) -> Array:
        bits = a.dtype.itemsize * 8
        most = np.minimum(by, np.uint32(bits - 1)).astype(a.dtype)
        moved = a << most if left else a >> most
        if not left and a.dtype.kind == "i":
            return moved
        return np.where(by >= bits, a.dtype.type(0), moved)

    return apply


def _funnel(left: bool, wrap: bool) -> Any:
    def apply(a: Array, b: Array, by: Array) -> Array:
        n = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a
        moved = (both << n) >> np.uint64(32) if left else both >> n
        return moved.astype(np.uint32)

    return apply


def _extract(a: Array, at: Array, size: Array) -> Array:
    """Bits `at` and on; those above the number are its sign."""
    bits = a.dtype.itemsize * 8
    at, size = (np.minimum(np.uint32(x) & np.uint32(255), np.uint32(bits)) for x in (at, size))
    at, size = np.broadcast_arrays(at.astype(np.int64), size.astype(np.int64))
    wide = np.broadcast_to(a, np.broadcast_shapes(a.shape, at.shape)).astype(object)
    sign = a.dtype.kind == "i"
    mask = (1 << size.astype(object)) - 1
    field = (wide >> at.astype(object)) & mask
    if sign:
        field = np.where(
            (size > 0) & ((field >> np.maximum(size - 1, 0)) & 1).astype(bool),
            field - (1 << size.astype(object)),
            field,
        )
    return field.astype(a.dtype)


def _extract_u(a: Array, at: int, size: int) -> Array:
    return a >> np.uint32(at) & np.uint32((1 << size) - 1)


def _extract_s(a: Array, at: int, size: int) -> Array:
    return (a << np.int32(32 - at - size)) >> np.int32(32 - size)


def _insert(a: Array, b: Array, at: Array, size: Array) -> Array:
    at, size = (np.minimum(x & np.uint32(255), np.uint32(32)).astype(np.uint64) for x in (at, size))
    one = np.uint64(1)
    mask = (((one << size) - one) << at).astype(np.uint32)
    return (b & ~mask) | ((a.astype(np.uint64) << at).astype(np.uint32) & mask)


def _permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt in its default mode: a byte of the eight, or its sign in all bits."""
    both = b.astype(np.uint64) << np.uint64(32) | a
    result: Any = np.uint32(0)
    for n in range(4):
        pick = (selector >> np.uint32(4 * n)) & np.uint32(15)
        byte = (both >> ((pick & np.uint32(7)) << np.uint32(3)).astype(np.uint64)).astype(np.uint32)
        byte = byte & np.uint32(255)
        sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
        result = result | np.where(pick & np.uint32(8), sign, byte) << np.uint32(8 * n)
    return result


def _lop3(a: Array, b: Array, c: Array, table: int) -> Array:
    result: Any = np.zeros_like(a)
    for n in range(8):
        if table >> n & 1:
            term = (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
            result = result | term
    return result


def _flush(a: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    return np.where(np.abs(a) < np.float32(2.0**-126), np.copysign(np.float32(0), a), a)


def _smaller(a: Array, b: Array) -> Array:
    return np.where(a == b, np.where(np.signbit(b), b, a), np.fmin(a, b))


def _larger(a: Array, b: Array) -> Array:
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def _xorsign_min(a: Array, b: Array) -> Array:
    """min.NaN.xorsign.abs: the smaller size, with the product's sign."""
    sign = (a.view(np.uint32) ^ b.view(np.uint32)) & np.uint32(1 << 31)
    least = np.minimum(np.abs(a), np.abs(b)).view(np.uint32)
    return (least & np.uint32(0x7FFFFFFF) | sign).view(np.float32)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, and what its rounding lost."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _split(a: Array) -> tuple[Array, Array]:
    """Halves of a float64 whose products are exact. Source: Dekker, 1971."""
    high = a * 134217729.0
    high = high - (high - a)
    return high, a - high


def _fma_double(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64, rounded once. Source: Boldo and Melquiond, Emulation of FMA, 2008."""
    (a, b, c), product = np.broadcast_arrays(a, b, c), a * b
    (a0, a1), (b0, b1) = _split(a), _split(b)
    lost = a1 * b1 - (((product - a0 * b0) - a1 * b0) - a0 * b1)
    high, low = _two_sum(c, lost)
    total, rest = _two_sum(product, high)
    exact = total + to_odd(low, rest, low + rest)
    # Halves of huge numbers overflow, and what is lost of tiny products is not a float64.
    safe = np.isfinite(exact) & (np.abs(product) > 2.0**-960)
    return np.where(safe, exact, product + c)


def _halves(a: Array) -> Array:
    return np.ascontiguousarray(a).view(np.uint16)


def _bf16_fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of packed bfloat16, rounded once: exact in float64 within 24 binades, then odd."""
    product = bf16_values(a).astype(np.float64) * bf16_values(b)
    total = product + bf16_values(c)
    single = total.astype(np.float32)
    lost = single.astype(np.float64) != total
    bits = single.view(np.uint32)
    # Rounded to odd, the second rounding is the only one.
    toward = np.where(np.abs(single) > np.abs(total), bits - 1, bits)
    return bf16_bits(np.where(lost & np.isfinite(single), toward | 1, bits).view(np.float32))


def _packed(apply: Any) -> Any:
    def both(*operands: Array) -> Array:
        n = max(operand.size for operand in operands)
        halves = [_halves(np.broadcast_to(operand, (n,))) for operand in operands]
        return apply(*halves).view(np.uint32)

    return both


def _half(apply: Any) -> Any:
    def on(*operands: Array) -> Array:
        return apply(*(operand.view(np.float16) for operand in operands)).view(np.uint16)

    return on


def _brain(apply: Any) -> Any:
    def on(*operands: Array) -> Array:
        return bf16_bits(apply(*(bf16_values(operand) for operand in operands)).astype(np.float32))

    return on


def _half_fma(a: Array, b: Array, c: Array) -> Array:
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    return exact.astype(np.float16)


def _pair(apply: Any) -> Any:
    """On two float32 in 64 bits."""

    def both(*operands: Array) -> Array:
        n = max(operand.size for operand in operands)
        parts = [
            np.ascontiguousarray(np.broadcast_to(operand, (n,))).view(np.float32)
            for operand in operands
        ]
        return apply(*parts).astype(np.float32).view(np.uint64)

    return both


def _count_ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def _leading(a: Array) -> Array:
    """Zeros before the first one."""
    bits = a.dtype.itemsize * 8
    spread = a.copy()
    for n in (1, 2, 4, 8, 16, 32):
        if n < bits:
            spread |= spread >> a.dtype.type(n)
    return np.uint32(bits) - np.bitwise_count(spread).astype(np.uint32)


def _reversed(a: Array) -> Array:
    text = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4)[:, ::-1], axis=1)
    return np.packbits(text[:, ::-1], axis=1)[:, ::-1].copy().view(np.uint32)[:, 0]


def _root(a: Array) -> Array:
    return (1.0 / np.sqrt(a.astype(np.float64))).astype(np.float32)


_ADD, _SUB, _MUL = np.add, np.subtract, np.multiply
_HALF = {"add": _ADD, "sub": _SUB, "mul": _MUL, "fma": _half_fma, "min": _smaller, "max": _larger}
_BRAIN = {"add": _ADD, "sub": _SUB, "mul": _MUL, "min": _smaller, "max": _larger}

HELPERS: dict[str, Any] = {
    **{
        "divide": _divide,
        "remainder": _remainder,
        "high": _high,
        "high64": _high64,
        "high64_signed": _high64_signed,
    },
    **{"left": _shifted(True), "right": _shifted(False)},
    **{
        f"funnel_{side}_{mode}": _funnel(side == "l", mode == "wrap")
        for side in "lr"
        for mode in ("wrap", "clamp")
    },
    **{"extract": _extract, "extract_u": _extract_u, "extract_s": _extract_s, "insert": _insert},
    **{"permute": _permute, "lop3": _lop3, "flush": _flush, "smaller": _smaller},
    **{"larger": _larger, "xorsign_min": _xorsign_min, "fma": fma, "root": _root},
    **{"ones": _count_ones, "leading": _leading, "reversed_bits": _reversed},
    **{f"half_{name}": _half(apply) for name, apply in _HALF.items()},
    **{f"half2_{name}": _packed(_half(apply)) for name, apply in _HALF.items()},
    **{f"brain_{name}": _brain(apply) for name, apply in _BRAIN.items()},
    **{f"brain2_{name}": _packed(_brain(apply)) for name, apply in _BRAIN.items()},
    **{"brain_fma": _bf16_fma, "brain2_fma": _packed(_bf16_fma)},
    **{"pair_add": _pair(_ADD), "pair_sub": _pair(_SUB), "pair_mul": _pair(_MUL)},
    **{"pair_fma": _pair(fma), "fma_double": _fma_double},
    "add_halves": _packed(_ADD),
}
"""What the source of blocks calls, by name."""

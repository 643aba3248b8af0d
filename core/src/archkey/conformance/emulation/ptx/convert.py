# SPDX-License-Identifier: Apache-2.0
"""Conversions between kinds of numbers, and numbers packed into one register.

Source: PTX ISA, Data Movement and Conversion Instructions: cvt; Alternate Floating-Point Data
Formats. In a packed pair the second operand is the lower half.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.numbers import bf16_bits, bf16_values, decode, encode
from archkey.conformance.emulation.ptx.alu import Alu, built
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Instruction, Vector
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]


def _whole(kind: str, rounded: Any) -> Any:
    """A float to an integer: rounded, clamped into the range; NaN is 0."""
    limits = np.iinfo(kind)

    def apply(a: Array) -> Array:
        exact = rounded(a.astype(np.float64))
        exact = np.where(np.isnan(exact), 0.0, exact)
        low, high = exact <= float(limits.min), exact >= float(limits.max)
        safe = np.where(low | high, 0.0, exact).astype(kind)
        return np.where(low, limits.min, np.where(high, limits.max, safe)).astype(kind)

    return apply


def _two(encode_one: Any) -> Any:
    """Two values into one code of twice the size; the second is the lower half."""

    def apply(high: Array, low: Array) -> Array:
        upper, lower = encode_one(high), encode_one(low)
        wide = np.dtype(f"u{2 * upper.dtype.itemsize}").type
        return (upper.astype(wide) << wide(8 * upper.dtype.itemsize)) | lower

    return apply


def _float16_bits(a: Array) -> Array:
    return a.astype(np.float16).view(np.uint16)


def _limited16(a: Array) -> Array:
    return np.clip(a, -65504, 65504).astype(np.float16).view(np.uint16)


def _small(form: str) -> Any:
    return lambda a: encode(a, form, saturate=True)


def _fp4_pair(high: Array, low: Array) -> Array:
    codes = [encode(a, "e2m1", saturate=True) for a in (high, low)]
    return (codes[0] << np.uint8(4) | codes[1]).astype(np.uint8)


def _unpacked(form: str, bits: int, to: Any) -> Any:
    """Codes in one register to a pair of halves; the lower code first."""

    def apply(a: Array) -> Array:
        kind = np.uint32(1 << bits) - np.uint32(1)
        wide = a.astype(np.uint32)
        low, high = (to(decode(wide >> np.uint32(n) & kind, form)) for n in (0, bits))
        return high.astype(np.uint32) << np.uint32(16) | low

    return apply


def _tf32(a: Array) -> Array:
    """To ten bits after the point, ties away from zero."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(a), rounded, bits)


def _saturated(a: Array) -> Array:
    """Between 0 and 1; NaN is 0."""
    return np.where(np.isnan(a), np.float32(0), np.clip(a, np.float32(0), np.float32(1)))


def _relu(a: Array) -> Array:
    return np.where(a > 0, a, np.float32(0))


_E8M0 = np.ldexp(1.0, np.arange(256) - 127)
_E8M0[255] = np.nan


def _to_e8m0_up(a: Array) -> Array:
    """The power of two that is not below; NaN for NaN."""
    fraction, exponent = np.frexp(np.abs(a.astype(np.float64)))
    exponent = np.where(fraction == 0.5, exponent - 1, exponent)
    code = np.clip(np.where(a == 0, -127, exponent) + 127, 0, 254)
    return np.where(np.isnan(a), 255, code).astype(np.uint8)


_MODES = {"rn": np.rint, "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}

HELPERS: dict[str, Any] = {
    **{"bf16_bits": bf16_bits, "bf16_values": bf16_values, "float16_bits": _float16_bits},
    **{"bf16_pair": _two(bf16_bits), "f16_pair": _two(_float16_bits), "tf32": _tf32},
    **{"f16_limited_pair": _two(_limited16), "relu": _relu, "fp4_pair": _fp4_pair},
    **{"e4m3_pair": _two(_small("e4m3fn")), "e5m2_pair": _two(_small("e5m2"))},
    **{"e4m3_to_f16": _unpacked("e4m3fn", 8, _float16_bits)},
    **{"e5m2_to_f16": _unpacked("e5m2", 8, _float16_bits)},
    **{"e2m1_to_f16": _unpacked("e2m1", 4, _float16_bits)},
    **{"e2m1_to_bf16": _unpacked("e2m1", 4, lambda a: bf16_bits(a.astype(np.float32)))},
    "e4m3_to_bf16": _unpacked("e4m3fn", 8, lambda a: bf16_bits(a.astype(np.float32))),
    "saturated": _saturated,
    "ue8m0_pair": _two(_to_e8m0_up),
    **{
        f"whole_{kind}_{mode}": _whole(kind, rounded)
        for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
        for mode, rounded in _MODES.items()
    },
}


def _rows() -> dict[str, Alu]:
    rows: dict[str, Alu] = {}
    integers = {f"{c}{8 * n}": f"{'i' if c == 's' else 'u'}{n}" for c in "su" for n in (1, 2, 4, 8)}
    floats = {"f32": "f4", "f64": "f8", "f16": "f2"}
    for name, kind in integers.items():
        for other, source in integers.items():
            if name != other:
                rows[f"cvt.{name}.{other}"] = Alu(kind, (source,), f"{{0}}.astype({kind})")
        for other, source in floats.items():
            for mode in ("rni", "rzi", "rmi", "rpi"):
                for extra in ("", ".ftz", ".sat"):
                    key = f"cvt.{mode}{extra}.{name}.{other}"
                    rows[key] = Alu(kind, (source,), f"whole_{kind}_{mode}({{0}})")
            rows[f"cvt.rn.{other}.{name}"] = Alu(source, (kind,), f"{{0}}.astype({source})")
        rows[f"cvt.rn.bf16.{name}"] = Alu("u2", (kind,), "bf16_bits({0}.astype(f4))")
    for mode, call in (("rni", "rint"), ("rzi", "trunc"), ("rmi", "floor"), ("rpi", "ceil")):
        rows[f"cvt.{mode}.f32.f32"] = Alu("f4", ("f4",), f"np.{call}({{0}})")
        rows[f"cvt.{mode}.ftz.f32.f32"] = Alu("f4", ("f4",), f"np.{call}(flush({{0}}))")
        rows[f"cvt.{mode}.f64.f64"] = Alu("f8", ("f8",), f"np.{call}({{0}})")
    rows |= {
        "cvt.sat.f32.f32": Alu("f4", ("f4",), "saturated({0})"),
        "cvt.ftz.sat.f32.f32": Alu("f4", ("f4",), "saturated(flush({0}))"),
        "cvt.f64.f32": Alu("f8", ("f4",), "{0}.astype(f8)"),
        "cvt.rn.f32.f64": Alu("f4", ("f8",), "{0}.astype(f4)"),
        "cvt.f32.f16": Alu("f4", ("f2",), "{0}.astype(f4)"),
        "cvt.rn.f16.f32": Alu("f2", ("f4",), "{0}.astype(f2)"),
        "cvt.f32.bf16": Alu("f4", ("u2",), "bf16_values({0})"),
        "cvt.bf16.f16": Alu("u2", ("f2",), "bf16_bits({0}.astype(f4))"),
        "cvt.rn.bf16.f16": Alu("u2", ("f2",), "bf16_bits({0}.astype(f4))"),
        "cvt.rn.f16.bf16": Alu("u2", ("u2",), "float16_bits(bf16_values({0}))"),
        "cvt.rn.bf16.f32": Alu("u2", ("f4",), "bf16_bits({0})"),
        "cvt.rn.relu.bf16.f32": Alu("u2", ("f4",), "bf16_bits(relu({0}))"),
        "cvt.rna.tf32.f32": Alu("u4", ("f4",), "tf32({0})"),
        "cvt.rn.bf16x2.f32": Alu("u4", ("f4",) * 2, "bf16_pair({0}, {1})"),
        "cvt.rn.f16x2.f32": Alu("u4", ("f4",) * 2, "f16_pair({0}, {1})"),
        "cvt.rn.satfinite.f16x2.f32": Alu("u4", ("f4",) * 2, "f16_limited_pair({0}, {1})"),
        "cvt.rn.f16x2.e4m3x2": Alu("u4", ("u2",), "e4m3_to_f16({0})"),
        "cvt.rn.bf16x2.e4m3x2": Alu("u4", ("u2",), "e4m3_to_bf16({0})"),
        "cvt.rn.f16x2.e5m2x2": Alu("u4", ("u2",), "e5m2_to_f16({0})"),
        "cvt.rp.satfinite.ue8m0x2.f32": Alu("u2", ("f4",) * 2, "ue8m0_pair({0}, {1})"),
    }
    for form in ("e4m3", "e5m2"):
        key = f"cvt.rn.satfinite.{form}x2.f32"
        rows[key] = Alu("u2", ("f4",) * 2, f"{form}_pair({{0}}, {{1}})")
    return rows


def _mov_packed(emitter: Emitter, instruction: Instruction) -> None:
    """mov.b32 and mov.b64: whole registers, from parts, or into parts."""
    target, source = instruction.operands
    bits = int(instruction.name[-2:])
    if isinstance(source, Vector):
        part = bits // len(source.elements)
        kind, own = f"u{bits // 8}", f"u{part // 8}"
        pieces = [
            f"({emitter.vector(element, own)}.astype({kind}) << {kind}({part * n}))"
            for n, element in enumerate(source.elements)
        ]
        emitter.write(target, kind, " | ".join(pieces))
    elif isinstance(target, Vector):
        part = bits // len(target.elements)
        whole = emitter.fresh()
        emitter.line(f"{whole} = {emitter.vector(source, f'u{bits // 8}')}")
        for n, element in enumerate(target.elements):
            if element is not None:
                shifted = f"({whole} >> u{bits // 8}({part * n})).astype(u{part // 8})"
                emitter.write(element, f"u{part // 8}", shifted)
    else:
        emitter.write(target, f"u{bits // 8}", emitter.vector(source, f"u{bits // 8}"))


def _fp4(call: str) -> Builder:
    """Two codes of four bits: the low byte of a 16-bit register here, an 8-bit one in PTX."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, *sources = instruction.operands
        if len(sources) == 2:
            values = ", ".join(emitter.vector(s, "f4") for s in sources)
            emitter.write(target, "u1", f"{call}({values})")
            return
        emitter.write(target, "u4", f"{call}({emitter.vector(sources[0], 'u1')})")

    return build


TABLE: dict[str, Builder] = {
    **{name: built(row) for name, row in _rows().items()},
    **{f"mov.b{bits}": _mov_packed for bits in (32, 64)},
    "cvt.rn.satfinite.e2m1x2.f32": _fp4("fp4_pair"),
    "cvt.rn.f16x2.e2m1x2": _fp4("e2m1_to_f16"),
    "cvt.rn.bf16x2.e2m1x2": _fp4("e2m1_to_bf16"),
}

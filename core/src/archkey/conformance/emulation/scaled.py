# SPDX-License-Identifier: Apache-2.0
"""Conversions of gfx950 between small floats and wider ones, two at a time, with a scale.

The scale is a power of two: the exponent of a float32, whose other bits are ignored. A wider
number is divided by it before it is rounded once; a small one is multiplied after it is decoded.
Source: CDNA4 ISA reference, V_CVT_SCALEF32_*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.numbers import (
    FORMATS,
    bf16_bits,
    bf16_values,
    decode,
    e8m0,
    encode,
)
from archkey.conformance.emulation.operands import Operand, Read, operand, reader, writer
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import Array, Wave

__all__ = ["builders"]


def _factor(scale: Operand) -> Read:
    bits = reader(scale, "u32")
    return lambda w: e8m0(bits(w) >> 23 & 0xFF)


# Wider format -> how its 16 bits are read as float32, and written.
_SHORT: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "f16": (lambda bits: bits.view(np.float16), lambda a: a.astype(np.float16).view(np.uint16)),
    "bf16": (bf16_values, bf16_bits),
}


def _pair_of(sources: list[Operand], wide: str) -> list[Read]:
    """The two numbers to convert: in two registers, or in the halves of one."""
    if wide == "f32":
        return [reader(source, "f32") for source in sources]
    decoded = _SHORT[wide][0]
    halves = [reader(sources[0], "u16", half) for half in range(2)]
    return [lambda w, half=half: decoded(half(w).copy()) for half in halves]  # type: ignore[misc]


def _place(instruction: Instruction, form: str, first: int) -> tuple[int, int]:
    """Bits of the field that op_sel chooses, from its bit `first` on: (start, size)."""
    if FORMATS[form].bits == 4:
        low, high = instruction.bits("op_sel", 0, first + 2)[first:]
        return 8 * (low + 2 * high), 8
    return 16 * instruction.bits("op_sel", 0, first + 1)[first], 16


def _narrow(form: str, wide: str) -> Builder:
    """v_cvt_scalef32_pk_fp8_f32 and its kin; the other bits of the destination stay."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, *sources, scale = (operand(text) for text in instruction.operands)
        # The destination's bits of op_sel follow those of the sources; FP4 has two, from bit 2.
        first = 2 if FORMATS[form].bits == 4 else len(sources) + 1
        start, size = _place(instruction, form, first)
        low, high = _pair_of(sources, wide)
        factor, write, shift = _factor(scale), writer(to, "u32"), size // 2
        kept = np.uint32(~(((1 << size) - 1) << start) & 0xFFFFFFFF)

        def step(w: Wave) -> None:
            by = factor(w)
            one, two = (
                encode(read(w).astype(np.float64) / by, form, w.saturate).astype(np.uint32)
                for read in (low, high)
            )
            write(w, w.u32[to.index] & kept | (one | two << shift) << start)

        return step

    return build


def _widen(form: str, wide: str) -> Builder:
    """v_cvt_scalef32_pk_f32_fp8 and its kin."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, source, scale = (operand(text) for text in instruction.operands)
        start, size = _place(instruction, form, 0)
        read, factor, shift = reader(source, "u32"), _factor(scale), size // 2
        mask = (1 << shift) - 1
        rows = [replace(to, index=to.index + n) for n in range(2)]
        writes = [writer(row, "f32") for row in rows] if wide == "f32" else [writer(to, "u32")]

        def step(w: Wave) -> None:
            codes, by = read(w) >> start, factor(w)
            values = [
                (decode(codes >> at & mask, form) * by).astype(np.float32) for at in (0, shift)
            ]
            if wide == "f32":
                for write, value in zip(writes, values, strict=True):
                    write(w, value)
            else:
                low, high = (_SHORT[wide][1](value).astype(np.uint32) for value in values)
                writes[0](w, low | high << 16)

        return step

    return build


def builders(names: dict[str, str]) -> dict[str, Builder]:
    """All of them. names: what the mnemonics call a format -> a key of `numbers.FORMATS`"""
    found: dict[str, Builder] = {}
    for name, form in {**names, "fp4": "e2m1"}.items():
        for wide in ("f32", *_SHORT):
            found[f"v_cvt_scalef32_pk_{name}_{wide}"] = _narrow(form, wide)
            found[f"v_cvt_scalef32_pk_{wide}_{name}"] = _widen(form, wide)
    return found

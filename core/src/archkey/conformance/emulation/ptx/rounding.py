# SPDX-License-Identifier: Apache-2.0
"""Sums and products of float32 that are not rounded to the nearest, and sums that carry.

What is exact is first rounded to odd in float64, so the second rounding is the only one. A carry
lives from one instruction to the next of a block. Source: PTX ISA, Rounding Modifiers;
Extended-Precision Integer Arithmetic Instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.numbers import to_odd
from archkey.conformance.emulation.ptx.alu import Alu, built
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]


def _sum(a: Array, b: Array) -> Array:
    x, y = np.broadcast_arrays(a.astype(np.float64), b.astype(np.float64))
    return to_odd(x, y, x + y)


def _fused(a: Array, b: Array, c: Array) -> Array:
    return _sum(a.astype(np.float64) * b, c)


def _toward(limit: Any) -> Any:
    """Of a float64 the float32 on the side of `limit`, which gets and gives float32."""

    def apply(exact: Array) -> Array:
        nearest = exact.astype(np.float32)
        target = limit(nearest)
        over = np.where(target > nearest, nearest < exact, nearest > exact)
        return np.where(over, np.nextafter(nearest, target), nearest)

    return apply


_LIMITS = {
    "rz": np.zeros_like,
    "rm": lambda a: np.full_like(a, -np.inf),
    "rp": lambda a: np.full_like(a, np.inf),
}


def _carried(wide: Array) -> tuple[Array, Array]:
    return wide.astype(np.uint32), wide >> np.uint64(32) & np.uint64(1)


HELPERS: dict[str, Any] = {
    **{"sum_to_odd": _sum, "fma_to_odd": _fused, "carried": _carried},
    **{f"toward_{mode}": _toward(limit) for mode, limit in _LIMITS.items()},
}


def _floats() -> dict[str, Builder]:
    exact = {
        "add": (2, "sum_to_odd({0}, {1})"),
        "sub": (2, "sum_to_odd({0}, -{1})"),
        "mul": (2, "{0}.astype(f8) * {1}"),
        "fma": (3, "fma_to_odd({0}, {1}, {2})"),
    }
    table: dict[str, Builder] = {}
    for mode in _LIMITS:
        for name, (count, text) in exact.items():
            kinds = ("f4",) * count
            row = Alu("f4", kinds, f"toward_{mode}({text})")
            table[f"{name}.{mode}.f32"] = built(row)
            flushed = text.format(*(f"flush({{{n}}})" for n in range(count)))
            row = Alu("f4", kinds, f"flush(toward_{mode}({flushed}))")
            table[f"{name}.{mode}.ftz.f32"] = built(row)
    return table


_WIDE = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mad.lo": "({0} * {1} & u8(0xFFFFFFFF)) + {2}",
    "mad.hi": "({0} * {1} >> u8(32)) + {2}",
}


def _carrying(text: str, takes: bool, gives: bool, borrows: bool) -> Builder:
    """Of 32 bits, in 64. The carry is a variable of the block's source."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, *sources = instruction.operands
        if instruction.guard is not None:
            raise UnknownInstruction("a carry under a predicate")
        values = [f"{emitter.vector(one, 'u4')}.astype(u8)" for one in sources]
        wide = text.format(*values)
        if takes:
            if not emitter.carry:
                raise UnknownInstruction("a carry of another block")
            wide = f"{wide} {'-' if borrows else '+'} {emitter.carry}"
        low, carry = emitter.fresh(), emitter.fresh()
        emitter.line(f"{low}, {carry} = carried({wide})")
        if gives:
            emitter.carry = carry
        emitter.write(target, "u4", low)

    return build


def _carries() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for name, text in _WIDE.items():
        base, _, part = name.partition(".")
        part = f".{part}" if part else ""
        borrows = base == "sub"
        for kind in ("u32", "s32") if part != ".hi" else ("u32",):
            for takes, gives in ((False, True), (True, True), (True, False)):
                key = f"{base}{'c' if takes else ''}{part}{'.cc' if gives else ''}.{kind}"
                table[key] = _carrying(text, takes, gives, borrows)
    return table


TABLE: dict[str, Builder] = {**_floats(), **_carries()}

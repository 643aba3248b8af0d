# SPDX-License-Identifier: Apache-2.0
"""Vector instructions on two numbers of a lane at once.

op_sel and op_sel_hi say, for each source, which half goes into the lower and which into the upper
result; neg_lo and neg_hi negate there. Halves are 16 bits of a register, or for float32 registers
of a pair. Source: CDNA3 ISA reference, VOP3P instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.floats import maximum, minimum
from archkey.conformance.emulation.numbers import bf16_values, fma
from archkey.conformance.emulation.operands import KINDS, Operand, Read, operand, reader, writer
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.vector import Alu, built
from archkey.conformance.emulation.wave import LANES, Array, Wave

__all__ = ["TABLE"]


class Pair(NamedTuple):
    """What is computed of either half, and the kind of its sources and results."""

    apply: Callable[..., Array]
    kind: str
    sources: int = 2


def _half(found: Operand, kind: str, half: int, negative: bool) -> Read:
    wide = KINDS[kind].itemsize == 4
    if half and found.file == "constant":
        raise UnknownInstruction(f"the upper half of the constant {found.text} is not defined here")
    if wide and found.file != "constant":
        read = reader(replace(found, index=found.index + half), kind)
    else:
        read = reader(found, kind, half)
    return (lambda w: -read(w)) if negative else read


def _packed(pair: Pair) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        to, *sources = (operand(text) for text in instruction.operands)
        if len(sources) != pair.sources:
            raise UnknownInstruction(f"unknown operands in {instruction}")
        count, kind = pair.sources, pair.kind
        sides = [
            (instruction.bits("op_sel", 0, count), instruction.bits("neg_lo", 0, count)),
            (instruction.bits("op_sel_hi", 1, count), instruction.bits("neg_hi", 0, count)),
        ]
        low, high = (
            [
                _half(source, kind, half, bool(sign))
                for source, half, sign in zip(sources, halves, signs, strict=True)
            ]
            for halves, signs in sides
        )
        if kind == "f32":
            rows = [
                _rows(*given)
                for given in zip(sources, *sides[0], *sides[1], low, high, strict=True)
            ]
            return _both(pair.apply, rows, to.index)
        apply = pair.apply
        first, second = (writer(to, kind, n) for n in range(2))

        def step(w: Wave) -> None:
            lower = apply(*[read(w) for read in low])
            upper = apply(*[read(w) for read in high])
            first(w, lower)
            second(w, upper)

        return step

    return build


def _rows(
    found: Operand, half: int, sign: int, other: int, other_sign: int, low: Read, high: Read
) -> Read:
    """Both halves of a float32 source at once: [2, lanes]."""
    if found.file == "v" and (half, sign, other, other_sign) == (0, 0, 1, 0):
        pair = slice(found.index, found.index + 2)
        return lambda w: w.floats[pair]

    def read(w: Wave) -> Array:
        both = np.empty((2, LANES), np.float32)
        both[0], both[1] = low(w), high(w)
        return both

    return read


def _both(apply: Callable[..., Array], reads: list[Read], to: int) -> Step:
    """One operation on 2 x 64 numbers costs hardly more than one on 64."""
    pair = slice(to, to + 2)

    def step(w: Wave) -> None:
        result = apply(*[read(w) for read in reads])
        if w.full:
            w.floats[pair] = result
        else:
            np.copyto(w.floats[pair], result, where=w.mask)

    return step


def _mov(instruction: Instruction, labels: Labels) -> Step:
    """v_pk_mov_b32: the lower result is of the first source, the upper one of the second."""
    to, *sources = (operand(text) for text in instruction.operands)
    halves = instruction.bits("op_sel", 0, 2)
    instruction.take("op_sel_hi")  # both halves are chosen by op_sel
    reads = [_half(s, "u32", h, False) for s, h in zip(sources, halves, strict=True)]
    writes = [writer(replace(to, index=to.index + n), "u32") for n in range(2)]

    def step(w: Wave) -> None:
        low, high = (np.copy(read(w)) for read in reads)
        writes[0](w, low)
        writes[1](w, high)

    return step


def _shifted(apply: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda by, a: apply(a, by & by.dtype.type(15))


def _fma16(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(np.float16)


def _mix(kind: str, half: int | None) -> Builder:
    """v_fma_mix: a fused product of float32 whose sources may be halves of registers, float16.

    op_sel_hi says which are, op_sel which half. half: of the destination, for a float16 result
    """

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, *sources = (operand(text) for text in instruction.operands)
        halves, short = instruction.bits("op_sel", 0, 3), instruction.bits("op_sel_hi", 0, 3)
        one, two, three = (
            reader(source, "f16", upper) if is_short else reader(source, "f32")
            for source, upper, is_short in zip(sources, halves, short, strict=True)
        )
        write, dtype = writer(to, kind, half), KINDS[kind]

        def step(w: Wave) -> None:
            given = (np.asarray(read(w), np.float32) for read in (one, two, three))
            write(w, fma(*given).astype(dtype))

        return step

    return build


def _dot(values: Callable[[Array], Array], to: str) -> dict[str, Alu]:
    """c + the sum of products of a's and b's parts, rounded once, or wrapped; v_dot2c adds to D."""
    dtype, wide = KINDS[to], np.int64 if to == "i32" else np.float64

    def apply(a: Array, b: Array, c: Array) -> Array:
        total = c.astype(wide)
        for one, two in zip(values(a).T, values(b).T, strict=True):
            total = total + one.astype(wide) * two.astype(wide)
        return total.astype(dtype)

    kinds = ("u32", "u32", to)
    return {"": Alu(apply, kinds, (to,)), "c": Alu(apply, kinds, (to,), old=True)}


def _parts(dtype: type[Any]) -> Callable[[Array], Array]:
    """The parts of each lane's register: [lanes, parts]."""
    return lambda a: np.ascontiguousarray(a)[:, None].view(dtype)


_DOTS = {
    "dot2{}_f32_f16": _dot(_parts(np.float16), "f32"),
    "dot2{}_f32_bf16": _dot(lambda a: bf16_values(_parts(np.uint16)(a)), "f32"),
    "dot4{}_i32_i8": _dot(_parts(np.int8), "i32"),
}

_PAIRS: dict[str, Pair] = {
    "v_pk_add_f32": Pair(np.add, "f32"),
    "v_pk_mul_f32": Pair(np.multiply, "f32"),
    "v_pk_fma_f32": Pair(fma, "f32", 3),
    "v_pk_add_f16": Pair(np.add, "f16"),
    "v_pk_mul_f16": Pair(np.multiply, "f16"),
    "v_pk_max_f16": Pair(maximum, "f16"),
    "v_pk_min_f16": Pair(minimum, "f16"),
    "v_pk_fma_f16": Pair(_fma16, "f16", 3),
    "v_pk_add_u16": Pair(np.add, "u16"),
    "v_pk_sub_u16": Pair(np.subtract, "u16"),
    "v_pk_add_i16": Pair(np.add, "i16"),
    "v_pk_sub_i16": Pair(np.subtract, "i16"),
    "v_pk_mul_lo_u16": Pair(np.multiply, "u16"),
    "v_pk_max_u16": Pair(np.maximum, "u16"),
    "v_pk_min_u16": Pair(np.minimum, "u16"),
    "v_pk_max_i16": Pair(np.maximum, "i16"),
    "v_pk_min_i16": Pair(np.minimum, "i16"),
    "v_pk_mad_u16": Pair(lambda a, b, c: a * b + c, "u16", 3),
    "v_pk_mad_i16": Pair(lambda a, b, c: a * b + c, "i16", 3),
    "v_pk_lshlrev_b16": Pair(_shifted(np.left_shift), "u16"),
    "v_pk_lshrrev_b16": Pair(_shifted(np.right_shift), "u16"),
    "v_pk_ashrrev_i16": Pair(_shifted(np.right_shift), "i16"),
}

TABLE: dict[str, Builder] = {
    **{name: _packed(pair) for name, pair in _PAIRS.items()},
    **{
        f"v_{name.format(form)}": built(alu)
        for name, forms in _DOTS.items()
        for form, alu in forms.items()
    },
    "v_pk_mov_b32": _mov,
    "v_fma_mix_f32": _mix("f32", None),
    "v_fma_mixlo_f16": _mix("f16", 0),
    "v_fma_mixhi_f16": _mix("f16", 1),
}

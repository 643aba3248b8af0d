# SPDX-License-Identifier: Apache-2.0
"""Scalar arithmetic: SGPRs, the condition code SCC, and lane masks as numbers.

Source: AMD Instinct CDNA3 and CDNA4 ISA references, "Scalar ALU operations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.operands import operand, scalar, scalar_writer
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import Wave

__all__ = ["TABLE"]

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def signed(value: int) -> int:
    """32 bits as a signed number."""
    return value - (1 << 32) if value >> 31 else value


class Op(NamedTuple):
    """apply(sources) -> result; scc: "keep", "nonzero", or "pair" where apply gives (result, scc).

    wide   which of (destination, *sources) have 64 bits
    carry  SCC is one more source
    """

    apply: Callable[..., int | tuple[int, int]]
    scc: str = "keep"
    wide: tuple[bool, ...] = (False, False, False)
    carry: bool = False


def _add_i32(a: int, b: int) -> tuple[int, int]:
    total = signed(a) + signed(b)
    return total & M32, int(not -(1 << 31) <= total < 1 << 31)


def _sub_i32(a: int, b: int) -> tuple[int, int]:
    total = signed(a) - signed(b)
    return total & M32, int(not -(1 << 31) <= total < 1 << 31)


def _carry(total: int) -> tuple[int, int]:
    return total & M32, total >> 32 & 1


def _shl_add(by: int) -> Callable[[int, int], tuple[int, int]]:
    def apply(a: int, b: int) -> tuple[int, int]:
        total = (a << by) + b
        return total & M32, int(total > M32)

    return apply


def _bfe_u(a: int, b: int, bits: int) -> int:
    width = min(b >> 16 & 0x7F, bits)
    return a >> (b & (bits - 1)) & ((1 << width) - 1)


def _bfe_i(a: int, b: int, bits: int) -> int:
    """A field that reaches past the top goes on with copies of the sign."""
    width = min(b >> 16 & 0x7F, bits)
    field = _bfe_u(a - (a >> (bits - 1) << bits), b, bits)
    if width and field >> (width - 1):
        field -= 1 << width
    return field & ((1 << bits) - 1)


def _chosen(better: Callable[[int, int], bool], key: Callable[[int], int]) -> Op:
    def apply(a: int, b: int) -> tuple[int, int]:
        first = better(key(a), key(b))
        return (a if first else b), int(first)

    return Op(apply, "pair")


def _lowest(a: int) -> int:
    return (a & -a).bit_length() - 1 if a else M32


def _sext(bits: int) -> Callable[[int], int]:
    return lambda a: ((a & ((1 << bits) - 1)) ^ (1 << (bits - 1))) - (1 << (bits - 1)) & M32


def _u(a: int) -> int:
    return a


_W1, _W2, _SHIFT64 = (True, True), (True, True, True), (True, True, False)
_NARROW1 = (False, True)

_LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b & M64,
    "orn2": lambda a, b: a | ~b & M64,
    "nand": lambda a, b: ~(a & b) & M64,
    "nor": lambda a, b: ~(a | b) & M64,
    "xnor": lambda a, b: ~(a ^ b) & M64,
}


def _low(apply: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda a, b: apply(a, b) & M32


OPS: dict[str, Op] = {
    "s_add_i32": Op(_add_i32, "pair"),
    "s_sub_i32": Op(_sub_i32, "pair"),
    "s_add_u32": Op(lambda a, b: _carry(a + b), "pair"),
    "s_sub_u32": Op(lambda a, b: _carry(a - b), "pair"),
    "s_addc_u32": Op(lambda a, b, c: _carry(a + b + c), "pair", carry=True),
    "s_subb_u32": Op(lambda a, b, c: _carry(a - b - c), "pair", carry=True),
    "s_mul_i32": Op(lambda a, b: a * b & M32),
    "s_mul_hi_u32": Op(lambda a, b: a * b >> 32),
    "s_mul_hi_i32": Op(lambda a, b: signed(a) * signed(b) >> 32 & M32),
    **{f"s_lshl{n}_add_u32": Op(_shl_add(n), "pair") for n in (1, 2, 3, 4)},
    **{f"s_{n}_b32": Op(_low(apply), "nonzero") for n, apply in _LOGIC.items()},
    **{f"s_{n}_b64": Op(apply, "nonzero", _W2) for n, apply in _LOGIC.items()},
    "s_lshl_b32": Op(lambda a, b: a << (b & 31) & M32, "nonzero"),
    "s_lshr_b32": Op(lambda a, b: a >> (b & 31), "nonzero"),
    "s_ashr_i32": Op(lambda a, b: signed(a) >> (b & 31) & M32, "nonzero"),
    "s_lshl_b64": Op(lambda a, b: a << (b & 63) & M64, "nonzero", _SHIFT64),
    "s_lshr_b64": Op(lambda a, b: a >> (b & 63), "nonzero", _SHIFT64),
    "s_ashr_i64": Op(lambda a, b: (a - (a >> 63 << 64)) >> (b & 63) & M64, "nonzero", _SHIFT64),
    "s_bfe_u32": Op(lambda a, b: _bfe_u(a, b, 32), "nonzero"),
    "s_bfe_i32": Op(lambda a, b: _bfe_i(a, b, 32), "nonzero"),
    "s_bfe_u64": Op(lambda a, b: _bfe_u(a, b, 64), "nonzero", _SHIFT64),
    "s_bfe_i64": Op(lambda a, b: _bfe_i(a, b, 64), "nonzero", _SHIFT64),
    "s_bfm_b32": Op(lambda a, b: ((1 << (a & 31)) - 1) << (b & 31) & M32),
    "s_bfm_b64": Op(
        lambda a, b: ((1 << (a & 63)) - 1) << (b & 63) & M64, wide=(True, False, False)
    ),
    "s_min_i32": _chosen(lambda a, b: a < b, signed),
    "s_max_i32": _chosen(lambda a, b: a > b, signed),
    "s_min_u32": _chosen(lambda a, b: a < b, _u),
    "s_max_u32": _chosen(lambda a, b: a > b, _u),
    "s_pack_ll_b32_b16": Op(lambda a, b: a & 0xFFFF | (b & 0xFFFF) << 16),
    "s_pack_lh_b32_b16": Op(lambda a, b: a & 0xFFFF | b & 0xFFFF0000),
    "s_pack_hh_b32_b16": Op(lambda a, b: a >> 16 | b & 0xFFFF0000),
    "s_mov_b32": Op(_u),
    "s_mov_b64": Op(_u, wide=_W1),
    "s_movk_i32": Op(_sext(16)),
    "s_not_b32": Op(lambda a: ~a & M32, "nonzero"),
    "s_not_b64": Op(lambda a: ~a & M64, "nonzero", _W1),
    "s_brev_b32": Op(lambda a: int(f"{a:032b}"[::-1], 2)),
    "s_brev_b64": Op(lambda a: int(f"{a:064b}"[::-1], 2), wide=_W1),
    "s_abs_i32": Op(lambda a: abs(signed(a)) & M32, "nonzero"),
    "s_bcnt1_i32_b32": Op(lambda a: a.bit_count(), "nonzero"),
    "s_bcnt1_i32_b64": Op(lambda a: a.bit_count(), "nonzero", _NARROW1),
    "s_ff1_i32_b32": Op(_lowest),
    "s_ff1_i32_b64": Op(_lowest, wide=_NARROW1),
    "s_flbit_i32_b32": Op(lambda a: 32 - a.bit_length() if a else M32),
    "s_flbit_i32_b64": Op(lambda a: 64 - a.bit_length() if a else M32, wide=_NARROW1),
    "s_sext_i32_i8": Op(_sext(8)),
    "s_sext_i32_i16": Op(_sext(16)),
    "s_cselect_b32": Op(lambda a, b, c: a if c else b, carry=True),
    "s_cselect_b64": Op(lambda a, b, c: a if c else b, wide=_W2, carry=True),
}


def _arithmetic(op: Op) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        to, *sources = (operand(text) for text in instruction.operands)
        write = scalar_writer(to, op.wide[0])
        reads = [scalar(s, wide) for s, wide in zip(sources, op.wide[1:], strict=False)]
        apply, scc = op.apply, op.scc

        def step(w: Wave) -> None:
            given = [read(w) for read in reads]
            result = apply(*given, w.scc) if op.carry else apply(*given)
            if isinstance(result, tuple):
                result, w.scc = result
            elif scc == "nonzero":
                w.scc = int(result != 0)
            write(w, result)

        return step

    return build


def _in_place(apply: Callable[[int, int], int | tuple[int, int]]) -> Builder:
    """s_addk_i32 and s_mulk_i32: the destination and a constant of 16 bits."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, by = (operand(text) for text in instruction.operands)
        number = _sext(16)(int(by.text, 0))
        read, write = scalar(to), scalar_writer(to)

        def step(w: Wave) -> None:
            result = apply(read(w), number)
            if isinstance(result, tuple):
                result, w.scc = result
            write(w, result)

        return step

    return build


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


def _comparison(apply: Callable[[int, int], bool], kind: str, short: bool = False) -> Builder:
    """s_cmp_ and, with a constant of 16 bits, s_cmpk_."""
    wide = kind == "u64"
    key = signed if kind == "i32" else _u

    def build(instruction: Instruction, labels: Labels) -> Step:
        first, second = (operand(text) for text in instruction.operands)
        read, other = scalar(first, wide), scalar(second, wide)
        if short:
            number = int(second.text, 0) & 0xFFFF
            number = _sext(16)(number) if kind == "i32" else number
            other = lambda w: number  # noqa: E731 - one of two readers

        def step(w: Wave) -> None:
            w.scc = int(apply(key(read(w)), key(other(w))))

        return step

    return build


def _bit(expected: int, wide: bool) -> Builder:
    """s_bitcmp0 and s_bitcmp1."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        first, second = (operand(text) for text in instruction.operands)
        read, at = scalar(first, wide), scalar(second)

        def step(w: Wave) -> None:
            w.scc = int((read(w) >> (at(w) & (63 if wide else 31)) & 1) == expected)

        return step

    return build


def _save_exec(apply: Callable[[int, int], int]) -> Builder:
    """D = exec; exec = apply(source, exec)."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, source = (operand(text) for text in instruction.operands)
        read, write = scalar(source, True), scalar_writer(to, True)

        def step(w: Wave) -> None:
            given, before = read(w), w.exec
            write(w, before)
            w.set_exec(apply(given, before))
            w.scc = int(w.exec != 0)

        return step

    return build


TABLE: dict[str, Builder] = {
    **{name: _arithmetic(op) for name, op in OPS.items()},
    "s_addk_i32": _in_place(_add_i32),
    "s_mulk_i32": _in_place(lambda a, b: a * b & M32),
    **{
        f"s_cmp_{name}_{kind}": _comparison(apply, kind)
        for name, apply in _COMPARE.items()
        for kind in ("i32", "u32", "u64")
    },
    **{
        f"s_cmpk_{name}_{kind}": _comparison(apply, kind, short=True)
        for name, apply in _COMPARE.items()
        for kind in ("i32", "u32")
    },
    **{f"s_bitcmp{bit}_b{bits}": _bit(bit, bits == 64) for bit in (0, 1) for bits in (32, 64)},
    "s_and_saveexec_b64": _save_exec(lambda a, e: a & e),
    "s_or_saveexec_b64": _save_exec(lambda a, e: a | e),
    "s_xor_saveexec_b64": _save_exec(lambda a, e: a ^ e),
    "s_andn2_saveexec_b64": _save_exec(lambda a, e: a & ~e & M64),
    "s_andn1_saveexec_b64": _save_exec(lambda a, e: ~a & e & M64),
}

# SPDX-License-Identifier: Apache-2.0
"""Vector instructions on integers and bits.

Source: CDNA3 and CDNA4 ISA references, VOP1, VOP2 and VOP3 instructions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.operands import operand, reader, writer
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.vector import Alu, built
from archkey.conformance.emulation.wave import LANES, Array, Wave

__all__ = ["TABLE"]

_U32, _U64 = np.uint32, np.uint64
_LANE = np.arange(LANES)
_SIXTEEN = 16 * _LANE[:, None]


def _high(a: Array, b: Array) -> Array:
    """The upper half of a product of 32-bit numbers."""
    wide = np.dtype("i8" if a.dtype.kind == "i" else "u8")
    return (a.astype(wide) * b.astype(wide) >> wide.type(32)).astype(a.dtype)


def _bfe(a: Array, first: Array, bits: Array) -> Array:
    """Bits of a, sign-extended where a is signed."""
    first, bits = first & 31, bits & 31
    if a.dtype.kind == "i":
        field = (a >> first.view(np.int32)).astype(np.int64)
        up = (64 - bits).astype(np.int64)
        return np.where(bits == 0, 0, field << (up & 63) >> (up & 63)).astype(np.int32)
    return a >> first & ((_U32(1) << bits) - _U32(1))


def _perm(a: Array, b: Array, selector: Array) -> Array:
    """Bytes of {a, b}: 0 to 3 are b's, 4 to 7 a's, 12 is 0, above it 0xFF; 8 to 11 are signs."""
    pool = np.empty((LANES, 16), np.uint8)
    words = pool.view(_U32)
    words[:, 0], words[:, 1], words[:, 3] = b, a, 0xFFFFFF00
    pool[:, 8:12] = (pool[:, 1:8:2].view(np.int8) >> 7).view(np.uint8)
    chosen = np.minimum(np.ascontiguousarray(selector).view(np.uint8).reshape(LANES, 4), 15)
    return pool.reshape(-1)[_SIXTEEN + chosen].view(_U32)[:, 0]


def _align(by: int) -> Callable[[Array, Array, Array], Array]:
    """{a, b} shifted right by c bits, or bytes."""
    keep = _U64(31 if by == 1 else 3)

    def apply(a: Array, b: Array, c: Array) -> Array:
        both = a.astype(_U64) << _U64(32) | b
        return (both >> ((c.astype(_U64) & keep) * _U64(by))).astype(_U32)

    return apply


def _median(a: Array, b: Array, c: Array) -> Array:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _leading(a: Array) -> Array:
    """Zeros before the first one, -1 if there is none."""
    _, exponent = np.frexp(a.astype(np.float64))
    return np.where(a == 0, 0xFFFFFFFF, 32 - exponent).astype(_U32)


def _trailing(a: Array) -> Array:
    _, exponent = np.frexp((a & -a.view(np.int32).astype(np.int64)).astype(np.float64))
    return np.where(a == 0, 0xFFFFFFFF, exponent - 1).astype(_U32)


def _reversed(a: Array) -> Array:
    bits = np.unpackbits(np.ascontiguousarray(a)[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(_U32)[:, 0]


def _count(a: Array, b: Array) -> Array:
    return (np.bitwise_count(a) + b).astype(_U32)


def _below(half: int) -> Callable[[Array, Array], Array]:
    """mbcnt: ones of a mask in lanes below this one, within the lower or upper 32."""
    under = np.clip(_LANE - 32 * half, 0, 32)
    masks = ((np.uint64(1) << under.astype(_U64)) - _U64(1)).astype(_U32)
    return lambda a, b: (np.bitwise_count(a & masks) + b).astype(_U32)


def _carry_add(a: Array, b: Array, carry: Array | int = 0) -> tuple[Array, Array]:
    total = a.astype(_U64) + b + carry
    return total.astype(_U32), total > 0xFFFFFFFF


def _borrow_sub(a: Array, b: Array, borrow: Array | int = 0) -> tuple[Array, Array]:
    total = a.astype(np.int64) - b - borrow
    return total.astype(_U32), total < 0


def _mad_64(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    product = a.astype(c.dtype) * b.astype(c.dtype)
    total = product + c
    return total, total < product


def _choose(a: Array, b: Array, mask: Array) -> Array:
    return np.where(mask, b, a)


def _rows(kind: str, *rows: tuple[str, int, Callable[..., Array]]) -> dict[str, Alu]:
    """Mnemonics whose sources and result are of one kind."""
    return {name: Alu(apply, (kind,) * count, (kind,)) for name, count, apply in rows}


def _shifts(bits: int, unsigned: str, signed: str) -> dict[str, Alu]:
    """Shifts, whose first source says how far."""
    keep = bits - 1

    def amount(by: Array, like: Array) -> Array:
        return (by & by.dtype.type(keep)).astype(like.dtype)

    by = "u32" if bits == 64 else unsigned
    left = Alu(lambda n, a: a << amount(n, a), (by, unsigned), (unsigned,))
    right = Alu(lambda n, a: a >> amount(n, a), (by, unsigned), (unsigned,))
    arithmetic = Alu(lambda n, a: a >> amount(n, a), (by, signed), (signed,))
    return {
        f"v_lshlrev_b{bits}": left,
        f"v_lshrrev_b{bits}": right,
        f"v_ashrrev_i{bits}": arithmetic,
    }


def _shift(a: Array, by: Array) -> Array:
    return a << (by & 31)


_ALU: dict[str, Alu] = {
    **_rows(
        "u32",
        ("v_mov_b32", 1, lambda a: a),
        ("v_accvgpr_read_b32", 1, lambda a: a),
        ("v_accvgpr_write_b32", 1, lambda a: a),
        ("v_accvgpr_mov_b32", 1, lambda a: a),
        ("v_not_b32", 1, np.invert),
        ("v_bfrev_b32", 1, _reversed),
        ("v_ffbh_u32", 1, _leading),
        ("v_ffbl_b32", 1, _trailing),
        ("v_add_u32", 2, np.add),
        ("v_sub_u32", 2, np.subtract),
        ("v_subrev_u32", 2, lambda a, b: b - a),
        ("v_mul_lo_u32", 2, np.multiply),
        ("v_mul_hi_u32", 2, _high),
        ("v_and_b32", 2, np.bitwise_and),
        ("v_or_b32", 2, np.bitwise_or),
        ("v_xor_b32", 2, np.bitwise_xor),
        ("v_xnor_b32", 2, lambda a, b: ~(a ^ b)),
        ("v_min_u32", 2, np.minimum),
        ("v_max_u32", 2, np.maximum),
        ("v_bcnt_u32_b32", 2, _count),
        ("v_mbcnt_lo_u32_b32", 2, _below(0)),
        ("v_mbcnt_hi_u32_b32", 2, _below(1)),
        ("v_bfm_b32", 2, lambda a, b: ((_U32(1) << (a & 31)) - _U32(1)) << (b & 31)),
        ("v_add3_u32", 3, lambda a, b, c: a + b + c),
        ("v_lshl_add_u32", 3, lambda a, b, c: _shift(a, b) + c),
        ("v_add_lshl_u32", 3, lambda a, b, c: _shift(a + b, c)),
        ("v_lshl_or_b32", 3, lambda a, b, c: _shift(a, b) | c),
        ("v_and_or_b32", 3, lambda a, b, c: a & b | c),
        ("v_or3_b32", 3, lambda a, b, c: a | b | c),
        ("v_xad_u32", 3, lambda a, b, c: (a ^ b) + c),
        ("v_bfe_u32", 3, _bfe),
        ("v_bfi_b32", 3, lambda a, b, c: a & b | ~a & c),
        ("v_perm_b32", 3, _perm),
        ("v_alignbit_b32", 3, _align(1)),
        ("v_alignbyte_b32", 3, _align(8)),
        ("v_min3_u32", 3, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        ("v_max3_u32", 3, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        ("v_med3_u32", 3, _median),
    ),
    **_rows(
        "i32",
        ("v_add_i32", 2, np.add),
        ("v_sub_i32", 2, np.subtract),
        ("v_mul_hi_i32", 2, _high),
        ("v_min_i32", 2, np.minimum),
        ("v_max_i32", 2, np.maximum),
        ("v_min3_i32", 3, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        ("v_max3_i32", 3, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        ("v_med3_i32", 3, _median),
    ),
    **_rows(
        "u16",
        ("v_add_u16", 2, np.add),
        ("v_sub_u16", 2, np.subtract),
        ("v_subrev_u16", 2, lambda a, b: b - a),
        ("v_mul_lo_u16", 2, np.multiply),
        ("v_min_u16", 2, np.minimum),
        ("v_max_u16", 2, np.maximum),
    ),
    **_rows("i16", ("v_min_i16", 2, np.minimum), ("v_max_i16", 2, np.maximum)),
    **_rows("u64", ("v_mov_b64", 1, lambda a: a)),
    **_shifts(16, "u16", "i16"),
    **_shifts(32, "u32", "i32"),
    **_shifts(64, "u64", "i64"),
    "v_bfe_i32": Alu(_bfe, ("i32", "u32", "u32"), ("i32",)),
    "v_mul_u32_u24": Alu(np.multiply, ("u24", "u24"), ("u32",)),
    "v_mul_i32_i24": Alu(np.multiply, ("i24", "i24"), ("i32",)),
    "v_mad_u32_u24": Alu(lambda a, b, c: a * b + c, ("u24", "u24", "u32"), ("u32",)),
    "v_mad_i32_i24": Alu(lambda a, b, c: a * b + c, ("i24", "i24", "i32"), ("i32",)),
    "v_mad_u64_u32": Alu(_mad_64, ("u32", "u32", "u64"), ("u64", "mask")),
    "v_mad_i64_i32": Alu(_mad_64, ("i32", "i32", "i64"), ("i64", "mask")),
    "v_mad_u16": Alu(lambda a, b, c: a * b + c, ("u16",) * 3, ("u16",), half=True),
    "v_lshl_add_u64": Alu(
        lambda a, b, c: (a << (b & 7).astype(_U64)) + c, ("u64", "u32", "u64"), ("u64",)
    ),
    "v_add_co_u32": Alu(_carry_add, ("u32", "u32"), ("u32", "mask")),
    "v_addc_co_u32": Alu(_carry_add, ("u32", "u32", "mask"), ("u32", "mask")),
    "v_sub_co_u32": Alu(_borrow_sub, ("u32", "u32"), ("u32", "mask")),
    "v_subb_co_u32": Alu(_borrow_sub, ("u32", "u32", "mask"), ("u32", "mask")),
    "v_subrev_co_u32": Alu(lambda a, b: _borrow_sub(b, a), ("u32", "u32"), ("u32", "mask")),
    "v_subbrev_co_u32": Alu(
        lambda a, b, borrow: _borrow_sub(b, a, borrow), ("u32", "u32", "mask"), ("u32", "mask")
    ),
}


def _bitop3(kind: str) -> Builder:
    """Any function of three bits: bit 4a + 2b + c of the modifier's table is its value.

    The 16-bit form keeps the upper half of its destination.
    """

    def build(instruction: Instruction, labels: Labels) -> Step:
        table = instruction.number("bitop3")
        to, *sources = (operand(text) for text in instruction.operands)
        *chosen, half = instruction.bits("op_sel", 0, 4)
        reads = [reader(s, kind, n) for s, n in zip(sources, chosen, strict=True)]
        write = writer(to, kind, half)

        def step(w: Wave) -> None:
            a, b, c = (read(w) for read in reads)
            result = np.zeros_like(a)
            for row in range(8):
                if table >> row & 1:
                    terms = (a if row & 4 else ~a), (b if row & 2 else ~b), (c if row & 1 else ~c)
                    result = result | terms[0] & terms[1] & terms[2]
            write(w, result)

        return step

    return build


TABLE: dict[str, Builder] = {
    **{name: built(alu) for name, alu in _ALU.items()},
    # float signs mean bits here: v_cndmask_b32 v0, -v1, |v2|, vcc
    "v_cndmask_b32": built(Alu(_choose, ("f32", "f32", "mask"), ("f32",))),
    "v_bitop3_b32": _bitop3("u32"),
    "v_bitop3_b16": _bitop3("u16"),
}

# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions: D = A B + C for tiles that lie spread over the 64 lanes.

Lane l holds of A row l % M, and of B column l % N; its elements run along K, each group of M lanes
having the next share. Of C and D lane l has column l % N, and register r the row
8 (r / 4) + 4 (l / 32) + r % 4 for M = 32, 4 (l / 16) + r for M = 16. With 8-bit elements and K of
128 or 64 a lane's share is two runs of 16, half of K apart.

The products are summed in float64 and rounded once. The hardware adds in an order of its own and
rounds in between, so the last bits may differ.

Source: CDNA3 and CDNA4 ISA references, "Matrix arithmetic instructions" and its layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.convert import FP8
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.numbers import bf16_values, decode, e8m0
from archkey.conformance.emulation.operands import Operand, Read, operand, reader
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import LANES, Array, Wave

__all__ = ["TABLE", "of_target"]

_LANE = np.arange(LANES)


class Tile(NamedTuple):
    """M = N, and K."""

    m: int
    k: int

    @property
    def share(self) -> int:
        """Elements of a lane."""
        return self.m * self.k // LANES


def _rows_of_result(m: int) -> Array:
    """Row of the result in each register and lane: [registers, lanes]."""
    register = np.arange(m * m // LANES)[:, None]
    if m == 16:
        return 4 * (_LANE // 16) + register
    return 8 * (register // 4) + 4 * (_LANE // 32) + register % 4


def _along_k(tile: Tile, split: bool) -> Array:
    """Index along K of each lane's elements: [lanes, share]. split: two runs of 16."""
    group, element = _LANE[:, None] // tile.m, np.arange(tile.share)
    if split:
        return element // 16 * (tile.k // 2) + 16 * group + element % 16
    return tile.share * group + element


Decode = Callable[[Array], Array]
"""A lane's registers as bytes [lanes, bytes], to its elements as floats [lanes, share]."""


def _nibbles(raw: Array) -> Array:
    return decode(np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1), "e2m1")


def _sixes(raw: Array) -> Array:
    """Codes of 6 bits, one after the other."""
    bits = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(raw), -1, 6)
    return bits @ (1 << np.arange(6))


def _xf32(raw: Array) -> Array:
    """float32 with 10 bits after the point: to the nearest, ties to even."""
    bits = raw.view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~np.uint32(0x1FFF)).view(np.float32)


_DECODE: dict[str, Decode] = {
    "f32": lambda raw: raw.view(np.float32),
    "f16": lambda raw: raw.view(np.float16),
    "bf16": lambda raw: bf16_values(raw.view(np.uint16)),
    "i8": lambda raw: raw.view(np.int8),
    "xf32": _xf32,
    "e2m1": _nibbles,
    "e2m3": lambda raw: decode(_sixes(raw), "e2m3"),
    "e3m2": lambda raw: decode(_sixes(raw), "e3m2"),
}


def _decoder(form: str) -> Decode:
    return _DECODE[form] if form in _DECODE else lambda raw: decode(raw, form)


_BITS = {"f32": 32, "xf32": 32, "f16": 16, "bf16": 16, "e2m3": 6, "e3m2": 6, "e2m1": 4}


def _lanes(source: Operand, words: int) -> Callable[[Wave], Array]:
    """The bytes that each lane has in `words` registers: [lanes, 4 words]."""
    if source.file != "v" or source.count != words:
        raise UnknownInstruction(f"unknown operand {source.text} where {words} VGPRs are expected")
    rows = slice(source.index, source.index + words)
    return lambda w: np.ascontiguousarray(w.registers[rows].T).view(np.uint8)


class _Side:
    """A or B of an instruction: from registers to [M, K]."""

    def __init__(self, source: Operand, tile: Tile, form: str, split: bool = False) -> None:
        self._raw = _lanes(source, tile.share * _BITS.get(form, 8) // 32)
        self._decode = _decoder(form)
        # Where each element of the matrix lies among those of all lanes.
        self._from = np.empty((tile.m, tile.k), np.int64)
        at = (_LANE[:, None] % tile.m, _along_k(tile, split))
        self._from[at] = np.arange(LANES * tile.share).reshape(LANES, tile.share)

    def __call__(self, w: Wave) -> Array:
        return self._decode(self._raw(w)).take(self._from).astype(np.float64)


def _accumulate(
    instruction: Instruction, tile: Tile, product: Callable[[Wave], Array], integer: bool = False
) -> Step:
    """D = product + C, with C in registers or a constant."""
    to, addend = operand(instruction.operands[0]), operand(instruction.operands[3])
    count = tile.m * tile.m // LANES
    kind, dtype = ("i32", np.int32) if integer else ("f32", np.float32)
    if to.count != count or (addend.file != "constant" and addend.count != count):
        raise UnknownInstruction(f"unknown operands in {instruction}")
    at = _rows_of_result(tile.m) * tile.m + _LANE % tile.m
    target = slice(to.index, to.index + count)
    source = slice(addend.index, addend.index + count)
    fixed: Read | None = reader(addend, kind) if addend.file == "constant" else None

    def step(w: Wave) -> None:
        if not w.full:
            raise UnknownInstruction("a matrix instruction without all lanes is not defined here")
        before = fixed(w) if fixed else w.registers[source].view(dtype)
        total = product(w).take(at) + before
        if integer:
            total = total.astype(np.int64)  # exact in float64, and wraps like the hardware
        w.registers[target] = total.astype(dtype).view(np.uint32)

    return step


def _mfma(tile: Tile, a: str, b: str) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        left = _Side(operand(instruction.operands[1]), tile, a)
        right = _Side(operand(instruction.operands[2]), tile, b)
        return _accumulate(instruction, tile, lambda w: left(w) @ right(w).T, a == "i8")

    return build


def _blocks(k: int, form: str) -> Builder:
    """16 products of 4 x 4: block b, and row or column r of it, are lane 4 b + r.

    With cbsz:n, 2^n neighbouring blocks share the A of one of them, which abid names.
    """
    bits = _BITS.get(form, 8)
    kind, dtype = ("i32", np.int32) if form == "i8" else ("f32", np.float32)
    take = _decoder(form)

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, a, b, addend = (operand(text) for text in instruction.operands)
        shared, chosen = 1 << instruction.number("cbsz"), instruction.number("abid")
        left, right = (_lanes(source, k * bits // 32) for source in (a, b))
        source = np.arange(16) // shared * shared + chosen
        if to.count != 4 or (addend.file != "constant" and addend.count != 4):
            raise UnknownInstruction(f"unknown operands in {instruction}")
        fixed: Read | None = reader(addend, kind) if addend.file == "constant" else None

        def step(w: Wave) -> None:
            if not w.full:
                raise UnknownInstruction("a matrix instruction without all lanes is not defined")
            one, two = (
                take(side(w)).astype(np.float64).reshape(16, 4, k) for side in (left, right)
            )
            product = one[source] @ two.transpose(0, 2, 1)  # [block, row, column]
            rows = w.registers[addend.index : addend.index + 4].view(dtype)
            total = product.transpose(1, 0, 2).reshape(4, LANES) + (fixed(w) if fixed else rows)
            w.registers[to.index : to.index + 4] = total.astype(dtype).view(np.uint32)

        return step

    return build


_F8F6F4 = ("fp8", "bf8", "e2m3", "e3m2", "e2m1")
"""What cbsz says of A, and blgp of B."""


def _sides(instruction: Instruction, tile: Tile, names: dict[str, str]) -> tuple[_Side, _Side]:
    sides = []
    for text, modifier in zip(instruction.operands[1:3], ("cbsz", "blgp"), strict=True):
        name = _F8F6F4[instruction.number(modifier)]
        form = names.get(name, name)
        # Only 8-bit elements come in two runs: see above.
        sides.append(_Side(operand(text), tile, form, split=form not in _BITS))
    return sides[0], sides[1]


def _f8f6f4(tile: Tile, names: dict[str, str]) -> Builder:
    """Without block scales: all are 1."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        left, right = _sides(instruction, tile, names)
        return _accumulate(instruction, tile, lambda w: left(w) @ right(w).T)

    return build


def _scaled(tile: Tile, names: dict[str, str]) -> Builder:
    """With block scales: lane l has that of row l % M and of the 32 elements at 32 (l / M).

    op_sel and op_sel_hi choose the byte of the register.
    """
    block = _LANE // tile.m

    def build(instruction: Instruction, labels: Labels) -> Step:
        left, right = _sides(instruction, tile, names)
        low, high = instruction.bits("op_sel", 0, 2), instruction.bits("op_sel_hi", 0, 2)
        reads = [reader(operand(text), "u32") for text in instruction.operands[4:6]]
        shifts = [8 * (a + 2 * b) for a, b in zip(low, high, strict=True)]

        def scale(w: Wave, side: int) -> Array:
            factors = np.empty((tile.m, tile.k // 32))
            factors[_LANE % tile.m, block] = e8m0(reads[side](w) >> shifts[side] & 0xFF)
            return np.repeat(factors, 32, axis=1)

        def product(w: Wave) -> Array:
            return np.asarray((left(w) * scale(w, 0)) @ (right(w) * scale(w, 1)).T)

        return _accumulate(instruction, tile, product)

    return build


# Mnemonics: result, M x N x K, elements.
_PLAIN = {
    **{"f32_16x16x4_f32": (16, 4, "f32"), "f32_32x32x2_f32": (32, 2, "f32")},
    **{"f32_16x16x16_f16": (16, 16, "f16"), "f32_32x32x8_f16": (32, 8, "f16")},
    **{"f32_16x16x16_bf16": (16, 16, "bf16"), "f32_32x32x8_bf16": (32, 8, "bf16")},
    **{"i32_16x16x32_i8": (16, 32, "i8"), "i32_32x32x16_i8": (32, 16, "i8")},
}
_OF_GFX942 = {"f32_16x16x8_xf32": (16, 8, "xf32"), "f32_32x32x4_xf32": (32, 4, "xf32")}
_OF_GFX950 = {
    **{"f32_16x16x32_f16": (16, 32, "f16"), "f32_32x32x16_f16": (32, 16, "f16")},
    **{"f32_16x16x32_bf16": (16, 32, "bf16"), "f32_32x32x16_bf16": (32, 16, "bf16")},
    **{"i32_16x16x64_i8": (16, 64, "i8"), "i32_32x32x32_i8": (32, 32, "i8")},
}


def _named(rows: dict[str, tuple[int, int, str]]) -> dict[str, Builder]:
    """With LLVM's two spellings: v_mfma_f32_16x16x16_bf16 and ..._bf16_1k."""
    found = {f"v_mfma_{name}": _mfma(Tile(m, k), form, form) for name, (m, k, form) in rows.items()}
    return {**found, **{f"{name}_1k": build for name, build in found.items() if "bf16" in name}}


TABLE: dict[str, Builder] = {
    **_named(_PLAIN),
    "v_mfma_f32_4x4x1_16b_f32": _blocks(1, "f32"),
    "v_mfma_f32_4x4x4_16b_f16": _blocks(4, "f16"),
    "v_mfma_f32_4x4x4_16b_bf16": _blocks(4, "bf16"),
    "v_mfma_i32_4x4x4_16b_i8": _blocks(4, "i8"),
}


def of_target(target: str) -> dict[str, Builder]:
    """Matrix instructions that only this target has, or that mean another FP8 there."""
    names = FP8[target]
    found = {
        f"v_mfma_f32_{m}x{m}x{k}_{a}_{b}": _mfma(Tile(m, k), names[a], names[b])
        for m, k in ((16, 32), (32, 16))
        for a in names
        for b in names
    }
    found |= _named(_OF_GFX942 if target == "gfx942" else _OF_GFX950)
    if target == "gfx950":
        for m, k in ((16, 128), (32, 64)):
            found[f"v_mfma_f32_{m}x{m}x{k}_f8f6f4"] = _f8f6f4(Tile(m, k), names)
            found[f"v_mfma_scale_f32_{m}x{m}x{k}_f8f6f4"] = _scaled(Tile(m, k), names)
    return found

# SPDX-License-Identifier: Apache-2.0
"""Vector instructions that convert between number formats.

FP8 means fnuz on gfx942 and OCP on gfx950. Source: CDNA3 and CDNA4 ISA references, VOP1 and VOP3
instructions. The mode bit FP16_OVFL says what an FP8 overflow becomes: the largest number, of an
infinity too, or what stands for too much. Float16 overflows to infinity in either mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from archkey.conformance.emulation import scaled
from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.numbers import bf16_bits, bf16_values, decode, encode
from archkey.conformance.emulation.operands import operand, reader, writer
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.vector import Alu, built
from archkey.conformance.emulation.wave import Array, Wave

__all__ = ["FP8", "TABLE", "of_target"]

FP8 = {
    "gfx942": {"fp8": "e4m3fnuz", "bf8": "e5m2fnuz"},
    "gfx950": {"fp8": "e4m3fn", "bf8": "e5m2"},
}
"""What the mnemonics call fp8 and bf8, by target: a key of `numbers.FORMATS`."""


def _to_integer(kind: str, rounded: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Rounded and clamped into the range; NaN is 0."""
    limits = np.iinfo(kind)

    def apply(a: Array) -> Array:
        whole = rounded(a.astype(np.float64))
        clamped = np.clip(np.where(np.isnan(whole), 0.0, whole), limits.min, limits.max)
        return clamped.astype(kind)

    return apply


def _as(dtype: str) -> Callable[[Array], Array]:
    return lambda a: a.astype(dtype)


def _byte(n: int) -> Callable[[Array], Array]:
    return lambda a: (a >> (8 * n) & 0xFF).astype(np.float32)


def _toward_zero(a: Array, b: Array) -> Array:
    """Two float16, neither larger in size than what it was."""
    return _pair(*(_cut(value).view(np.uint16) for value in (a, b)))


def _to_nearest(a: Array, b: Array) -> Array:
    return _pair(*(value.astype(np.float16).view(np.uint16) for value in (a, b)))


def _cut(a: Array) -> Array:
    near = a.astype(np.float16)
    over = np.abs(near.astype(np.float32)) > np.abs(a)
    return np.where(over, np.nextafter(near, np.float16(0)), near)


_SIXTEEN = np.array(16, np.uint32)


def _pair(low: Array, high: Array) -> Array:
    return low | high.astype(np.uint32) << _SIXTEEN


_ALU: dict[str, Alu] = {
    "v_cvt_f32_i32": Alu(_as("f4"), ("i32",)),
    "v_cvt_f32_u32": Alu(_as("f4"), ("u32",)),
    "v_cvt_i32_f32": Alu(_to_integer("i4", np.trunc), ("f32",), ("i32",)),
    "v_cvt_u32_f32": Alu(_to_integer("u4", np.trunc), ("f32",), ("u32",)),
    "v_cvt_rpi_i32_f32": Alu(_to_integer("i4", lambda a: np.floor(a + 0.5)), ("f32",), ("i32",)),
    "v_cvt_flr_i32_f32": Alu(_to_integer("i4", np.floor), ("f32",), ("i32",)),
    "v_cvt_f32_f16": Alu(_as("f4"), ("f16",)),
    "v_cvt_f16_f32": Alu(_as("f2"), ("f32",), ("f16",)),
    "v_cvt_f16_i16": Alu(_as("f2"), ("i16",), ("f16",)),
    "v_cvt_f16_u16": Alu(_as("f2"), ("u16",), ("f16",)),
    "v_cvt_i16_f16": Alu(_to_integer("i2", np.trunc), ("f16",), ("i16",)),
    "v_cvt_u16_f16": Alu(_to_integer("u2", np.trunc), ("f16",), ("u16",)),
    **{f"v_cvt_f32_ubyte{n}": Alu(_byte(n), ("u32",)) for n in range(4)},
    "v_cvt_f32_bf16": Alu(bf16_values, ("u16",)),
    "v_cvt_pkrtz_f16_f32": Alu(_toward_zero, ("f32", "f32"), ("u32",)),
    "v_cvt_pk_f16_f32": Alu(_to_nearest, ("f32", "f32"), ("u32",)),
    "v_cvt_pk_bf16_f32": Alu(
        lambda a, b: _pair(bf16_bits(a), bf16_bits(b)), ("f32", "f32"), ("u32",)
    ),
    "v_pack_b32_f16": Alu(_pair, ("u16", "u16"), ("u32",)),
}


def _decode_one(name: str) -> Alu:
    """The lowest byte; SDWA chooses another one."""
    return Alu(lambda a: decode(a & 0xFF, name), ("u32",))


def _decode_pair(name: str) -> Builder:
    """v_cvt_pk_f32_fp8: the lower two bytes, or the upper two with op_sel or WORD_1."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, source = (operand(text) for text in instruction.operands)
        upper = instruction.bits("op_sel", 0, 1)[0]
        if instruction.encoding == "sdwa":
            chosen = instruction.take("src0_sel")
            upper = int(chosen == "WORD_1")
            plain = instruction.take("dst_sel", "DWORD"), instruction.take("dst_unused")
            if chosen not in ("WORD_0", "WORD_1") or plain[0] != "DWORD":
                raise UnknownInstruction(f"unknown selection of {instruction}")
        read = reader(source, "u32")
        writes = [writer(replace(to, index=to.index + n), "f32") for n in range(2)]
        shift = 16 * upper

        def step(w: Wave) -> None:
            codes = read(w) >> shift
            low, high = decode(codes & 0xFF, name), decode(codes >> 8 & 0xFF, name)
            writes[0](w, low)
            writes[1](w, high)

        return step

    return build


def _encode_pair(name: str) -> Builder:
    """v_cvt_pk_fp8_f32: into the lower half of the destination, or the upper with op_sel."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        to, *sources = (operand(text) for text in instruction.operands)
        half = instruction.bits("op_sel", 0, 3)[2]
        first, second = (reader(source, "f32") for source in sources)
        write = writer(to, "u16", half)

        def step(w: Wave) -> None:
            low = encode(first(w), name, w.saturate).astype(np.uint16)
            high = encode(second(w), name, w.saturate).astype(np.uint16)
            write(w, low | high << 8)

        return step

    return build


def of_target(target: str) -> dict[str, Builder]:
    """The conversions whose meaning depends on the target."""
    found: dict[str, Builder] = {}
    for name, form in FP8[target].items():
        found[f"v_cvt_f32_{name}"] = built(_decode_one(form))
        found[f"v_cvt_pk_f32_{name}"] = _decode_pair(form)
        found[f"v_cvt_pk_{name}_f32"] = _encode_pair(form)
    return {**found, **scaled.builders(FP8[target])} if target == "gfx950" else found


TABLE: dict[str, Builder] = {name: built(alu) for name, alu in _ALU.items()}

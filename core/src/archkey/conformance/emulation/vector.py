# SPDX-License-Identifier: Apache-2.0
"""Vector instructions: how any of them reads, selects and writes; what they compute is in tables.

A row of a table is an `Alu`: a function of arrays over 64 lanes, with the kinds of its sources and
results. The encodings e32 and e64 differ in nothing that matters here; SDWA selects bytes or words,
DPP takes the first source from other lanes (`lanes.dpp`).

Source: CDNA3 and CDNA4 ISA references, "Vector ALU operations", and the chapters on SDWA and DPP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.dpp import Routing, routing
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.operands import (
    KINDS,
    Operand,
    Read,
    Write,
    operand,
    reader,
    writer,
)
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import Array, Wave

__all__ = ["Alu", "built"]


class Alu(NamedTuple):
    """What one mnemonic computes.

    apply    of one array a source; gives one array a result
    sources  their kinds
    to       the kinds of the results
    old      the destination is read, too, as the last source
    implied  vcc is the last source without being written down
    half     a 16-bit result leaves the other half of the register as it is
    """

    apply: Callable[..., Any]
    sources: tuple[str, ...]
    to: tuple[str, ...] = ("f32",)
    old: bool = False
    implied: bool = False
    half: bool = False


def built(alu: Alu) -> Builder:
    """The builder of a mnemonic."""

    def build(instruction: Instruction, labels: Labels) -> Step:
        found = [operand(text) for text in instruction.operands]
        targets, sources = found[: len(alu.to)], found[len(alu.to) :]
        if alu.old:
            sources.append(targets[0])
        if alu.implied:
            sources.append(operand("vcc"))
        if len(sources) != len(alu.sources):
            raise UnknownInstruction(f"unknown operands in {instruction}")
        if instruction.encoding == "sdwa":
            reads, writes = _selected(instruction, alu, targets, sources)
        else:
            reads, writes = _straight(instruction, alu, targets, sources)
        apply = _finished(instruction, alu)
        if instruction.encoding == "dpp":
            return _routed(routing(instruction), apply, reads, writes)
        return _step(apply, reads, writes)

    return build


def _straight(
    instruction: Instruction, alu: Alu, targets: Sequence[Operand], sources: Sequence[Operand]
) -> tuple[list[Read], list[Write]]:
    """e32, e64 and DPP: op_sel chooses halves of 16-bit operands, the last bit that of the result.

    The destination that is read as a source has no bit.
    """
    halves = [0] * (len(sources) + 1)
    if "op_sel" in instruction.modifiers:
        own = len(sources) - alu.old
        if not {*alu.sources, *alu.to} & {"u16", "i16", "f16"}:
            raise UnknownInstruction(f"unknown modifier op_sel of {instruction}")
        chosen = instruction.bits("op_sel", 0, own + 1)
        halves = [*chosen[:own], *([0] * alu.old), chosen[own]]
    reads = [
        reader(source, kind, half)
        for source, kind, half in zip(sources, alu.sources, halves, strict=False)
    ]
    keep = halves[-1] if alu.half or halves[-1] else None
    return reads, [writer(to, kind, keep) for to, kind in zip(targets, alu.to, strict=True)]


def _finished(instruction: Instruction, alu: Alu) -> Callable[..., Any]:
    """With the output modifiers: clamp, and of floats mul:2, mul:4, div:2.

    clamp  a float into [0, 1], NaN becomes 0; an integer sum into the range of its kind
    """
    apply = alu.apply
    if alu.to[0] in ("u16", "i16", "u32", "i32") and len(alu.to) == 1:
        return _saturating(apply, KINDS[alu.to[0]]) if instruction.flag("clamp") else apply
    if alu.to[0] not in ("f32", "f16", "f64"):
        return apply
    factor = 1.0
    if scale := instruction.take("mul"):
        factor = float(scale)
    elif scale := instruction.take("div"):
        factor = 1 / float(scale)
    clamp = instruction.flag("clamp")
    if factor == 1.0 and not clamp:
        return apply
    dtype = KINDS[alu.to[0]].type
    if len(alu.to) > 1:
        raise UnknownInstruction(f"unknown output modifier of {instruction}")

    def finished(*sources: Array) -> Array:
        result = apply(*sources) * dtype(factor)
        return np.where(result > 0, np.minimum(result, dtype(1)), dtype(0)) if clamp else result

    return finished


def _saturating(apply: Callable[..., Any], dtype: np.dtype[Any]) -> Callable[..., Array]:
    """For sums and differences: in 64 bits, and then into the range."""
    limits = np.iinfo(dtype)

    def finished(*sources: Array) -> Array:
        wide = apply(*(source.astype(np.int64) for source in sources))
        return np.clip(wide, limits.min, limits.max).astype(dtype)

    return finished


def _step(apply: Callable[..., Any], reads: Sequence[Read], writes: Sequence[Write]) -> Step:
    """The function that is executed; the usual numbers of sources are spelled out for speed."""
    if len(writes) > 1:
        both = tuple(writes)

        def several(w: Wave) -> None:
            results = apply(*[read(w) for read in reads])
            for write, result in zip(both, results, strict=True):
                write(w, result)

        return several
    (write,) = writes
    if len(reads) == 1:
        (only,) = reads
        return lambda w: write(w, apply(only(w)))
    if len(reads) == 2:
        first, second = reads
        return lambda w: write(w, apply(first(w), second(w)))
    if len(reads) == 3:
        one, two, three = reads
        return lambda w: write(w, apply(one(w), two(w), three(w)))
    return lambda w: write(w, apply(*[read(w) for read in reads]))


def _routed(
    routed: Routing, apply: Callable[..., Any], reads: Sequence[Read], writes: Sequence[Write]
) -> Step:
    """DPP: lanes whose source does not count are not written."""
    first, *others = reads
    plain = _step(apply, [routed.source(first), *others], writes)

    def step(w: Wave) -> None:
        mask, full = w.mask, w.full
        w.mask, w.full = routed.written(w), False
        try:
            plain(w)
        finally:
            w.mask, w.full = mask, full

    return step


# Name of a selection -> (first bit, bits).
_SELECTIONS = {
    **{f"BYTE_{n}": (8 * n, 8) for n in range(4)},
    **{f"WORD_{n}": (16 * n, 16) for n in range(2)},
    "DWORD": (0, 32),
}


def _selected(
    instruction: Instruction, alu: Alu, targets: Sequence[Operand], sources: Sequence[Operand]
) -> tuple[list[Read], list[Write]]:
    """SDWA: src0_sel and src1_sel choose bits of a source, dst_sel where the result goes."""
    reads = []
    for i, (source, kind) in enumerate(zip(sources, alu.sources, strict=True)):
        selection = instruction.take(f"src{i}_sel", "DWORD")
        if kind == "mask" or (alu.old and i == len(sources) - 1):
            reads.append(reader(source, kind))
        else:
            reads.append(_selected_read(source, kind, *_SELECTIONS[selection]))
    first, bits = _SELECTIONS[instruction.take("dst_sel", "DWORD")]
    unused = instruction.take("dst_unused", "UNUSED_PAD")
    if bits == 32:
        return reads, [writer(to, kind) for to, kind in zip(targets, alu.to, strict=True)]
    if len(alu.to) > 1 or alu.to[0] == "mask":
        raise UnknownInstruction(f"unknown dst_sel of {instruction}")
    return reads, [_selected_write(targets[0], alu.to[0], first, bits, unused)]


def _selected_read(source: Operand, kind: str, first: int, bits: int) -> Read:
    dtype = KINDS[kind]
    raw = reader(replace(source, negative=False, absolute=False, extended=False), "u32")
    mask, up = np.uint32((1 << bits) - 1), 32 - bits

    def read(w: Wave) -> Array:
        value = raw(w) >> first & mask
        if source.extended:
            value = (value << up).view(np.int32) >> up
        value = value.astype(np.uint16) if dtype.itemsize == 2 else value
        value = value.view(dtype)
        value = np.abs(value) if source.absolute else value
        return -value if source.negative else value

    return read


def _selected_write(to: Operand, kind: str, first: int, bits: int, unused: str) -> Write:
    write = writer(to, "u32")
    mask = (1 << bits) - 1

    def selected(w: Wave, result: Array) -> None:
        field = result.view(f"u{KINDS[kind].itemsize}").astype(np.uint32) & np.uint32(mask)
        if unused == "UNUSED_SEXT":
            up = 32 - bits
            field = ((field << up).view(np.int32) >> up).view(np.uint32)
        placed = field << np.uint32(first)
        if unused == "UNUSED_PRESERVE":
            placed = placed | w.u32[to.index] & np.uint32(~(mask << first) & 0xFFFFFFFF)
        write(w, placed)

    return selected

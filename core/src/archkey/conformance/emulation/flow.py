# SPDX-License-Identifier: Apache-2.0
"""Branches, barriers, the mode register, and scalar loads.

Source: CDNA3 ISA reference, "Program flow control" and "Scalar memory".
"""

from __future__ import annotations

from collections.abc import Callable

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.operands import operand, scalar
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import EXEC, VCC, Wave

__all__ = ["TABLE"]


def _load(words: int) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        to, base, offset = (operand(text) for text in instruction.operands)
        instruction.flag("glc")  # a cache policy means nothing here
        fixed = instruction.number("offset")
        address, more, first = scalar(base, True), scalar(offset), to.index
        if to.count != words or to.index == EXEC:
            raise UnknownInstruction(f"unknown destination of {instruction}")

        def step(w: Wave) -> None:
            at = address(w) + more(w) + fixed
            w.s[first : first + words] = w.group.scalar(at & ~3, words)

        return step

    return build


def _branch(taken: Callable[[Wave], bool]) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        (name,) = instruction.operands
        if name not in labels:
            raise UnknownInstruction(f"unknown label in {instruction}")
        target = labels[name]

        def step(w: Wave) -> None:
            if taken(w):
                w.pc = target

        return step

    return build


def _becomes(state: str) -> Builder:
    def build(instruction: Instruction, labels: Labels) -> Step:
        def step(w: Wave) -> None:
            w.state = state

        return step

    return build


def _nothing(instruction: Instruction, labels: Labels) -> Step:
    """Waits, caches and priorities: memory here is in order, and one wave runs at a time."""
    instruction.modifiers.clear()  # vmcnt(0) lgkmcnt(0)
    return lambda w: None


def _mode(instruction: Instruction, labels: Labels) -> Step:
    """s_setreg_imm32_b32: of the mode register, bit 23, FP16_OVFL."""
    if instruction.operands[0].replace(" ", "") != "hwreg(HW_REG_MODE,23,1)":
        raise UnknownInstruction(f"unknown field of a register in {instruction}")
    value = bool(int(instruction.operands[1], 0) & 1)

    def step(w: Wave) -> None:
        w.saturate = value

    return step


TABLE: dict[str, Builder] = {
    "s_load_dword": _load(1),
    **{f"s_load_dwordx{n}": _load(n) for n in (2, 4, 8, 16)},
    "s_branch": _branch(lambda w: True),
    "s_cbranch_scc0": _branch(lambda w: not w.scc),
    "s_cbranch_scc1": _branch(lambda w: bool(w.scc)),
    "s_cbranch_vccz": _branch(lambda w: not w.get64(VCC)),
    "s_cbranch_vccnz": _branch(lambda w: bool(w.get64(VCC))),
    "s_cbranch_execz": _branch(lambda w: not w.exec),
    "s_cbranch_execnz": _branch(lambda w: bool(w.exec)),
    "s_endpgm": _becomes("ended"),
    "s_barrier": _becomes("barrier"),
    "s_setreg_imm32_b32": _mode,
    **dict.fromkeys(
        (
            *("s_waitcnt", "s_nop", "s_setprio", "s_sleep", "s_inst_prefetch", "s_dcache_inv"),
            *("s_dcache_wb", "buffer_inv", "buffer_wbl2", "s_sethalt", "s_icache_inv"),
        ),
        _nothing,
    ),
}

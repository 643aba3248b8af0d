# SPDX-License-Identifier: Apache-2.0
"""Atomics on LDS. Lanes follow one another by number, as in `atomics`.

Source: CDNA3 ISA reference, "Data share". With _rtn the value before goes into a register.
"""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.atomics import ATOMICS, Atomic, applied
from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.lds import places
from archkey.conformance.emulation.operands import operand, reader
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.transfer import Shape, gathered, scatter
from archkey.conformance.emulation.wave import Wave

__all__ = ["TABLE"]

_SIGNED = {"smin": ("min", "i"), "smax": ("max", "i"), "umin": ("min", "u"), "umax": ("max", "u")}
_KINDS = {"add": "u", "sub": "u", "and": "b", "or": "b", "xor": "b", "swap": "b", "cmpswap": "b"}


def _names() -> dict[tuple[str, str], Atomic]:
    """(operation, type) as LDS names them."""
    found: dict[tuple[str, str], Atomic] = {}
    for suffix, size in (("", "32"), ("_x2", "64")):
        for name, (operation, kind) in _SIGNED.items():
            found[operation, kind + size] = ATOMICS[name + suffix]
        for name, kind in _KINDS.items():
            renamed = {"swap": "wrxchg", "cmpswap": "cmpst"}.get(name, name)
            found[renamed, kind + size] = ATOMICS[name + suffix]
    for name in ("add_f32", "add_f64", "min_f64", "max_f64", "pk_add_f16", "pk_add_bf16"):
        operation, _, kind = name.rpartition("_")
        found[operation, kind] = ATOMICS[name]
    return found


def _atomic(atomic: Atomic, returns: bool) -> Builder:
    shape = Shape(4, atomic.words)

    def build(instruction: Instruction, labels: Labels) -> Step:
        texts = list(instruction.operands)
        to = operand(texts.pop(0)).index if returns else -1
        address, *data = (operand(text) for text in texts)
        if len(data) != 1 + atomic.compares or any(one.file != "v" for one in data):
            raise ValueError("an address and data in VGPRs are expected")
        # What is compared comes first here, and last in atomics on global memory.
        sources = [one.index for one in reversed(data)]
        read = reader(address, "u32")
        offset = np.array(instruction.number("offset"), np.uint32)

        def step(w: Wave) -> None:
            if not w.exec:
                return
            at = places(w, read(w), offset)
            given = np.concatenate([gathered(w, source, shape) for source in sources])
            group, lds = w.group, w.group.lds
            group.count_lds(shape.span * len(at), shape.span * len(at))
            lds.claim(group.running, at, atomic.words)
            group.noted()
            everywhere = np.ones(len(at), np.bool_)
            before = applied(atomic, lds.peek, lds.poke, at, given, everywhere)
            if returns:
                scatter(w, to, shape, before)

        return step

    return build


TABLE: dict[str, Builder] = {
    f"ds_{operation}{back}_{kind}": _atomic(atomic, bool(back))
    for (operation, kind), atomic in _names().items()
    for back in ("", "_rtn")
    if back or operation != "wrxchg"
}

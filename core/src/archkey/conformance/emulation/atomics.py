# SPDX-License-Identifier: Apache-2.0
"""Atomics on global memory, through addresses or buffers. Lanes follow one another by number.

Source: CDNA3 ISA reference, "Vector memory operations" and "Flat memory instructions". With sc0 the
value before goes into the data register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.builders import Builder, Labels, Step
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.numbers import bf16_bits, bf16_values
from archkey.conformance.emulation.operands import Operand, operand
from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.transfer import Shape, gathered, scatter
from archkey.conformance.emulation.vmem import Buffer, global_address
from archkey.conformance.emulation.wave import Array, Wave

__all__ = ["ATOMICS", "TABLE", "Atomic", "applied"]


class Atomic(NamedTuple):
    """apply(before, data) -> after, on arrays of `kind`. words: of memory; compares: two of data"""

    apply: Callable[[Array, Array], Array]
    kind: str = "u4"
    words: int = 1
    compares: bool = False


def _bf16_sum(before: Array, data: Array) -> Array:
    return bf16_bits(bf16_values(before) + bf16_values(data))


def _integers(suffix: str, size: int) -> dict[str, Atomic]:
    """The same for 32 and 64 bits."""
    unsigned, signed, words = f"u{size}", f"i{size}", size // 4
    rows: dict[str, tuple[Callable[[Array, Array], Array], str]] = {
        "swap": (lambda before, data: data, unsigned),
        "add": (np.add, unsigned),
        "sub": (np.subtract, unsigned),
        "smin": (np.minimum, signed),
        "smax": (np.maximum, signed),
        "umin": (np.minimum, unsigned),
        "umax": (np.maximum, unsigned),
        "and": (np.bitwise_and, unsigned),
        "or": (np.bitwise_or, unsigned),
        "xor": (np.bitwise_xor, unsigned),
    }
    found = {f"{name}{suffix}": Atomic(f, kind, words) for name, (f, kind) in rows.items()}
    # The data are the new value, and then what memory must hold for it to be written.
    swap = Atomic(lambda before, data: data, unsigned, words, compares=True)
    return {**found, f"cmpswap{suffix}": swap}


ATOMICS = {
    **_integers("", 4),
    **_integers("_x2", 8),
    "add_f32": Atomic(np.add, "f4"),
    "add_f64": Atomic(np.add, "f8", 2),
    "min_f64": Atomic(np.fmin, "f8", 2),
    "max_f64": Atomic(np.fmax, "f8", 2),
    "pk_add_f16": Atomic(np.add, "f2"),
    "pk_add_bf16": Atomic(_bf16_sum, "u2"),
}


def applied(
    atomic: Atomic,
    load: Callable[[Array, int, int], Array],
    store: Callable[[Array, Array], None],
    addresses: Array,
    data: Array,
    live: Array,
) -> Array:
    """Apply to memory, lane after lane where `live`; what was there before: [words, lanes]."""
    words = atomic.words
    found = np.zeros((words, len(addresses)), np.uint32)
    for lane in np.flatnonzero(live):
        at, given = addresses[lane : lane + 1], np.ascontiguousarray(data[:, lane])
        before = np.ascontiguousarray(load(at, 4, words)[:, 0])
        found[:, lane] = before
        if atomic.compares and (given[words:] != before).any():
            continue
        after = atomic.apply(before.view(atomic.kind), given[:words].view(atomic.kind))
        store(at, after.view(np.uint32)[:, None])
    return found


def _atomic(space: str, atomic: Atomic) -> Builder:
    width = Shape(4, atomic.words * (2 if atomic.compares else 1))
    result = Shape(4, atomic.words)

    def build(instruction: Instruction, labels: Labels) -> Step:
        returns = instruction.flag("sc0")
        texts = list(instruction.operands)
        if space == "buffer":
            data, to = operand(texts[0]), operand(texts[0])
            buffer = Buffer(instruction, tuple(texts[1:]), result)

            def place(w: Wave) -> tuple[Array, Array]:
                addresses, _, whole = buffer.inside(w)
                return addresses, whole
        else:
            to = operand(texts.pop(0)) if returns else Operand("", "name")
            lane, data, base = (operand(text) for text in texts)
            address = global_address(instruction, lane, base)

            def place(w: Wave) -> tuple[Array, Array]:
                addresses = address(w)
                return addresses, np.ones(len(addresses), np.bool_)

        if data.file != "v":
            raise UnknownInstruction(f"unknown operands in {instruction}")

        def step(w: Wave) -> None:
            if w.exec:
                addresses, live = place(w)
                given, group = gathered(w, data.index, width), w.group
                before = applied(atomic, group.load, group.store, addresses, given, live)
                if returns:
                    scatter(w, to.index, result, before)

        return step

    return build


TABLE: dict[str, Builder] = {
    f"{space}_atomic_{name}": _atomic(space, atomic)
    for space in ("global", "buffer")
    for name, atomic in ATOMICS.items()
}

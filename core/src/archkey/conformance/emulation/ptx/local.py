# SPDX-License-Identifier: Apache-2.0
"""Memory that each thread has for itself, and addresses that may be of any memory.

Generic addresses below LOCAL are of shared memory, those below GLOBAL of the thread's own; all
others are of global memory. Source: PTX ISA, State Spaces: Local; Generic Addressing; cvta.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.moves import HELPERS as MOVES
from archkey.conformance.emulation.ptx.moves import elements_of, kinds_of_registers
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "LOCAL", "Local", "TABLE"]

LOCAL, GLOBAL = 1 << 29, 1 << 30


class Local:
    """`size` bytes from LOCAL on of each of `threads`."""

    def __init__(self, threads: int, size: int) -> None:
        self.size = size
        self.bytes = np.zeros((threads, size), np.uint8)
        self.written = np.zeros((threads, size), np.bool_)

    def load(self, threads: Array, at: Array, size: int, count: int) -> Array:
        """[count, threads] of `size` bytes from each address on."""
        where = self._where(threads, at, size * count)
        if not self.written[where].all():
            raise Fault("local memory is read that nobody wrote")
        return np.ascontiguousarray(self.bytes[where]).view(f"u{size}").T

    def store(self, threads: Array, at: Array, values: Array) -> None:
        """The inverse of `load`."""
        where = self._where(threads, at, values.dtype.itemsize * len(values))
        self.bytes[where] = np.ascontiguousarray(values.T).view(np.uint8)
        self.written[where] = True

    def _where(self, threads: Array, at: Array, span: int) -> tuple[Array, Array]:
        first = at.astype(np.int64) - LOCAL
        if (first % span).any():
            raise Fault(f"local memory is accessed at no multiple of {span} bytes")
        if first.min() < 0 or first.max() + span > self.size:
            raise Fault(f"{span} bytes outside of the {self.size} bytes of a thread's own memory")
        return threads.astype(np.int64)[:, None], first[:, None] + np.arange(span)


def _load_local(S: Any, G: Any, at: Array, size: int, count: int, mask: Any) -> Array:
    chosen = np.ones(G.n, np.bool_) if mask is None else mask
    result = np.zeros((count, G.n), f"u{size}")
    if chosen.any():
        result[:, chosen] = S.local.load(G.tid[chosen], at[chosen], size, count)
    return result


def _store_local(S: Any, G: Any, at: Array, values: list[Array], mask: Any) -> None:
    chosen = np.ones(G.n, np.bool_) if mask is None else mask
    if chosen.any():
        S.local.store(G.tid[chosen], at[chosen], np.stack(values)[:, chosen])


def _spaces(at: Array, mask: Any) -> tuple[Array, Array, Array]:
    """Which generic addresses are of shared, of local and of global memory."""
    chosen = np.ones(len(at), np.bool_) if mask is None else mask
    own = (at >= np.uint64(LOCAL)) & (at < np.uint64(GLOBAL))
    return chosen & (at < np.uint64(LOCAL)), chosen & own, chosen & (at >= np.uint64(GLOBAL))


def _load(S: Any, G: Any, at: Array, size: int, count: int, mask: Any) -> Array:
    shared, local, wide = _spaces(at, mask)
    result = np.zeros((count, G.n), f"u{size}")
    if shared.any():
        result[:, shared] = S.shared.load(at[shared].astype(np.uint32), size, count)
    if local.any():
        result[:, local] = S.local.load(G.tid[local], at[local], size, count)
    if wide.any():
        result |= MOVES["load_global"](S, at, size, count, wide)
    return result


def _store(S: Any, G: Any, at: Array, values: list[Array], mask: Any) -> None:
    shared, local, wide = _spaces(at, mask)
    data = np.stack(values)
    if shared.any():
        warps = G.tid[shared].astype(np.int64) >> 5
        S.shared.store(at[shared].astype(np.uint32), data[:, shared], warps)
    if local.any():
        S.local.store(G.tid[local], at[local], data[:, local])
    if wide.any():
        MOVES["store_global"](S, at, values, wide)


HELPERS: dict[str, Any] = {
    **{"load_local": _load_local, "store_local": _store_local},
    **{"load_generic": _load, "store_generic": _store},
}


def _move(load: bool, space: str, kind: str, count: int) -> Builder:
    own = f"u{kind[1]}"

    def build(emitter: Emitter, instruction: Instruction) -> None:
        registers, where = instruction.operands if load else instruction.operands[::-1]
        found = elements_of(registers)
        if len(found) != count:
            raise UnknownInstruction(f"{len(found)} registers, {count} are expected")
        at = emitter.shared(where) if space == "local" else emitter.address(where, wide=True)
        if load:
            call = f"load_{space}(S, G, {at}, {own[1]}, {count}, {emitter.mask})"
            emitter.results(found, kind, call if kind == own else f"{call}.view({kind})")
        else:
            given = ", ".join(emitter.vector(one, own) for one in found)
            emitter.line(f"store_{space}(S, G, {at}, [{given}], {emitter.mask})")

    return build


def _same(emitter: Emitter, instruction: Instruction) -> None:
    """cvta: these addresses are generic ones."""
    target, source = instruction.operands
    emitter.write(target, "u8", emitter.vector(source, "u8"))


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for space, way in itertools.product(("local", "shared"), ("", "to.")):
        table[f"cvta.{way}{space}.u64"] = _same
    for (name, kind), count in itertools.product(kinds_of_registers(), (1, 2, 4)):
        if int(kind[1]) * count > 16:
            continue
        many = f".v{count}" if count > 1 else ""
        for said, space in ((".local", "local"), ("", "generic"), (".volatile", "generic")):
            table[f"ld{said}{many}.{name}"] = _move(True, space, kind, count)
            table[f"st{said}{many}.{name}"] = _move(False, space, kind, count)
    return table


TABLE = _table()

# SPDX-License-Identifier: Apache-2.0
"""tcgen05.cp: rows of shared memory into lanes of tensor memory, in order with the products.

Source: PTX ISA, TensorCore 5th Generation Family Instructions: tcgen05.cp, data movement shapes;
Shared memory descriptor.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx import descriptors
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]

_QUARTER = 32  # lanes of a warp


class _Shape(NamedTuple):
    """rows of `size` bytes; of each quarter of the lanes the quarter of the rows that it gets."""

    rows: int
    size: int
    quarters: tuple[int, ...]


_SHAPES = {
    "128x256b": _Shape(128, 32, (0, 1, 2, 3)),
    "128x128b": _Shape(128, 16, (0, 1, 2, 3)),
    "64x128b.warpx2::02_13": _Shape(64, 16, (0, 1, 0, 1)),
    "64x128b.warpx2::01_23": _Shape(64, 16, (0, 0, 1, 1)),
    "32x128b.warpx4": _Shape(32, 16, (0, 0, 0, 0)),
}


def _move(S: Any, shape: _Shape, column: int, descriptor: int) -> None:
    """What one tcgen05.cp does."""
    layout = descriptors.blackwell(descriptor)
    at = descriptors.addresses(layout, shape.rows, shape.size, 8, False)
    words = S.shared.chunks(at).reshape(shape.rows, -1).view(np.uint32)
    quarters = words.reshape(-1, _QUARTER, words.shape[1])
    columns = column + np.arange(words.shape[1])
    for n, quarter in enumerate(shape.quarters):
        lanes = n * _QUARTER + np.arange(_QUARTER)
        S.tensor_memory.write(lanes[:, None], columns[None], quarters[quarter])


def _copy(S: Any, name: str, pair: bool, to: Array, descriptor: Array, mask: Any) -> None:
    """Issue, by each thread under the mask. pair: each of two workgroups its own rows."""
    shape = _SHAPES[name]
    members = [S.cluster.at(r) for r in (S.rank & ~1, S.rank | 1)] if pair else [S]
    for n in range(len(to)) if mask is None else np.flatnonzero(mask):
        column, given = int(to[n]) & 0xFFFF, int(descriptor[n])
        if int(to[n]) >> 16:
            raise Fault(f"tcgen05.cp to lane {int(to[n]) >> 16}: it begins at lane 0")
        for one in members:
            one.tensor_memory.check(column, shape.size // 4)
            one.tensor_memory.in_flight += 1

        def work(column: int = column, given: int = given) -> None:
            for one in members:
                one.tensor_memory.in_flight -= 1
                try:
                    _move(one, shape, column, given)
                except (Fault, UnknownInstruction) as error:
                    raise type(error)(f"{error}, in a tcgen05.cp that was issued") from error

        S.later(work, "tcgen05.cp")


HELPERS: dict[str, Any] = {"tcgen05_copy": _copy}


def _builder(name: str, pair: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        to, descriptor = instruction.operands
        given = f"{emitter.address(to, wide=False)}, {emitter.vector(descriptor, 'u8')}"
        emitter.line(f"tcgen05_copy(S, {name!r}, {pair}, {given}, {emitter.mask})")

    return build


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for group, name in itertools.product((1, 2), _SHAPES):
        size, _, warps = name.partition(".")
        # Triton 3.6 says first who gets the rows.
        for form in (name, f"{warps}.{size}" if warps else name):
            table[f"tcgen05.cp.cta_group::{group}.{form}"] = _builder(name, group == 2)
    return table


TABLE = _table()

# SPDX-License-Identifier: Apache-2.0
"""Boxes of a tensor as TMA cuts them out: where their bytes lie, in global and in shared memory.

What lies outside of the tensor is zero (or NaN, if the map says so) in shared memory, and is not
written in global memory. Source: PTX ISA, Tensors: Tiled mode, Bounding box, Swizzling modes.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.numbers import bf16_bits, bf16_values
from archkey.conformance.emulation.ptx.descriptors import swizzled
from archkey.conformance.emulation.ptx.shared import BASE, CHUNK
from archkey.conformance.emulation.ptx.tensor_maps import TensorMap
from archkey.conformance.emulation.wave import Array

__all__ = ["Box", "chunks_of", "combined", "cut", "fetched", "put"]


class Box(NamedTuple):
    """at: addresses of its units in global memory, [rows, units]; inside: which are there

    unit   bytes of each: 1, 2, 4 or 8
    """

    map: TensorMap
    at: Array
    inside: Array
    unit: int


def cut(tensor: TensorMap, place: tuple[int, ...], rows: bool) -> Box:
    """The box at `place`, innermost coordinate first. rows: place is a column and four rows."""
    rank = len(tensor.shape)
    if rows and (rank != 2 or tensor.box[1] != 1 or len(place) != 5):
        raise Fault(f"four rows of a tensor of {rank} dimensions in boxes of {tensor.box}")
    if not rows and len(place) != rank:
        raise Fault(f"{len(place)} coordinates in a tensor of {rank} dimensions")
    address, inside = np.zeros((1,), np.int64), np.ones((1,), np.bool_)
    for n in range(rank - 1, 0, -1):
        if rows:
            index = np.array(place[1:], np.int64)
        else:
            index = place[n] + tensor.steps[n] * np.arange(_count(tensor, n))
        valid = (index >= 0) & (index < tensor.shape[n])
        address = (address[:, None] + index * tensor.strides[n - 1]).reshape(-1)
        inside = (inside[:, None] & valid).reshape(-1)
    offset, there, unit = _row(tensor, place[0])
    at = tensor.address + address[:, None] + offset
    return Box(tensor, at, inside[:, None] & there, unit)


def _count(tensor: TensorMap, n: int) -> int:
    return -(-tensor.box[n] // tensor.steps[n])


def _row(tensor: TensorMap, first: int) -> tuple[Array, Array, int]:
    """Of one row of a box: offsets of its units from the tensor's row, which exist, their size."""
    bits = tensor.type.bits
    if bits < 8 and first % (64 if tensor.type.padded else 2):
        raise Fault(f"a box of elements of 4 bits that begins at element {first}")
    start, end = first * bits // 8, tensor.shape[0] * bits // 8
    if tensor.steps[0] == 1:
        size = tensor.box[0] * bits // 8
        unit = math.gcd(8, start, end, size, tensor.address, *tensor.strides)
        offset = start + unit * np.arange(size // unit)
    else:
        unit = bits // 8
        offset = start + unit * tensor.steps[0] * np.arange(_count(tensor, 0))
    return offset, (offset >= 0) & (offset < end), unit


@functools.lru_cache(256)
def _offsets(size: int) -> Array:
    return np.arange(0, size, CHUNK)


def chunks_of(box: Box, to: int) -> Array:
    """Addresses in shared memory of the chunks of 16 bytes that a box fills from `to` on."""
    if (to - BASE) % 128:
        raise Fault(f"a box at byte {to - BASE} of shared memory: no multiple of 128")
    size = box.at.size * box.unit << box.map.type.padded
    return swizzled(to + _offsets(size), box.map.row)


def fetched(S: Any, box: Box) -> Array:
    """The bytes of a box as they lie in shared memory: [chunks, 16] uint8."""
    kind = box.map.type.kind
    data = np.zeros(box.at.shape, f"u{box.unit}")
    if box.map.nan:
        if kind not in ("f2", "bf16", "f4", "f8"):
            raise UnknownInstruction(f"NaN outside of a tensor of {box.map.type.name}")
        whole = np.full(8 * box.at.shape[1] * box.unit, 0xFF, np.uint8)  # NaN of any format
        data[:] = whole[: box.at.shape[1] * box.unit].view(f"u{box.unit}")
    if box.inside.any():
        at = box.at[box.inside].astype(np.uint64)
        data[box.inside] = S.memory.load(at, box.unit, 1)[0]
        S.counters.copied += box.unit * len(at)
    flat = data.view(np.uint8).reshape(-1)
    if not box.map.type.padded:
        return flat.reshape(-1, CHUNK)
    halves = flat.reshape(-1, CHUNK // 2)
    return np.concatenate([halves, np.zeros_like(halves)], 1)


def put(S: Any, box: Box, data: Array) -> None:
    """Write bytes [chunks, 16] of shared memory to where the box lies in the tensor."""
    if not box.inside.any():
        return
    values = np.ascontiguousarray(data).view(f"u{box.unit}").reshape(box.at.shape)[box.inside]
    S.memory.store(box.at[box.inside].astype(np.uint64), values[None])
    S.counters.stored += box.unit * len(values)


_REDUCTIONS = {
    **{"add": np.add, "min": np.minimum, "max": np.maximum},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
}


def combined(S: Any, box: Box, data: Array, name: str) -> None:
    """Write what an operation makes of the tensor's elements and those of shared memory."""
    kind = box.map.type.kind
    size = box.map.type.bits // 8
    allowed = {"add": ("u4", "i4", "u8", "f2", "bf16", "f4"), "min": _ORDERED, "max": _ORDERED}
    if kind not in allowed.get(name, ("u4", "i4", "u8", "i8")):
        raise Fault(f"a reduction by {name} of elements {box.map.type.name}")
    if not box.inside.any():
        return
    first = box.inside[:, :: max(size // box.unit, 1)]
    parts = max(box.unit // size, 1)  # elements of a unit
    at = (box.at[:, :: max(size // box.unit, 1)][..., None] + size * np.arange(parts))[first]
    at = at.reshape(-1).astype(np.uint64)
    new = np.ascontiguousarray(data).view(f"u{size}").reshape(*first.shape, parts)[first]
    old = S.memory.load(at, size, 1)[0]
    S.memory.store(at, _applied(name, kind, old, new.reshape(-1))[None])
    S.counters.copied += size * len(at)
    S.counters.stored += size * len(at)


_ORDERED = ("u4", "i4", "u8", "i8", "f2", "bf16")


def _applied(name: str, kind: str, old: Array, new: Array) -> Array:
    apply = _REDUCTIONS[name]
    if kind == "bf16":
        return bf16_bits(apply(bf16_values(old), bf16_values(new)).astype(np.float32))
    return apply(old.view(kind), new.view(kind)).view(old.dtype)

# SPDX-License-Identifier: Apache-2.0
"""A kernel's parameters from the arguments of a launch, tensor descriptors and scratch among them.

Triton passes a tensor descriptor as a tensor map, then its shape as 32-bit and its strides as
64-bit integers, and last two pointers: to scratch in global memory, and to a profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.arguments import packed, storages
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.memory import Room
from archkey.conformance.emulation.ptx import tensor_maps
from archkey.conformance.emulation.ptx.text import Module

__all__ = ["MAP", "Described", "Given", "buffer", "expanded", "given"]

MAP = "nvTmaDesc"
_DESCRIPTOR = re.compile(r"tensordesc<([^[>]*)\[([^]]*)\]")
_SCRATCH_BYTE = 0xA5
_ALIGNED = 128
_SPACE = 1 << 30  # where parameter space begins: addresses in it fit into 32 bits


class Described(NamedTuple):
    """A tensor map that the host makes, and the tensor that it is of."""

    data: bytes
    tensor: Any


class Given(NamedTuple):
    """values: of small parameters, as numbers; symbols: addresses of those that are larger

    origin: what is added to these, in parameter space, for the generic address
    rooms  what the launch may touch; kept: what must live as long as it runs
    """

    values: dict[str, int]
    symbols: dict[str, int]
    origin: int
    rooms: list[Room]
    kept: list[Any]


def expanded(
    signature: Mapping[str, str], arguments: Mapping[str, Any], maps: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and arguments with each tensor descriptor as what Triton's driver makes of it.

    maps: `tensordesc_meta` of Triton's metadata, of each descriptor
    """
    kinds: dict[str, str] = {}
    values: dict[str, Any] = {}
    left = list(maps)
    for name, kind in signature.items():
        value = arguments[name]
        if not (found := _DESCRIPTOR.match(kind)):
            kinds[name], values[name] = kind, value
            continue
        if not left:
            raise UnknownInstruction(f"{name}, {kind}, of which Triton's metadata says nothing")
        meta = left.pop(0)
        kinds[name], values[name] = MAP, _described(value, meta)
        rank = found[2].count(",") + 1
        for n, (letter, whole) in enumerate([("i32", value.shape), ("i64", value.strides)]):
            for d in range(rank):
                kinds[f"{name}.{n}.{d}"], values[f"{name}.{n}.{d}"] = letter, int(whole[d])
    return kinds, values


def _described(value: Any, meta: Mapping[str, Any]) -> Described:
    shape, size = list(value.shape), meta["elem_size"]
    if value.strides[-1] != 1:
        raise Fault(f"a tensor descriptor of strides {list(value.strides)}: the last must be 1")
    if meta["fp4_padded"]:
        shape[-1] *= 2
    strides = [int(stride) * size for stride in value.strides]
    nan = getattr(value, "padding", "zero") == "nan"
    form = (meta["elem_type"], meta["swizzle"], nan, shape, strides, meta["block_size"])
    return Described(tensor_maps.described(value.base.data_ptr(), *form), value.base)


def buffer(size: int, fill: int = 0) -> tuple[Any, int]:
    """Memory of this process and its address, a multiple of 128; who asked keeps it alive."""
    raw = np.full(size + _ALIGNED, fill, np.uint8)
    start = int(raw.ctypes.data)
    return raw, start + -start % _ALIGNED


def given(
    module: Module, signature: Mapping[str, str], arguments: Mapping[str, Any], scratch: int
) -> Given:
    """Parameters in order, then pointers to `scratch` bytes and to a profile, which is null."""
    names = list(module.parameters)
    if len(names) != len(signature) + 2:
        raise UnknownInstruction(
            f"{module.name} takes {len(names)} parameters, its Program gives {len(signature)}"
            " and Triton two"
        )
    rooms = storages({name: getattr(v, "tensor", v) for name, v in arguments.items()})
    large = {name: bits // 8 for name, bits in module.parameters.items() if bits > 64}
    place, start = buffer(sum(-(-size // _ALIGNED) * _ALIGNED for size in large.values()))
    made = Given(dict.fromkeys(names, 0), {}, start - _SPACE, rooms, [place])
    free = start - int(place.ctypes.data)
    for name, (argument, kind) in zip(names, signature.items(), strict=False):
        value = arguments[argument]
        data = value.data if kind == MAP else packed(kind, value)
        if 8 * len(data) != module.parameters[name]:
            raise UnknownInstruction(
                f"parameter {name} of {module.parameters[name]} bits gets {argument}, {kind}"
            )
        if len(data) <= 8:
            made.values[name] = int.from_bytes(data, "little")
        else:
            place[free : free + len(data)] = np.frombuffer(data, np.uint8)
            address = int(place.ctypes.data) + free
            made.symbols[name] = address - made.origin
            rooms.append(Room.at(f"the parameter {argument}", address, len(data)))
            free += -(-len(data) // _ALIGNED) * _ALIGNED
    if scratch:
        raw, made.values[names[-2]] = buffer(scratch, _SCRATCH_BYTE)
        made.kept.append(raw)
        rooms.append(Room.at("the scratch in global memory", made.values[names[-2]], scratch))
    return made

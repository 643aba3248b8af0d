# SPDX-License-Identifier: Apache-2.0
"""What a launch is given, as a program's parameters see it: bytes of scalars, rooms of tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.memory import Room

__all__ = ["packed", "storages"]

# Triton's name of a scalar type -> struct's.
_SCALARS = {
    **{"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q"},
    **{"u8": "B", "u16": "H", "u32": "I", "u64": "Q"},
    **{"fp16": "e", "fp32": "f", "fp64": "d"},
}


def storages(arguments: Mapping[str, Any]) -> list[Room]:
    """The storages of all tensors, each under the name of the first."""
    rooms: dict[int, Room] = {}
    for name, value in arguments.items():
        if hasattr(value, "untyped_storage"):
            storage = value.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            if size and start not in rooms:
                rooms[start] = Room.at(f"the storage of {name}", start, size)
    return list(rooms.values())


def packed(kind: str, value: Any) -> bytes:
    """An argument of Triton's type `kind`; a tensor as the address of its first element."""
    if kind.startswith("*"):
        address = 0 if value is None else value if isinstance(value, int) else value.data_ptr()
        return struct.pack("<Q", address)
    if kind not in _SCALARS:
        raise UnknownInstruction(f"an argument of type {kind} cannot be passed yet")
    return struct.pack("<" + _SCALARS[kind], value)

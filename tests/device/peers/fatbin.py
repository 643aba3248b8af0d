# SPDX-License-Identifier: Apache-2.0
"""Shared objects with the device code of one architecture: the rest is overwritten with zeros.

Sizes and offsets stay, so nothing has to be linked again, and zeros compress to nothing. The layout
of `.nv_fatbin` is read off files of CUDA 13.0; NVIDIA does not document it. A section is a row of
containers, one for each translation unit:

    container  u32 magic, u16 version, u16 size of this header, u64 bytes that follow
    entry      u16 kind, u16 version, u32 size of this header, u64 size of the payload,
               ... at offset 28 u32 architecture (90, the suffix `a` is a flag elsewhere)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Blanked", "Entry", "blank_other", "containers", "sections"]

MAGIC = 0xBA55ED50
PTX, ELF = 1, 2
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCHITECTURE_AT = 28
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr


@dataclass(frozen=True)
class Entry:
    """Device code of one architecture: `kind` PTX or ELF, its payload in bytes from `at`."""

    kind: int
    architecture: int
    at: int
    size: int


@dataclass(frozen=True)
class Blanked:
    """What was overwritten and what stayed, payload bytes."""

    blanked: int
    kept: int


def sections(image: bytes | bytearray) -> dict[str, tuple[int, int]]:
    """Offset and size of each section of a 64-bit little-endian ELF file, by name.

    Raises ValueError for another file.
    """
    if bytes(image[:6]) != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", image, 0x28)
    stride, count, of_names = struct.unpack_from("<HHH", image, 0x3A)
    rows = [_SECTION.unpack_from(image, table + stride * row) for row in range(count)]
    names = rows[of_names][4]

    def name(row: tuple[int, ...]) -> str:
        start = names + row[0]
        return bytes(image[start : image.index(b"\0", start)]).decode()

    return {name(row): (row[4], row[5]) for row in rows}


def containers(image: bytes | bytearray, start: int, size: int) -> Iterator[list[Entry]]:
    """The entries of each container between `start` and `start + size`.

    Raises ValueError where something else than a container or padding lies.
    """
    at, end = start, start + size
    while at < end:
        magic, _, header, length = _CONTAINER.unpack_from(image, at)
        if magic == 0:  # containers are aligned to 8 bytes
            at += 8
            continue
        if magic != MAGIC:
            raise ValueError(f"no fatbin container at {at:#x}: found {magic:#x}")
        entry, at = at + header, at + header + length
        found = []
        while entry < at:
            kind, _, ahead, payload = _ENTRY.unpack_from(image, entry)
            (architecture,) = struct.unpack_from("<I", image, entry + _ARCHITECTURE_AT)
            found.append(Entry(kind, architecture, entry + ahead, payload))
            entry += ahead + payload
        yield found


def blank_other(image: bytearray, architecture: int) -> Blanked:
    """Overwrite device code that `architecture` does not run, in place.

    PTX of the architecture stays only where a container has no machine code of it. A file
    without `.nv_fatbin` is left alone.
    """
    blanked = kept = 0
    start, size = sections(image).get(".nv_fatbin", (0, 0))
    for entries in containers(image, start, size):
        mine = [entry for entry in entries if entry.architecture == architecture]
        stay = [entry for entry in mine if entry.kind == ELF] or mine
        for entry in entries:
            if entry in stay:
                kept += entry.size
            else:
                image[entry.at : entry.at + entry.size] = bytes(entry.size)
                blanked += entry.size
    return Blanked(blanked, kept)

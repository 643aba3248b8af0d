# SPDX-License-Identifier: Apache-2.0
"""What the ELF file of a GPU program says of itself: its architecture and what it takes.

A small parser: an ELF header, its sections, and NVIDIA's list of attributes are all that is read,
and so nothing has to be installed, whichever disassembler a Triton brings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from archkey.errors import ArchkeyError

__all__ = ["NvInfo", "nv_info", "target_of"]

_EM_CUDA, _EM_AMDGPU = 190, 224  # e_machine: ELF registry of machines

# EF_AMDGPU_MACH, bits 0 to 7 of e_flags: LLVM, "User Guide for AMDGPU Backend", ELF header.
_AMDGPU_MACH = {
    0x2F: "gfx906",
    0x30: "gfx908",
    0x36: "gfx1030",
    0x3F: "gfx90a",
    0x41: "gfx1100",
    0x43: "gfx1150",
    0x44: "gfx1103",
    0x46: "gfx1101",
    0x47: "gfx1102",
    0x48: "gfx1200",
    0x49: "gfx1250",
    0x4A: "gfx1151",
    0x4C: "gfx942",
    0x4E: "gfx1201",
    0x4F: "gfx950",
}

# Attributes of .nv.info: `cuobjdump -elf` names them, `cuobjdump -res-usage` prints their values.
_SVAL = 4  # the one format whose payload has a length of its own
_REQNTID, _FRAME_SIZE, _MIN_STACK_SIZE, _REGCOUNT = 0x10, 0x11, 0x12, 0x2F


@dataclass(frozen=True)
class NvInfo:
    """Of the functions of a cubin the most that any takes.

    registers    32-bit registers a thread
    stack_bytes  local memory a thread, with that of the functions it calls
    threads      threads a block
    """

    registers: int
    stack_bytes: int
    threads: int


def target_of(binary: bytes) -> str:
    """Key of the architecture that an ELF file is for: "cuda_sm90", "rocm_gfx950".

    ArchkeyError for a file that is no 64-bit ELF of a GPU.
    """
    if len(binary) < 64 or binary[:5] != b"\x7fELF\x02":
        found = binary[:8].hex() or "nothing"
        raise ArchkeyError(f"machine code must be a 64-bit ELF file, found {found}; see the build")
    (machine,) = struct.unpack_from("<H", binary, 18)
    (flags,) = struct.unpack_from("<I", binary, 48)
    if machine == _EM_CUDA:
        # EF_CUDA_SM: bits 8 to 15 since version 8 of the ABI (byte 8 of the file), before 0 to 7.
        return f"cuda_sm{flags >> 8 & 0xFF if binary[8] >= 8 else flags & 0xFF}"
    if machine == _EM_AMDGPU:
        return f"rocm_{_AMDGPU_MACH.get(flags & 0xFF, f'mach{flags & 0xFF:#x}')}"
    raise ArchkeyError(f"e_machine {machine} is of no GPU known here: neither CUDA nor AMDGPU")


def nv_info(cubin: bytes) -> NvInfo:
    """What the programs of a cubin take."""
    most = {_REGCOUNT: 0, _FRAME_SIZE: 0, _MIN_STACK_SIZE: 0, _REQNTID: 0}
    for name, content in _sections(cubin):
        if name != ".nv.info" and not name.startswith(".nv.info."):
            continue
        for attribute, payload in _attributes(content):
            if attribute == _REQNTID:
                x, y, z = struct.unpack_from("<III", payload)
                most[attribute] = max(most[attribute], x * y * z)
            elif attribute in most:  # (index of a symbol, value)
                most[attribute] = max(most[attribute], struct.unpack_from("<II", payload)[1])
    stack = max(most[_FRAME_SIZE], most[_MIN_STACK_SIZE])
    return NvInfo(most[_REGCOUNT], stack, most[_REQNTID])


def _sections(binary: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the sections of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", binary, 40)
    size, count, names = struct.unpack_from("<HHH", binary, 58)
    # name, type, flags, address, offset, size, ...
    rows = [struct.unpack_from("<IIQQQQ", binary, table + i * size) for i in range(count)]
    for name, kind, _, _, offset, length in rows:
        if kind == 8:  # SHT_NOBITS: no content in the file
            continue
        start = rows[names][4] + name
        text = binary[start : binary.index(b"\0", start)].decode()
        yield text, binary[offset : offset + length]


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, payload) of a section .nv.info."""
    at = 0
    while at + 4 <= len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, at)
        at += 4
        if form == _SVAL:
            yield attribute, content[at : at + size]
            at += size

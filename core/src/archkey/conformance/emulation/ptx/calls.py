# SPDX-License-Identifier: Apache-2.0
"""What kernels ask of the driver: to print, and to stop when something is not as it should be.

Source: CUDA C++ Programming Guide: Formatted Output; Assertion; PTX ISA: trap.
"""

from __future__ import annotations

import re
import struct
import sys
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.local import LOCAL
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE"]

_LONGEST = 4096
_FIELD = re.compile(r"%([-+ #0]*\d*(?:\.\d+)?)(hh|h|ll|l)?([diuxXcfeEgGps%])")


def _text(S: Any, address: int) -> str:
    """The string in global memory that begins there."""
    found = bytearray()
    while len(found) < _LONGEST:
        letter = int(S.memory.load(np.array([address + len(found)], np.uint64), 1, 1)[0, 0])
        if not letter:
            return found.decode(errors="replace")
        found.append(letter)
    raise Fault(f"a string of more than {_LONGEST} bytes at {address:#x}")


def _own(S: Any, thread: int, address: int, size: int) -> bytes:
    """Bytes of a thread's own memory."""
    parts = S.local.load(np.array([thread]), np.array([address], np.uint64), size, 1)
    return parts.tobytes()


def _printed(S: Any, thread: int, form: str, at: int) -> str:
    """A format with its arguments, which lie one after the other in the thread's memory."""
    place = at

    def field(found: re.Match[str]) -> str:
        nonlocal place
        flags, length, kind = found.groups()
        if kind == "%":
            return "%"
        size = 8 if kind in "feEgGps" or length in ("l", "ll") else 4
        place = -(-place // size) * size
        data = _own(S, thread, place, size)
        place += size
        if kind in "feEgG":
            return f"%{flags}{kind}" % struct.unpack("<d", data)
        value = int.from_bytes(data, "little", signed=kind in "di")
        if kind == "s":
            return f"%{flags}s" % _text(S, value)
        if kind == "p":
            return f"%{flags}s" % hex(value)
        return f"%{flags}{kind.replace('u', 'd')}" % value

    return _FIELD.sub(field, form)


def _print(S: Any, G: Any, form: Array, at: Array, mask: Any) -> Array:
    """vprintf, thread by thread."""
    for n in range(G.n) if mask is None else np.flatnonzero(mask):
        if int(at[n]) and not LOCAL <= int(at[n]) < 2 * LOCAL:
            raise UnknownInstruction("vprintf of what is not in the thread's own memory")
        sys.stdout.write(_printed(S, int(G.tid[n]), _text(S, int(form[n])), int(at[n])))
    return np.zeros(G.n, np.uint32)


def _failed(S: Any, G: Any, message: Array, file: Array, line: Array, mask: Any) -> None:
    """__assertfail: of the first thread that comes here."""
    for n in (range(G.n) if mask is None else np.flatnonzero(mask))[:1]:
        said, where = _text(S, int(message[n])), _text(S, int(file[n]))
        raise Fault(f"assertion {said!r} of {where}:{int(line[n])} in thread {int(G.tid[n])}")


def _trap(G: Any, mask: Any) -> None:
    if mask is None or mask.any():
        raise Fault(f"trap by {G.n if mask is None else int(mask.sum())} threads")


HELPERS: dict[str, Any] = {"print_device": _print, "assert_failed": _failed, "trapped": _trap}


def _vprintf(emitter: Emitter, instruction: Instruction) -> None:
    result, form, at = instruction.operands
    given = f"{emitter.vector(form, 'u8')}, {emitter.vector(at, 'u8')}"
    emitter.write(result, "u4", f"print_device(S, G, {given}, {emitter.mask})")


def _assertfail(emitter: Emitter, instruction: Instruction) -> None:
    message, file, line, _, _ = instruction.operands
    given = f"{emitter.vector(message, 'u8')}, {emitter.vector(file, 'u8')}"
    emitter.line(f"assert_failed(S, G, {given}, {emitter.vector(line, 'u4')}, {emitter.mask})")


def _trap_builder(emitter: Emitter, instruction: Instruction) -> None:
    emitter.line(f"trapped(G, {emitter.mask})")


TABLE: dict[str, Builder] = {
    **{"call.vprintf": _vprintf, "call.__assertfail": _assertfail},
    **dict.fromkeys(("trap", "brkpt"), _trap_builder),
}

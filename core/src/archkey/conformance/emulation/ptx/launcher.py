# SPDX-License-Identifier: Apache-2.0
"""Launches the PTX of a compiled Triton program, with tensors that are in host memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from archkey.conformance.emulation.arguments import packed, storages
from archkey.conformance.emulation.counters import Counters, Place, places
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.ptx.machine import Launch, Order, Workgroup
from archkey.conformance.emulation.ptx.program import Code, load
from archkey.conformance.emulation.ptx.schedule import run
from archkey.conformance.emulation.ptx.shared import BASE
from archkey.conformance.emulation.spread import spread
from archkey.launch import Compiled

__all__ = ["execute", "launcher", "ordered"]

_ORDER: ContextVar[Order | None] = ContextVar("order", default=None)


@contextmanager
def ordered(order: Order) -> Iterator[None]:
    """Within it, launches happen in `order`."""
    token = _ORDER.set(order)
    try:
        yield
    finally:
        _ORDER.reset(token)


def launcher(compiled: Compiled) -> Callable[..., None]:
    """`launch(grid, *arguments)` like that of a driver, in the order of the program's signature.

    A launch raises UnknownInstruction if the program contains what the emulator does not have,
    Fault for what the program must not do.
    """
    text = str(compiled.kernel.asm["ptx"])
    signature = {name: kind for name, kind in compiled.program.signature.items() if kind}
    names = list(compiled.program.signature)
    metadata = compiled.kernel.metadata
    shared_bytes = compiled.shared_memory_bytes

    def launch(grid: tuple[int, int, int], *arguments: Any) -> None:
        if getattr(metadata, "num_ctas", 1) != 1:
            raise UnknownInstruction("clusters of workgroups (num_ctas) are not known")
        if getattr(metadata, "global_scratch_size", 0):
            raise UnknownInstruction("scratch in global memory is not known")
        given = dict(zip(names, arguments, strict=True))
        present = {name: given[name] for name in signature}
        execute(text, grid, signature, present, shared_bytes)

    return launch


def execute(
    text: str,
    grid: tuple[int, int, int],
    signature: Mapping[str, str],
    arguments: Mapping[str, Any],
    shared_bytes: int,
) -> None:
    """Run the kernel in `text`. signature: Triton's types; arguments: tensors and scalars."""
    code = load(text)
    constants = {
        name: ctypes.create_string_buffer(data, len(data))
        for name, data in code.module.constants.items()
    }
    rooms = storages(arguments)
    symbols = {name: BASE for name, size in code.module.shared.items() if size < 0}
    fixed = BASE + shared_bytes
    for name, size in code.module.shared.items():
        if size >= 0:
            fixed = (fixed + 127) // 128 * 128
            symbols[name] = fixed
            fixed += size
    for name, buffer in constants.items():
        symbols[name] = ctypes.addressof(buffer)
        rooms.append(Room.at(f"the variable {name}", symbols[name], len(buffer)))
    launch = Launch(
        *(grid, code.module.threads, fixed - BASE, Memory(rooms)),
        *(_parameters(code, signature, arguments), symbols, _ORDER.get() or Order(), Counters()),
    )
    found = places(grid)
    found.done(spread(_Run(code, launch), found.chosen))


class _Run:
    """One launch, workgroup by workgroup: see `spread.Work`."""

    def __init__(self, code: Code, launch: Launch) -> None:
        self.code, self.launch, self.memory = code, launch, launch.memory
        names = (instruction.name for instruction in code.module.instructions)
        self.atomics = any(re.match(r"(?:atom|red)\.(?:\w+\.)*?global", name) for name in names)

    def once(self, number: int, place: Place) -> None:
        """Run the workgroup at `place`."""
        run(self.code, Workgroup(self.launch, place, self.code.kinds))

    def counted(self) -> Counters:
        """What was done since this was last asked."""
        return self.launch.counters.take()


def _parameters(
    code: Code, signature: Mapping[str, str], arguments: Mapping[str, Any]
) -> dict[str, int]:
    """The arguments in order, then pointers to scratch and to a profile, which are null."""
    names = list(code.module.parameters)
    if len(names) != len(signature) + 2:
        raise UnknownInstruction(
            f"{code.module.name} takes {len(names)} parameters, its Program gives {len(signature)}"
            " and Triton two"
        )
    values = dict.fromkeys(names, 0)
    for name, (argument, kind) in zip(names, signature.items(), strict=False):
        given = packed(kind, arguments[argument])
        if 8 * len(given) != code.module.parameters[name]:
            raise UnknownInstruction(
                f"parameter {name} of {code.module.parameters[name]} bits gets {argument}, {kind}"
            )
        values[name] = int.from_bytes(given, "little")
    return values

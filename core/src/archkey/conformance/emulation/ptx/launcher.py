# SPDX-License-Identifier: Apache-2.0
"""Launches the PTX of a compiled Triton program, with tensors that are in host memory."""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from archkey.conformance.emulation.arguments import packed, storages
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.ptx.counters import Counters
from archkey.conformance.emulation.ptx.machine import Launch, Order, Workgroup
from archkey.conformance.emulation.ptx.program import Code, load
from archkey.conformance.emulation.ptx.schedule import run
from archkey.conformance.emulation.ptx.shared import BASE
from archkey.launch import Compiled

__all__ = ["counting", "execute", "launcher", "ordered"]

_ORDER: ContextVar[Order | None] = ContextVar("order", default=None)
_COUNTERS: ContextVar[tuple[Counters, int] | None] = ContextVar("counters", default=None)


@contextmanager
def ordered(order: Order) -> Iterator[None]:
    """Within it, launches happen in `order`."""
    token = _ORDER.set(order)
    try:
        yield
    finally:
        _ORDER.reset(token)


@contextmanager
def counting(sample: int = 0) -> Iterator[Counters]:
    """Counts what the launches within it do.

    sample  run only so many workgroups of a launch, evenly spaced, and multiply what they did: the
            outputs are of no use then. 0: all
    """
    counters = Counters()
    token = _COUNTERS.set((counters, sample))
    try:
        yield counters
    finally:
        _COUNTERS.reset(token)


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
    counters = Counters()
    launch = Launch(
        *(grid, code.module.threads, fixed - BASE, Memory(rooms)),
        *(_parameters(code, signature, arguments), symbols, _ORDER.get() or Order(), counters),
    )
    with np.errstate(all="ignore"):
        total, sample = _COUNTERS.get() or (Counters(), 0)
        places = [*itertools.product(*(range(n) for n in reversed(grid)))]
        chosen = places[:: -(-len(places) // sample)] if sample else places
        step = _side_by_side(text, launch)
        for n in range(0, len(chosen), step):
            first, *others = [(x, y, z) for z, y, x in chosen[n : n + step]]
            run(code, Workgroup(launch, first, code.kinds, others))
    total.add(counters, len(places) / max(len(chosen), 1))


LANES = 4096
"""Threads that are one vector, at most: more of them do not fit into a cache."""

_ALONE = re.compile(r"tcgen05\.|cp\.async\.bulk|cp\.reduce|tensormap|cluster|setmaxnreg|mapa\.")


@functools.lru_cache(64)
def _is_alone(text: str) -> bool:
    """Whether it uses what a workgroup has one of."""
    return _ALONE.search(text) is not None


def _side_by_side(text: str, launch: Launch) -> int:
    """How many workgroups run together; the number of a warp has 8 bits in `Shared`."""
    if launch.order.warps or launch.threads % 32 or _is_alone(text):
        return 1
    return max(min(LANES, 32 * 200) // launch.threads, 1)


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

# SPDX-License-Identifier: Apache-2.0
"""Launches the PTX of a compiled Triton program, with tensors that are in host memory."""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from archkey.conformance.emulation.counters import Counters, Place, places
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.ptx.accumulators import HOPPER
from archkey.conformance.emulation.ptx.cluster import Cluster
from archkey.conformance.emulation.ptx.local import LOCAL
from archkey.conformance.emulation.ptx.machine import Launch, Order, Workgroup
from archkey.conformance.emulation.ptx.parameters import expanded, given
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


_UNWAITED = (3, 9)
"""From this Triton on, tcgen05.wait::ld may come after the first use of what tcgen05.ld loads.

PTX forbids it; the assembler, which sees both, evidently waits in time.
"""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


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
    strict = _version(getattr(metadata, "triton_version", "")) < _UNWAITED

    def launch(grid: tuple[int, int, int], *arguments: Any) -> None:
        given = dict(zip(names, arguments, strict=True))
        present = {name: given[name] for name in signature}
        maps = getattr(metadata, "tensordesc_meta", None) or ()
        workgroups = math.prod(grid) * getattr(metadata, "num_ctas", 1)
        scratch = getattr(metadata, "global_scratch_size", 0) * workgroups
        execute(text, grid, *expanded(signature, present, maps), shared_bytes, scratch, strict)

    return launch


def execute(
    text: str,
    grid: tuple[int, int, int],
    signature: Mapping[str, str],
    arguments: Mapping[str, Any],
    shared_bytes: int,
    scratch: int = 0,
    strict: bool = True,
) -> None:
    """Run the kernel in `text`. signature: Triton's types; arguments: tensors and scalars.

    grid     of clusters, if it has any: workgroups of one are neighbours along x
    scratch  bytes in global memory of all workgroups together
    strict   tcgen05.ld must be waited for before its registers are read
    """
    code = load(text, strict)
    constants = {
        name: ctypes.create_string_buffer(data, len(data))
        for name, data in code.module.constants.items()
    }
    found = given(code.module, signature, arguments, scratch)
    rooms = found.rooms
    symbols = {name: BASE for name, size in code.module.shared.items() if size < 0}
    fixed = BASE + shared_bytes
    for name, size in code.module.shared.items():
        if size >= 0:
            fixed = (fixed + 127) // 128 * 128
            symbols[name] = fixed
            fixed += size
    symbols |= found.symbols
    symbols |= {name: LOCAL + first for name, first in code.module.local.items()}
    for name, buffer in constants.items():
        symbols[name] = ctypes.addressof(buffer)
        rooms.append(Room.at(f"the variable {name}", symbols[name], len(buffer)))
    size = code.module.cluster
    launch = Launch(
        *((grid[0] * size, *grid[1:]), code.module.threads, fixed - BASE),
        local_bytes=code.module.local_bytes,
        memory=Memory(rooms),
        parameters=found.values,
        symbols=symbols,
        origin=found.origin,
        order=_ORDER.get() or Order(),
        counters=Counters(),
        widths=HOPPER if code.module.target == "sm_90a" else {},
    )
    clusters = places(grid)
    step = _side_by_side(text, launch)
    together = [clusters.chosen[n : n + step] for n in range(0, len(clusters.chosen), step)]
    clusters.done(spread(_Run(code, launch), together))


_ATOMIC = re.compile(r"(?:atom|red)\.(?:\w+\.)*?global|cp\.reduce\.async")


@functools.lru_cache(64)
def _has_atomics(code: Code) -> bool:
    """Whether it changes global memory with some; asked at each launch."""
    return any(_ATOMIC.match(instruction.name) for instruction in code.module.instructions)


class _Run:
    """One launch, piece by piece: see `spread.Work`. A piece is workgroups side by side, or one
    cluster."""

    def __init__(self, code: Code, launch: Launch) -> None:
        self.code, self.launch, self.memory = code, launch, launch.memory
        self.atomics = _has_atomics(code)

    def once(self, number: int, piece: Sequence[Place]) -> None:
        """Run the workgroups, or the cluster, at these places."""
        (x, y, z), *others = piece
        size = self.code.module.cluster
        cluster = Cluster(size, self.code.module.threads)
        ranks = range(x * size, x * size + size)
        groups = [
            Workgroup(self.launch, (n, y, z), self.code.kinds, cluster, others) for n in ranks
        ]
        run(self.code, groups)

    def counted(self) -> Counters:
        """What was done since this was last asked."""
        return self.launch.counters.take()


LANES = 4096
"""Threads that are one vector, at most: more of them do not fit into a cache, and the number of a
warp has 8 bits in `Shared`."""

_ALONE = re.compile(r"tcgen05\.|cp\.async\.bulk|cp\.reduce|tensormap|cluster|mapa\.")


@functools.lru_cache(64)
def _is_alone(text: str) -> bool:
    """Whether it uses what a workgroup has one of."""
    return _ALONE.search(text) is not None


def _side_by_side(text: str, launch: Launch) -> int:
    """How many workgroups run together."""
    if launch.order.warps or launch.threads % 32 or _is_alone(text):
        return 1
    return max(LANES // launch.threads, 1)

# SPDX-License-Identifier: Apache-2.0
"""A workgroup: its registers, its memory, what it still has to do; and a group of its threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.counters import Counters
from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.memory import Memory
from archkey.conformance.emulation.ptx.accumulators import Width
from archkey.conformance.emulation.ptx.asynchronous import Copies, Mbarriers
from archkey.conformance.emulation.ptx.cluster import Cluster
from archkey.conformance.emulation.ptx.local import Local
from archkey.conformance.emulation.ptx.shared import BASE, RANK, Shared
from archkey.conformance.emulation.ptx.tensor_cores import Watch
from archkey.conformance.emulation.ptx.tensor_memory import TensorMemory
from archkey.conformance.emulation.ptx.tma import Bulk
from archkey.conformance.emulation.wave import Array

__all__ = ["Group", "Launch", "Order", "Workgroup"]

_POISON = {
    "pred": np.False_,
    "b16": np.uint16(0x7FFF),
    "b32": np.uint32(0x7FFBADBA),
    "b64": np.uint64(0x7FFBADBA7FFBADBA),
}
"""What a register holds that nobody wrote: NaN of any format."""


@dataclass(frozen=True)
class Order:
    """In which order things happen that a program must not rely on.

    eager  asynchronous work is done at once; else as late as may be
    warps  one warp at a time, drawn anew at each step; else all that stand at one place
    seed   of what is drawn
    """

    eager: bool = False
    warps: bool = False
    seed: int = 0


class Launch(NamedTuple):
    """What all workgroups share.

    parameters  name -> its bits as a number
    local_bytes of each thread
    symbols     variables -> address
    origin      generic address of parameter space
    widths      how matrix units add, by the format of the operands; exactly where it is not said
    """

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    local_bytes: int
    memory: Memory
    parameters: Mapping[str, int]
    symbols: Mapping[str, int]
    origin: int
    order: Order
    counters: Counters
    widths: Mapping[str, Width]


class Workgroup:
    """One workgroup (CTA) while it runs, or several that run side by side.

    place    of the first; places: of each
    threads  of each; total: of all. Threads are numbered through, and so are shared addresses: each
             workgroup has `shared.room` bytes of them
    """

    def __init__(
        self,
        launch: Launch,
        place: tuple[int, int, int],
        kinds: list[str],
        cluster: Cluster,
        others: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.cluster, self.rank = cluster, cluster.add(self)
        self.ended = False
        # Of each thread the phase of the cluster's barrier that it has arrived at; -1: none.
        self.cluster_phase = np.full(launch.threads, -1)
        self.place, self.grid, self.threads = place, launch.grid, launch.threads
        self.places = np.array([place, *others], np.uint32)
        self.total = self.threads * len(self.places)
        self.memory, self.parameters, self.symbols = (
            launch.memory,
            launch.parameters,
            launch.symbols,
        )
        self.origin = launch.origin
        self.order, self.counters, self.widths = launch.order, launch.counters, launch.widths
        poison = {kind: np.full(self.total, value) for kind, value in _POISON.items()}
        self.registers: list[Array] = [poison[kind] for kind in kinds]
        self.shared = Shared(launch.shared_bytes, self.rank, len(self.places))
        self.local = Local(self.total, launch.local_bytes)
        self.copies, self.bulk = Copies(self), Bulk(self)
        # Tensor maps that were written while it ran -> whether a fence has told TMA since.
        self.tensor_maps: dict[int, bool] = {}
        self.mbarriers = Mbarriers(self.shared)
        self.watch = Watch(self.shared)
        self.tensor_memory = TensorMemory(self)
        # Warp -> how many registers it has asked for, in order.
        self.setmaxnreg: dict[int, list[int]] = {}
        self.drawn = random.Random(hash((launch.order.seed, *place)))
        self.work: list[tuple[Callable[[], None], str]] = []
        self.unordered: list[tuple[Callable[[], None], str]] = []

    def symbol(self, G: Group, name: str, kind: Any) -> Array:
        """A variable's address, for each thread of a group."""
        address = self.symbols[name]
        address |= self.rank << RANK if address < 1 << RANK else 0
        found = np.full(G.n, kind(address))
        if len(self.places) > 1 and found[0] < BASE + self.shared.room:  # no pointer is so small
            found += self.homes(G).astype(kind)
        return found

    def homes(self, G: Group) -> Array:
        """Where the shared memory of each thread's workgroup begins, int64."""
        if G.homes is None or G.homes[0] != self.shared.room:
            homes = (G.tid // np.uint32(self.threads)).astype(np.int64) * self.shared.room
            G.homes = (self.shared.room, homes)
        return G.homes[1]

    def census(self, G: Group) -> Array:
        """How many threads of a group are of each workgroup."""
        if G.census is None:
            G.census = np.bincount(G.tid // np.uint32(self.threads), minlength=len(self.places))
        return G.census

    def within(self, G: Group) -> Array:
        """Each thread's number in its workgroup."""
        return G.tid if len(self.places) == 1 else G.tid % np.uint32(self.threads)

    def at(self, G: Group, axis: int) -> Array:
        """Where in the grid each thread's workgroup is."""
        return self.places[G.tid // np.uint32(self.threads), axis]

    def check_alive(self, other: Workgroup) -> None:
        """Fault for another workgroup that looks into the memory of one that is no more."""
        if self.ended and other is not self:
            raise Fault("the shared memory of a workgroup of the cluster that has ended")

    def owner(self, address: int) -> tuple[Workgroup, int]:
        """Whose shared memory an address is in, and the address there without its rank."""
        rank = address >> RANK
        found = self if rank == self.rank else self.cluster.at(rank)
        return found, address & ((1 << RANK) - 1)

    def said(self, where: int | None) -> str:
        """What somebody waits for: an mbarrier at an address, or the cluster's barrier."""
        if where is None:
            return self.cluster.said()
        owner, address = self.owner(where)
        return owner.mbarriers.said(address)

    def check_done(self) -> None:
        """Fault at the end for what is left over."""
        for first in range(0, self.total // 32, 4):
            asked = [self.setmaxnreg.get(warp, []) for warp in range(first, first + 4)]
            if any(one != asked[0] for one in asked):
                raise Fault(f"warps {first} to {first + 3} end after setmaxnreg to {asked}")
        self.watch.check_done()
        self.bulk.check_done()
        self.tensor_memory.check_done()

    def later(self, work: Callable[[], None], name: str, ordered: bool = True) -> None:
        """Asynchronous work: at once, or when no thread can go on. ordered: after what came before

        of the same unit; bulk copies end in any order.
        """
        if self.order.eager:
            work()
        else:
            (self.work if ordered else self.unordered).append((work, name))

    def catch_up(self) -> bool:
        """Do a piece of asynchronous work, drawn of what may come next; False if there is none."""
        which = self.drawn.randrange(len(self.unordered) + bool(self.work)) if self._waits else -1
        if which < 0:
            return False
        work, _ = self.work.pop(0) if which == len(self.unordered) else self.unordered.pop(which)
        work()
        return True

    @property
    def _waits(self) -> bool:
        return bool(self.work or self.unordered)


class Group:
    """Threads that stand at one place.

    tid    their numbers, ascending
    ix     the same as an index: a slice if they are neighbours
    whole  whether they are all threads
    warps  how many they are if each is whole; else 0
    """

    def __init__(self, tid: Array, total: int) -> None:
        self.tid, self.n = tid, len(tid)
        self.whole = self.n == total
        first = int(tid[0]) if self.n else 0
        neighbours = self.n and int(tid[-1]) - first == self.n - 1
        self.ix: Any = slice(first, first + self.n) if neighbours else tid.astype(np.int64)
        self.warps = 0
        if self.n % 32 == 0 and self.n:
            rows = tid.reshape(-1, 32)
            if (rows[:, 0] % 32 == 0).all() and (rows[:, 31] - rows[:, 0] == 31).all():
                self.warps = self.n // 32
        self.spread = self.warps or len(np.unique(tid >> np.uint32(5)))
        self._total = total
        self._parts: dict[bytes, Group] = {}
        # What a Workgroup has found out about it.
        self.homes: tuple[int, Array] | None = None
        self.census: Array | None = None

    def part(self, mask: Array) -> Group:
        """Those of its threads that are chosen."""
        key = mask.tobytes()
        if key not in self._parts:
            self._parts[key] = Group(self.tid[mask], self._total)
        return self._parts[key]

    @staticmethod
    def blocked(over: Any, at: Array | None) -> Any:
        """What a block returns that waits: for whom the wait is over, and for what it is not.

        at: addresses of an mbarrier; None: the cluster's barrier
        """
        return ("blocked", over, None if at is None else int(at[0]))

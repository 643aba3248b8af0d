# SPDX-License-Identifier: Apache-2.0
"""Workgroups that run together and reach each other's shared memory.

A byte of the workgroup of rank r has the address of that byte in a workgroup of its own, and r in
the bits from 24 on. Source: PTX ISA, Cluster of Cooperative Thread Arrays; barrier.cluster; mapa;
State Spaces: shared::cluster.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.moves import elements_of, kinds_of_registers
from archkey.conformance.emulation.ptx.shared import RANK
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "TABLE", "Cluster"]

_OTHERS = 254  # the warp that stores into another workgroup's memory: none of its own


class Cluster:
    """The workgroups, and the barrier of all their threads.

    arrived  threads in this phase; phase: how many are complete
    """

    def __init__(self, size: int, threads: int) -> None:
        self.workgroups: list[Any] = []
        self.size = size
        self.alive = size * threads
        self.arrived = self.phase = 0

    def add(self, workgroup: Any) -> int:
        """The rank of a workgroup that joins."""
        self.workgroups.append(workgroup)
        return len(self.workgroups) - 1

    def at(self, rank: int) -> Any:
        """The workgroup of a rank."""
        if rank >= len(self.workgroups):
            raise Fault(f"shared memory of rank {rank} in a cluster of {len(self.workgroups)}")
        return self.workgroups[rank]

    def arrive(self, count: int) -> None:
        """Threads at the barrier, which do not wait yet."""
        self.arrived += count
        self._turn()

    def left(self, count: int) -> None:
        """Threads that have ended; nobody waits for them."""
        self.alive -= count
        if self.size > 1:
            self._turn()

    def _turn(self) -> None:
        if self.arrived and self.arrived == self.alive:
            self.arrived = 0
            self.phase += 1
            for workgroup in self.workgroups:
                workgroup.mbarriers.changed = True

    def said(self) -> str:
        """What its barrier waits for."""
        return f"the cluster's barrier, where {self.arrived} of {self.alive} threads have arrived"


def _arrive(S: Any, G: Any) -> None:
    waits = S.cluster_phase[G.tid] >= 0
    if waits.any():
        raise Fault("barrier.cluster.arrive again before barrier.cluster.wait")
    S.cluster_phase[G.tid] = S.cluster.phase
    S.shared.publish(G.tid >> np.uint32(5))
    S.cluster.arrive(G.n)


def _wait(S: Any, G: Any) -> Any:
    """Which threads may go on, like a wait for an mbarrier."""
    phase = S.cluster_phase[G.tid]
    if (phase < 0).any():
        raise Fault("barrier.cluster.wait without barrier.cluster.arrive")
    over = phase < S.cluster.phase
    S.cluster_phase[G.tid[over]] = -1
    return True if over.all() else over if over.any() else None


def _mapped(S: Any, at: Array, rank: Array) -> Array:
    if rank.max() >= S.cluster.size:
        raise Fault(f"mapa to rank {rank.max()} of a cluster of {S.cluster.size}")
    return (at & np.uint32((1 << RANK) - 1)) | (rank << np.uint32(RANK))


def _owners(S: Any, at: Array) -> list[tuple[Any, Array]]:
    """(workgroup, which threads) of whose shared memory the addresses are."""
    ranks = at >> np.uint32(RANK)
    return [(S.cluster.at(rank), ranks == rank) for rank in np.unique(ranks).tolist()]


def _load(S: Any, G: Any, at: Array, size: int, count: int, mask: Any) -> Array:
    chosen = np.ones(G.n, np.bool_) if mask is None else mask
    result = np.zeros((count, G.n), f"u{size}")
    if chosen.any():
        for owner, where in _owners(S, at[chosen]):
            there = np.flatnonzero(chosen)[where]
            owner.check_alive(S)
            result[:, there] = owner.shared.load(at[there], size, count)
    return result


def _store(S: Any, G: Any, at: Array, values: list[Array], mask: Any) -> None:
    data = np.stack(values)
    chosen = np.ones(G.n, np.bool_) if mask is None else mask
    if not chosen.any():
        return
    for owner, where in _owners(S, at[chosen]):
        there = np.flatnonzero(chosen)[where]
        owner.check_alive(S)
        warps = G.tid[there].astype(np.int64) >> 5
        who = warps if owner is S else np.full(len(there), _OTHERS)
        owner.shared.store(at[there], data[:, there], who)


HELPERS: dict[str, Any] = {
    **{"cluster_arrive": _arrive, "cluster_wait": _wait, "mapped": _mapped},
    **{"load_cluster": _load, "store_cluster": _store},
}


def _arrive_builder(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.guard is not None:
        raise UnknownInstruction("a barrier under a predicate")
    emitter.line("cluster_arrive(S, G)")


def _wait_builder(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.guard is not None:
        raise UnknownInstruction("a barrier under a predicate")
    name = emitter.fresh()
    emitter.line(f"{name} = cluster_wait(S, G)")
    emitter.line(f"if {name} is not True: return G.blocked({name}, None)")


def _mapa(emitter: Emitter, instruction: Instruction) -> None:
    target, at, rank = instruction.operands
    given = f"{emitter.vector(at, 'u4')}, {emitter.vector(rank, 'u4')}"
    emitter.write(target, "u4", f"mapped(S, {given})")


def _move(load: bool, kind: str, count: int) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        registers, where = instruction.operands if load else instruction.operands[::-1]
        found = elements_of(registers)
        if len(found) != count:
            raise UnknownInstruction(f"{len(found)} registers, {count} are expected")
        at = emitter.shared(where)
        if load:
            call = f"load_cluster(S, G, {at}, {int(kind[1])}, {count}, {emitter.mask})"
            emitter.results(found, kind, call if kind[0] == "u" else f"{call}.view({kind})")
        else:
            given = ", ".join(emitter.vector(one, kind) for one in found)
            emitter.line(f"store_cluster(S, G, {at}, [{given}], {emitter.mask})")

    return build


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {"mapa.shared::cluster.u32": _mapa}
    for aligned in ("", ".aligned"):
        for order in ("", ".release", ".relaxed"):
            table[f"barrier.cluster.arrive{order}{aligned}"] = _arrive_builder
        for order in ("", ".acquire"):
            table[f"barrier.cluster.wait{order}{aligned}"] = _wait_builder
    for (name, kind), count in itertools.product(kinds_of_registers(), (1, 2, 4)):
        if int(kind[1]) * count <= 16:
            many = f".v{count}" if count > 1 else ""
            table[f"ld.shared::cluster{many}.{name}"] = _move(True, kind, count)
            table[f"st.shared::cluster{many}.{name}"] = _move(False, kind, count)
    return table


TABLE = _table()

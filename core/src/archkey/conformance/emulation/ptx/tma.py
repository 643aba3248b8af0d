# SPDX-License-Identifier: Apache-2.0
"""Bulk copies (TMA): boxes of tensors and plain bytes, between global and shared memory.

A load ends when its mbarrier has got its bytes; until then its target has no value. A store keeps
its source until it is waited for. Source: PTX ISA, Data Movement: cp.async.bulk,
cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, commit_group, wait_group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx import boxes, tensor_maps
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.shared import BASE, CHUNK
from archkey.conformance.emulation.ptx.text import Address, Immediate, Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["Bulk", "HELPERS", "TABLE"]


@dataclass
class _Store:
    """thread that issued it, its group (-1: none yet), the source's chunks and what was there.

    write  puts it where it belongs; None once that is done
    read   whether a wait said so
    """

    thread: int
    at: Array
    data: Array
    write: Callable[[], None] | None
    group: int = -1
    read: bool = False


class Bulk:
    """Stores in bulk of a workgroup."""

    def __init__(self, workgroup: Any) -> None:
        self.workgroup = workgroup
        self.open: list[_Store] = []
        self.committed = np.zeros(workgroup.threads, np.int64)

    def add(self, thread: int, at: Array, write: Callable[[Array], None]) -> None:
        """A store of the chunks at `at`; write gets their bytes [chunks, 16]."""
        data = self.workgroup.shared.chunks(at)
        one = _Store(thread, at, data, lambda: write(data))
        self.open.append(one)
        if self.workgroup.order.eager:
            self._write(one)

    def commit(self, G: Any, mask: Any) -> None:
        """cp.async.bulk.commit_group."""
        threads = G.tid if mask is None else G.tid[mask]
        members = set(threads.tolist()) if self.open else set()
        for one in self.open:
            if one.group < 0 and one.thread in members:
                one.group = int(self.committed[one.thread])
        self.committed[threads] += 1

    def wait(self, G: Any, left: int, read: bool, mask: Any) -> None:
        """cp.async.bulk.wait_group: all but the last `left` groups have read, or are there."""
        if not self.open:
            return
        members = set((G.tid if mask is None else G.tid[mask]).tolist())
        kept = []
        for one in self.open:
            done = 0 <= one.group < self.committed[one.thread] - left and one.thread in members
            if done:
                self._released(one)
                if not read:
                    self._write(one)
            if not done or one.write is not None:
                kept.append(one)
        self.open = kept

    def check_done(self) -> None:
        """At the end of a workgroup all is written. Fault if nobody waited for the sources."""
        if any(not one.read for one in self.open):
            raise Fault("a workgroup ends with a bulk store whose source nobody waited for")
        for one in self.open:
            self._write(one)

    def _released(self, one: _Store) -> None:
        if one.read:
            return
        now = self.workgroup.shared.bytes.reshape(-1, CHUNK)[one.at // CHUNK]
        if not np.array_equal(now, one.data):
            raise Fault("the source of a bulk store was overwritten before its wait_group.read")
        one.read = True

    def _write(self, one: _Store) -> None:
        if one.write is not None:
            one.write()
            one.write = None


def _each(G: Any, mask: Any) -> list[int]:
    return list(range(G.n)) if mask is None else np.flatnonzero(mask).tolist()


class _Target(NamedTuple):
    """Where a load goes: a workgroup and the address there, and likewise of its mbarrier."""

    owner: Any
    to: int
    counter: Any
    barrier: int


def _targets(S: Any, to: int, barrier: int, ranks: int, paired: bool) -> list[_Target]:
    """ranks: a bit for each workgroup of the cluster that gets a copy; -1: the one of `to`.

    paired: the mbarrier may be that of the other workgroup of a pair
    """
    owner, where = S.owner(to)
    counter, bar = S.owner(barrier)
    if ranks < 0:
        if counter is not owner and not paired:
            raise Fault("a bulk load and its mbarrier are in two workgroups")
        return [_Target(owner, where, counter, bar)]
    if ranks >> S.cluster.size:
        raise Fault(f"a bulk load for the workgroups {ranks:#b} of a cluster of {S.cluster.size}")
    chosen = [rank for rank in range(S.cluster.size) if ranks >> rank & 1]
    told = [rank & ~1 | counter.rank & 1 if paired else rank for rank in chosen]
    at = S.cluster.at
    return [_Target(at(n), where, at(m), bar) for n, m in zip(chosen, told, strict=True)]


def _arriving(
    S: Any, targets: list[_Target], chunks: Callable[[int], Array], fetch: Callable[[], Array]
) -> None:
    """A load on its way: its chunks get what `fetch` finds, then the mbarrier their bytes."""
    for target in targets:
        target.owner.check_alive(S)
        at = chunks(target.to)
        target.counter.mbarriers.at(target.barrier)
        target.owner.shared.forget_chunks(at)

        def work(target: _Target = target, at: Array = at) -> None:
            target.owner.shared.put_chunks(at, fetch())
            target.counter.mbarriers.transferred(target.barrier, at.size * CHUNK)

        S.later(work, "a bulk load", ordered=False)


def _load_box(
    S: Any, G: Any, rows: bool, to: Array, table: Array, place: tuple[Array, ...], barrier: Array,
    ranks: Any, paired: bool, mask: Any,
) -> None:  # fmt: skip
    for n in _each(G, mask):
        tensor = tensor_maps.loaded(S, int(table[n]))
        box = boxes.cut(tensor, tuple(int(c[n]) for c in place), rows)
        who = -1 if ranks is None else int(ranks[n])
        targets = _targets(S, int(to[n]), int(barrier[n]), who, paired)
        chunks = functools.partial(boxes.chunks_of, box)
        _arriving(S, targets, chunks, functools.partial(boxes.fetched, S, box))


def _store_box(
    S: Any, G: Any, rows: bool, reduction: str, table: Array, place: tuple[Array, ...],
    source: Array, mask: Any,
) -> None:  # fmt: skip
    for n in _each(G, mask):
        tensor = tensor_maps.loaded(S, int(table[n]))
        if tensor.type.padded:
            raise UnknownInstruction("a store of padded elements")
        box = boxes.cut(tensor, tuple(int(c[n]) for c in place), rows)
        at = boxes.chunks_of(box, int(S.shared.local(source[n : n + 1])[0]))

        def write(data: Array, box: boxes.Box = box) -> None:
            if reduction:
                boxes.combined(S, box, data, reduction)
            else:
                boxes.put(S, box, data)

        S.bulk.add(int(G.tid[n]), at, write)


def _plain(to: int, wide: int, size: int) -> Array:
    """Chunks in shared memory of a plain copy. Fault for what is no multiple of 16."""
    if (to - BASE) % CHUNK or wide % CHUNK or size % CHUNK or not size:
        raise Fault(f"a bulk copy of {size} bytes, of {wide:#x}, at byte {to - BASE}: no 16s")
    return to + np.arange(0, size, CHUNK)


def _load_bytes(
    S: Any, G: Any, to: Array, source: Array, size: Array, barrier: Array, mask: Any
) -> None:
    for n in _each(G, mask):
        start, count = int(source[n]), int(size[n])
        targets = _targets(S, int(to[n]), int(barrier[n]), -1, False)

        def chunks(at: int, start: int = start, count: int = count) -> Array:
            return _plain(at, start, count)

        def fetch(start: int = start, count: int = count) -> Array:
            S.counters.copied += count
            words = S.memory.load(np.arange(start, start + count, 8, np.uint64), 8, 1)[0]
            return words.view(np.uint8).reshape(-1, CHUNK)

        _arriving(S, targets, chunks, fetch)


def _store_bytes(S: Any, G: Any, to: Array, source: Array, size: Array, mask: Any) -> None:
    for n in _each(G, mask):
        start, count = int(to[n]), int(size[n])
        at = _plain(int(S.shared.local(source[n : n + 1])[0]), start, count)

        def write(data: Array, start: int = start, count: int = count) -> None:
            S.counters.stored += count
            words = np.ascontiguousarray(data).view(np.uint64).reshape(1, -1)
            S.memory.store(np.arange(start, start + count, 8, np.uint64), words)

        S.bulk.add(int(G.tid[n]), at, write)


HELPERS: dict[str, Any] = {
    **{"load_box": _load_box, "store_box": _store_box},
    **{"load_bytes": _load_bytes, "store_bytes": _store_bytes},
}


def _tensor(emitter: Emitter, operand: Any, count: int) -> str:
    """The address of the map, and the coordinates, of [map, {..}]."""
    if not isinstance(operand, Address) or len(operand.coordinates) != count:
        raise UnknownInstruction(f"{count} coordinates are expected")
    table = emitter.address(replace(operand, coordinates=()), wide=True)
    place = "".join(f"{emitter.vector(c, 'i4')}, " for c in operand.coordinates)
    return f"{table}, ({place})"


def _box_load(count: int, rows: bool) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        to, source, barrier, *rest = instruction.operands
        several = ".multicast::cluster" in instruction.name
        if len(rest) != several + instruction.name.endswith(".L2::cache_hint"):
            raise UnknownInstruction(f"{len(instruction.operands)} operands")
        ranks = emitter.vector(rest[0], "u2") if several else "None"
        emitter.line(
            f"load_box(S, G, {rows}, {emitter.shared(to)}, {_tensor(emitter, source, count)}, "
            f"{emitter.shared(barrier)}, {ranks}, {'cta_group::2' in instruction.name}, "
            f"{emitter.mask})"
        )

    return build


def _box_store(count: int, rows: bool, reduction: str = "") -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        to, source, *rest = instruction.operands
        if len(rest) != instruction.name.endswith(".L2::cache_hint"):
            raise UnknownInstruction(f"{len(instruction.operands)} operands")
        emitter.line(
            f"store_box(S, G, {rows}, {reduction!r}, {_tensor(emitter, to, count)}, "
            f"{emitter.shared(source)}, {emitter.mask})"
        )

    return build


def _bytes_load(emitter: Emitter, instruction: Instruction) -> None:
    to, source, size, barrier = instruction.operands
    where = f"{emitter.shared(to)}, {emitter.address(source, wide=True)}"
    count = emitter.vector(size, "u4")
    emitter.line(f"load_bytes(S, G, {where}, {count}, {emitter.shared(barrier)}, {emitter.mask})")


def _bytes_store(emitter: Emitter, instruction: Instruction) -> None:
    to, source, size = instruction.operands
    where = f"{emitter.address(to, wide=True)}, {emitter.shared(source)}"
    emitter.line(f"store_bytes(S, G, {where}, {emitter.vector(size, 'u4')}, {emitter.mask})")


def _commit(emitter: Emitter, instruction: Instruction) -> None:
    emitter.line(f"S.bulk.commit(G, {emitter.mask})")


def _wait(emitter: Emitter, instruction: Instruction) -> None:
    (left,) = instruction.operands
    if not isinstance(left, Immediate):
        raise UnknownInstruction("a wait for groups whose number is no constant")
    read = instruction.name.endswith(".read")
    emitter.line(f"S.bulk.wait(G, {int(left.value)}, {read}, {emitter.mask})")


def _nothing(emitter: Emitter, instruction: Instruction) -> None:
    """A prefetch."""


_SEVERAL = ".multicast::cluster"
_PAIRS = (".cta_group::1", ".cta_group::2")


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {
        "cp.async.bulk.commit_group": _commit,
        "cp.async.bulk.wait_group": _wait,
        "cp.async.bulk.wait_group.read": _wait,
        "prefetch.tensormap": _nothing,
        "prefetch.param.tensormap": _nothing,
        "cp.async.bulk.prefetch.L2.global": _nothing,
        "cp.async.bulk.global.shared::cta.bulk_group": _bytes_store,
    }
    done = "mbarrier::complete_tx::bytes"
    for space in ("shared::cluster", "shared::cta"):
        table[f"cp.async.bulk.{space}.global.{done}"] = _bytes_load
    for hint in ("", ".L2::cache_hint"):
        for dims, tile, count, rows in (
            *((f"{n}d", tile, n, False) for n in range(1, 6) for tile in ("", ".tile")),
            ("2d", ".tile::gather4", 5, True),
        ):
            for space, more in (
                *(("shared::cta", ""), ("shared::cluster", ""), ("shared::cluster", _SEVERAL)),
                *(("shared::cluster", pair) for pair in _PAIRS),
                *(("shared::cluster", f"{_SEVERAL}{pair}") for pair in _PAIRS),
            ):
                # The mode stands before or after the spaces, by who wrote it.
                for order in (f"{tile}.{space}.global", f".{space}.global{tile}"):
                    name = f"cp.async.bulk.tensor.{dims}{order}.{done}{more}{hint}"
                    table[name] = _box_load(count, rows)
        for dims, tile, count, rows in (
            *((f"{n}d", tile, n, False) for n in range(1, 6) for tile in ("", ".tile")),
            ("2d", ".tile::scatter4", 5, True),
        ):
            for order in (f"{tile}.global.shared::cta", f".global.shared::cta{tile}"):
                name = f"cp.async.bulk.tensor.{dims}{order}.bulk_group{hint}"
                table[name] = _box_store(count, rows)
    for n in range(1, 6):
        table[f"cp.async.bulk.prefetch.tensor.{n}d.L2.global"] = _nothing
        for operation in ("add", "min", "max", "and", "or", "xor"):
            for tile in ("", ".tile"):
                key = f"cp.reduce.async.bulk.tensor.{n}d.global.shared::cta.{operation}{tile}"
                table[f"{key}.bulk_group"] = _box_store(n, False, operation)
    return table


TABLE = _table()

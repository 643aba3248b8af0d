# SPDX-License-Identifier: Apache-2.0
"""Workgroups of a launch over processes: the same bytes, counts and faults as one after the other.

A launch that takes longer than a moment forks. Each process runs its share on the memory as it was
then, and sends what it stored; this process stores it, in the order of the workgroups. So what a
workgroup stores is not seen by those of other processes, as on a card it need not be; programs with
atomics on global memory, which may rely on it, stay in one process.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from archkey.conformance.emulation.counters import Counters
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.memory import Memory
from archkey.conformance.emulation.processes import allowed

__all__ = ["Work", "spread"]

MOMENT = 0.5
"""Seconds that the rest of a launch must be expected to take for processes to be started."""


T = TypeVar("T")
Piece = TypeVar("Piece", contravariant=True)
"""The place of a workgroup, or those of several that run side by side."""


class Work(Protocol[Piece]):
    """A launch, piece by piece.

    memory   all that it may touch
    atomics  whether it changes global memory with some
    """

    memory: Memory
    atomics: bool

    def once(self, number: int, piece: Piece) -> None:
        """Run one of those that were chosen: the `number`-th."""
        ...

    def counted(self) -> Counters:
        """What was done since this was last asked."""
        ...


class _Share(NamedTuple):
    """What a process did: stores of each piece; the piece that failed, and how."""

    stores: dict[int, list[tuple[Any, Any]]]
    counters: Counters
    ended: tuple[int, Exception] | None


def spread(work: Work[T], chosen: Sequence[T]) -> Counters:
    """Run all; what was done. Raises what the first of them that fails raises."""
    many = 1 if work.atomics else allowed()
    numbers = range(len(chosen))
    begin = time.monotonic()
    for number in numbers:
        if many > 1 and (left := len(chosen) - number) > 1:
            passed = time.monotonic() - begin
            if passed * left > MOMENT * max(number, 1):
                return _forked(work, chosen, number, min(many, left))
        with np.errstate(all="ignore"):
            work.once(number, chosen[number])
    return work.counted()


def _forked(work: Work[T], chosen: Sequence[T], first: int, many: int) -> Counters:
    """Run those from `first` on in `many` processes."""
    total, context = work.counted(), multiprocessing.get_context("fork")
    shares: list[_Share] = []
    workers = {}
    try:
        for n in range(many):
            receive, send = context.Pipe(duplex=False)
            numbers = range(first + n, len(chosen), many)
            worker = context.Process(target=_share, args=(work, chosen, numbers, send), daemon=True)
            worker.start()
            send.close()
            workers[receive] = worker
        waiting = dict(workers)
        while waiting:
            ready = wait(list(waiting))
            for receive in [one for one in waiting if one in ready]:
                worker = waiting.pop(receive)
                try:
                    shares.append(receive.recv())
                except EOFError:
                    worker.join()
                    said = f"a process that ran workgroups ended with exit code {worker.exitcode}"
                    raise RuntimeError(said) from None
    finally:
        for receive, worker in workers.items():
            worker.kill()  # no harm where it has ended
            worker.join()
            receive.close()
    ended = [share.ended for share in shares if share.ended]
    if ended:
        raise min(ended, key=lambda one: one[0])[1]
    stores = {number: stored for share in shares for number, stored in share.stores.items()}
    for number in sorted(stores):
        work.memory.apply(stores[number])
    for share in shares:
        total.add(share.counters)
    return total


def _share(work: Work[T], chosen: Sequence[T], numbers: Sequence[int], send: Connection) -> None:
    """In a process of its own: run some, send what they did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    stores, ended = {}, None
    with np.errstate(all="ignore"):
        for number in numbers:
            try:
                with work.memory.recorded() as found:
                    work.once(number, chosen[number])
            except (Fault, UnknownInstruction) as error:
                ended = (number, type(error)(str(error)))
                break
            stores[number] = [(stored.addresses, stored.values) for stored in found]
    send.send(_Share(stores, work.counted(), ended))
    send.close()

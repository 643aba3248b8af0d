# SPDX-License-Identifier: Apache-2.0
"""mbarriers: arrivals and bytes that a phase waits for, and who waits for it.

Source: PTX ISA, Parallel Synchronization and Communication: mbarrier.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.shared import BASE
from archkey.conformance.emulation.ptx.text import Instruction
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "Mbarriers", "TABLE"]


@dataclass
class _Mbarrier:
    """count: arrivals of a phase; left: of this one; bytes: that it still waits for."""

    count: int
    left: int
    bytes: int = 0
    phase: int = 0


class Mbarriers:
    """Those of a workgroup, by address."""

    _MARK = np.frombuffer(b"mbarrier", np.uint8)

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self.known: dict[int, _Mbarrier] = {}
        self.changed = False

    def init(self, at: int, count: int) -> None:
        """mbarrier.init. Fault for one that is in use.

        Triton 3.6 initialises some barriers of a warp-specialised loop twice before anybody uses
        them; that changes nothing, though PTX asks for mbarrier.inval first.
        """
        self.shared.check(np.array([at], np.uint32), 8, 8)
        if not 0 < count < 1 << 20:
            raise Fault(f"an mbarrier for {count} arrivals")
        fresh = _Mbarrier(count, count)
        if at in self.known and self._intact(at) and self.known[at] != fresh:
            raise Fault(f"the mbarrier at {at - BASE} is initialised again without mbarrier.inval")
        self.shared.bytes[at : at + 8] = self._MARK
        self.shared.forget(at, 8)
        self.known[at] = fresh

    def invalidate(self, at: int) -> None:
        """mbarrier.inval."""
        self.at(at)
        del self.known[at]
        self.shared.forget(at, 8)

    def at(self, at: int) -> _Mbarrier:
        """The mbarrier. Fault if there is none, or what it was is overwritten."""
        if at not in self.known or not self._intact(at):
            raise Fault(f"there is no initialised mbarrier at byte {at - BASE} of shared memory")
        return self.known[at]

    def arrive(self, at: int, count: int = 1, more: int = 0) -> None:
        """`count` arrivals, and `more` bytes to wait for."""
        barrier = self.at(at)
        if barrier.left < count:
            raise Fault(
                f"the mbarrier at {at - BASE} gets {count} arrivals, it expects {barrier.left} "
                f"more of {barrier.count}"
            )
        barrier.bytes += more
        barrier.left -= count
        self._turn(barrier)

    def told(self, at: int, barrier: _Mbarrier) -> None:
        """An arrival that was on its way, at what was `barrier` when it set out.

        Triton 3.6 invalidates mbarriers of a warp-specialised loop while products run that still
        tell them. PTX does not define that; as long as nobody uses the memory again, nothing comes
        of it. Fault if somebody does.
        """
        unused = at not in self.known and not self.shared.written[at : at + 8].any()
        if self.known.get(at) is barrier or not unused:
            self.arrive(at)

    def transferred(self, at: int, count: int) -> None:
        """`count` bytes of a copy have come."""
        barrier = self.at(at)
        barrier.bytes -= count
        self._turn(barrier)

    def over(self, at: int, parity: int) -> bool:
        """Whether the phase of that parity is complete."""
        return self.at(at).phase & 1 != parity & 1

    def said(self, at: int) -> str:
        """What it waits for."""
        barrier = self.known.get(at)
        if barrier is None:
            return "nothing"
        missing = f"{barrier.left} of {barrier.count} arrivals and {barrier.bytes} bytes"
        return f"{missing} in phase {barrier.phase}"

    def _turn(self, barrier: _Mbarrier) -> None:
        if not barrier.left and not barrier.bytes:
            barrier.phase += 1
            barrier.left = barrier.count
            self.changed = True

    def _intact(self, at: int) -> bool:
        return (
            bool((self.shared.bytes[at : at + 8] == self._MARK).all())
            and not self.shared.written[at : at + 8].any()
        )


def _each(at: Array, mask: Any) -> list[int]:
    return (at if mask is None else at[mask]).tolist()


def _own(S: Any, at: Array, mask: Any) -> list[int]:
    """Addresses in the workgroup's own shared memory, without its rank."""
    return _each(S.shared.local(at if mask is None else at[mask]), None)


def _init(S: Any, at: Array, count: Array, mask: Any) -> None:
    for one, arrivals in zip(_own(S, at, mask), _each(count, mask), strict=True):
        S.mbarriers.init(one, arrivals)


def _invalidate(S: Any, at: Array, mask: Any) -> None:
    for one in _own(S, at, mask):
        S.mbarriers.invalidate(one)


def _arrive(S: Any, G: Any, at: Array, count: Array, more: Array, mask: Any) -> None:
    S.shared.publish(G.tid >> np.uint32(5))
    for one, arrivals, size in zip(
        _each(at, mask), _each(count, mask), _each(more, mask), strict=True
    ):
        owner, where = S.owner(one)
        owner.mbarriers.arrive(where, arrivals, size)


def _expect(S: Any, at: Array, more: Array, mask: Any) -> None:
    for one, size in zip(_each(at, mask), _each(more, mask), strict=True):
        owner, where = S.owner(one)
        owner.mbarriers.arrive(where, 0, size)


def _arrive_after_copies(S: Any, G: Any, at: Array, mask: Any) -> None:
    """Each thread arrives once all of its copies are made."""
    part = G if mask is None else G.part(mask)
    if not part.n:
        return
    addresses = _own(S, at, mask)

    def work() -> None:
        S.copies.wait_all(part)
        for one in addresses:
            S.mbarriers.arrive(one)

    S.later(work, "an arrival after cp.async")


def _wait(S: Any, G: Any, at: Array, parity: Array, mask: Any) -> Any:
    """Which threads may go on: True, None (none of them), or an array."""
    pairs = np.stack([at.astype(np.int64), parity.astype(np.int64)])
    if mask is not None:
        raise UnknownInstruction("a wait for an mbarrier under a predicate")
    pairs[0] = S.shared.local(pairs[0])
    if (pairs == pairs[:, :1]).all():
        return True if S.mbarriers.over(*map(int, pairs[:, 0])) else None
    each, which = np.unique(pairs, axis=1, return_inverse=True)
    over = np.array([S.mbarriers.over(int(a), int(p)) for a, p in each.T])[which.reshape(-1)]
    return True if over.all() else over if over.any() else None


HELPERS: dict[str, Any] = {
    **{"mbarrier_init": _init, "mbarrier_inval": _invalidate, "mbarrier_arrive": _arrive},
    **{"mbarrier_expect": _expect, "arrive_after_copies": _arrive_after_copies},
    "mbarrier_wait": _wait,
}


def _on_mbarrier(text: str, operands: tuple[str, ...], state: bool = False) -> Builder:
    """text: {at} the address, {0}, {1} the operands after it; state: `_` stands before it."""

    def build(emitter: Emitter, instruction: Instruction) -> None:
        given = list(instruction.operands)
        if state and given.pop(0) is not None:
            raise UnknownInstruction("the state that an arrival returns")
        where, *rest = given
        kinds = operands
        if len(rest) > len(kinds):
            raise UnknownInstruction(f"{len(rest)} operands")
        values = [emitter.vector(o, kind) for o, kind in zip(rest, kinds, strict=False)]
        values += [f"full(G.n, u4(1))"] * (len(kinds) - len(rest))  # noqa: F541
        at = emitter.shared(where)
        emitter.line(text.format(*values, at=at, mask=emitter.mask))

    return build


def _try_wait(emitter: Emitter, instruction: Instruction) -> None:
    """Blocks until the phase is complete, which it may; the schedule runs it again."""
    target, where, parity, *_ = instruction.operands
    name = emitter.fresh()
    at = emitter.shared(where)
    emitter.line(
        f"{name} = mbarrier_wait(S, G, {at}, {emitter.vector(parity, 'u4')}, {emitter.mask})"
    )
    emitter.line(f"if {name} is not True: return G.blocked({name}, {at})")
    emitter.write(target, "pred", "full(G.n, np.True_)")


_EXPECT = "mbarrier_expect(S, {at}, {0}, {mask})"
_ARRIVE_EXPECT = "mbarrier_arrive(S, G, {at}, full(G.n, u4(1)), {0}, {mask})"
_ARRIVE = "mbarrier_arrive(S, G, {at}, {0}, full(G.n, u4(0)), {mask})"
_INIT = "mbarrier_init(S, {at}, {0}, {mask})"
_INVAL = "mbarrier_inval(S, {at}, {mask})"
_AFTER = "arrive_after_copies(S, G, {at}, {mask})"


_ORDERS = ("release", "relaxed")


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for space in ("shared", "shared::cta"):
        table |= {
            f"mbarrier.init.{space}.b64": _on_mbarrier(_INIT, ("u4",)),
            f"mbarrier.inval.{space}.b64": _on_mbarrier(_INVAL, ()),
            f"cp.async.mbarrier.arrive.noinc.{space}.b64": _on_mbarrier(_AFTER, ()),
        }
        # The order of memory changes nothing, as everything is ordered.
        for way, order, scope in itertools.product(
            ("try_wait", "test_wait"), ("acquire", "relaxed"), ("cta", "cluster")
        ):
            table[f"mbarrier.{way}.parity.{space}.b64"] = _try_wait
            table[f"mbarrier.{way}.parity.{order}.{scope}.{space}.b64"] = _try_wait
    for space in ("shared", "shared::cta", "shared::cluster"):
        for order in ("", *(f".{o}.{s}" for o in _ORDERS for s in ("cta", "cluster"))):
            name = f"{order}.{space}.b64"
            table[f"mbarrier.arrive{name}"] = _on_mbarrier(_ARRIVE, ("u4",), True)
            table[f"mbarrier.arrive.expect_tx{name}"] = _on_mbarrier(_ARRIVE_EXPECT, ("u4",), True)
            table[f"mbarrier.expect_tx{name}"] = _on_mbarrier(_EXPECT, ("u4",))
    return table


TABLE = _table()

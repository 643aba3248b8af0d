# SPDX-License-Identifier: Apache-2.0
"""Instructions in which the lanes of a warp take part together: shuffles, votes, reductions.

All 32 lanes have to be there. Source: PTX ISA, Data Movement: shfl.sync; Parallel Synchronization:
vote.sync, redux.sync, elect.sync, activemask.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction, Operand
from archkey.conformance.emulation.wave import Array

__all__ = ["HELPERS", "LANES", "TABLE", "warps"]

LANES = 32


def warps(G: Any) -> int:
    """How many warps the group is. Fault unless each is whole."""
    if not G.warps:
        raise Fault("lanes of a warp are elsewhere at an instruction of the whole warp")
    return int(G.warps)


def _shuffle(G: Any, mode: str, value: Array, by: Any, bounds: int) -> tuple[Array, Array]:
    """(the value of another lane, whether there is one)."""
    if not isinstance(by, np.ndarray):
        lanes, valid = _lanes(mode, int(by) & 31, bounds)
        return value.reshape(warps(G), LANES)[:, lanes].reshape(-1), np.tile(valid, G.warps)
    table = np.broadcast_to(np.asarray(by, np.uint32), (G.n,)).reshape(warps(G), LANES)
    source, valid = _sources(mode, (table & 31).astype(np.int64), bounds)
    taken = np.take_along_axis(value.reshape(-1, LANES), source, 1)
    return taken.reshape(-1), np.broadcast_to(valid, taken.shape).reshape(-1)


@functools.lru_cache(256)
def _lanes(mode: str, distance: int, bounds: int) -> tuple[Array, Array]:
    """Of each lane of a warp: where its value comes from, and whether there is such a lane."""
    source, valid = _sources(mode, np.full((1, LANES), distance), bounds)
    return source[0], np.broadcast_to(valid, source.shape)[0]


def _sources(mode: str, distance: Array, bounds: int) -> tuple[Array, Array]:
    """The same of distances, or lanes, [warps, lanes]."""
    lane = np.arange(LANES, dtype=np.int64)[None]
    clamp, segment = bounds & 31, bounds >> 8 & 31
    first = lane & segment
    last = first | (clamp & ~segment)
    if mode == "up":
        source, valid = lane - distance, lane - distance >= last
    elif mode == "down":
        source, valid = lane + distance, lane + distance <= last
    elif mode == "bfly":
        source, valid = lane ^ distance, (lane ^ distance) <= last
    else:
        source = first | (distance & ~segment)
        valid = source <= last
    return np.where(valid, source, lane), valid


def _butterfly(G: Any, value: Array, distance: int) -> Array:
    """shfl.sync.bfly of the whole warp by a constant."""
    return value.reshape(warps(G), LANES)[:, np.arange(LANES) ^ distance].reshape(-1)


def _reduce(G: Any, apply: Any, value: Array) -> Array:
    # Sums of 32 bits would be of 64 otherwise.
    rows = apply.reduce(value.reshape(warps(G), LANES), axis=1, dtype=value.dtype)
    return np.repeat(rows, LANES)


def _ballot(G: Any, value: Array) -> Array:
    lanes = value.reshape(warps(G), LANES).astype(np.uint32) << np.arange(LANES, dtype=np.uint32)
    return np.repeat(np.bitwise_or.reduce(lanes, axis=1), LANES)


def _vote(G: Any, which: str, value: Array) -> Array:
    lanes = value.reshape(warps(G), LANES)
    return np.repeat(lanes.all(1) if which == "all" else lanes.any(1), LANES)


def _elected(G: Any) -> Array:
    warps(G)
    return (G.tid & np.uint32(31)) == 0


HELPERS: dict[str, Any] = {
    **{"shuffle": _shuffle, "butterfly": _butterfly, "reduce_warp": _reduce, "ballot": _ballot},
    **{"vote": _vote, "elected": _elected, "whole_warps": warps},
}


def _whole(operand: Operand) -> None:
    """Refuses a mask of lanes that is a constant and not all of them."""
    if isinstance(operand, Immediate) and int(operand.value) % (1 << 32) != 0xFFFFFFFF:
        raise UnknownInstruction(f"a mask of some lanes, {operand.value}")


def _shfl(mode: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        *targets, value, by, bounds, members = instruction.operands
        _whole(members)
        if not isinstance(bounds, Immediate):
            raise UnknownInstruction("shfl.sync with bounds that are no constant")
        source = emitter.vector(value, "u4")
        if (
            mode == "bfly"
            and isinstance(by, Immediate)
            and int(bounds.value) == 31
            and len(targets) == 1
        ):
            emitter.write(targets[0], "u4", f"butterfly(G, {source}, {int(by.value) & 31})")
            return
        name = emitter.fresh()
        call = f"shuffle(G, {mode!r}, {source}, {emitter.read(by, 'u4')}, {int(bounds.value)})"
        emitter.line(f"{name} = {call}")
        for n, target in enumerate(targets):
            emitter.write(target, ("u4", "pred")[n], f"{name}[{n}]")

    return build


def _redux(kind: str, apply: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, value, members = instruction.operands
        emitter.line(f"all_members(G, {emitter.vector(members, 'u4')})")
        emitter.write(target, kind, f"reduce_warp(G, {apply}, {emitter.vector(value, kind)})")

    return build


def _all_members(G: Any, mask: Array) -> None:
    if (mask != np.uint32(0xFFFFFFFF)).any():
        raise UnknownInstruction("a mask of some lanes")
    warps(G)


HELPERS["all_members"] = _all_members


def _elect(emitter: Emitter, instruction: Instruction) -> None:
    target, chosen, members = instruction.operands
    _whole(members)
    name = emitter.fresh()
    emitter.line(f"{name} = elected(G)")
    emitter.write(target, "u4", "full(G.n, u4(0))")
    emitter.write(chosen, "pred", name)


def _vote_builder(which: str) -> Builder:
    def build(emitter: Emitter, instruction: Instruction) -> None:
        target, value, members = instruction.operands
        _whole(members)
        if which == "ballot":
            emitter.write(target, "u4", f"ballot(G, {emitter.vector(value, 'pred')})")
        else:
            emitter.write(target, "pred", f"vote(G, {which!r}, {emitter.vector(value, 'pred')})")

    return build


TABLE: dict[str, Builder] = {
    **{f"shfl.sync.{mode}.b32": _shfl(mode) for mode in ("up", "down", "bfly", "idx")},
    **{
        f"redux.sync.{name}.{sign}32": _redux(kind, f"np.{call}")
        for name, call in (("add", "add"), ("min", "minimum"), ("max", "maximum"))
        for sign, kind in (("s", "i4"), ("u", "u4"))
    },
    **{
        f"redux.sync.{name}.b32": _redux("u4", f"np.bitwise_{name}")
        for name in ("and", "or", "xor")
    },
    "redux.sync.min.f32": _redux("f4", "np.fmin"),
    "redux.sync.max.f32": _redux("f4", "np.fmax"),
    "redux.sync.min.NaN.f32": _redux("f4", "np.minimum"),
    "redux.sync.max.NaN.f32": _redux("f4", "np.maximum"),
    "elect.sync": _elect,
    **{f"vote.sync.{which}.pred": _vote_builder(which) for which in ("all", "any")},
    "vote.sync.ballot.b32": _vote_builder("ballot"),
}

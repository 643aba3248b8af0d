# SPDX-License-Identifier: Apache-2.0
"""Branches, barriers, fences, and what changes no value.

Everything here is ordered, so fences matter only between proxies. Early starts of a next kernel
(griddepcontrol) end at once, as launches do not overlap. Source: PTX ISA, Control Flow; Parallel
Synchronization and Communication; Miscellaneous.
"""

from __future__ import annotations

from typing import Any

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.collectives import warps
from archkey.conformance.emulation.ptx.generate import Builder, Emitter
from archkey.conformance.emulation.ptx.text import Immediate, Instruction

__all__ = ["HELPERS", "TABLE"]


def _barrier(emitter: Emitter, instruction: Instruction) -> None:
    """Leaves (number, threads) as the last line; 0 threads: all."""
    numbers = [o.value for o in instruction.operands if isinstance(o, Immediate)]
    if len(numbers) != len(instruction.operands) or not 1 <= len(numbers) <= 2:
        raise UnknownInstruction("a barrier whose number is no constant")
    count = int(numbers[1]) if len(numbers) > 1 else 0
    if not 0 <= int(numbers[0]) < 16 or count % 32:
        raise UnknownInstruction(f"barrier {numbers}")
    emitter.line(f"({int(numbers[0])}, {count})")


def _branch_table(emitter: Emitter, instruction: Instruction) -> None:
    """Leaves the numbers of the branches as the last line."""
    emitter.line(emitter.vector(instruction.operands[0], "u4"))


def _nothing(emitter: Emitter, instruction: Instruction) -> None:
    """Order, speed or registers of the hardware: no value changes."""


def _warp_barrier(emitter: Emitter, instruction: Instruction) -> None:
    emitter.line("whole_warps(G)")


def _proxy_fence(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.guard is not None:
        raise UnknownInstruction("a fence under a predicate")
    emitter.line("S.shared.fence(G.tid >> u4(5))")


def _registers(S: Any, G: Any, count: int) -> None:
    """setmaxnreg: the warps of a warp group one after the other to the same counts."""
    if count % 8 or not 24 <= count <= 256 or not warps(G):
        raise Fault(f"setmaxnreg to {count} registers by {G.n} threads")
    for warp in (G.tid[::32] >> 5).tolist():
        own = S.setmaxnreg.setdefault(warp, [])
        own.append(count)
        for other in range(warp // 4 * 4, warp // 4 * 4 + 4):
            if S.setmaxnreg.get(other, [])[len(own) - 1 : len(own)] not in ([], [count]):
                raise Fault(
                    f"setmaxnreg by warp {warp} to {own} registers, by warp {other} of the same "
                    f"warp group to {S.setmaxnreg[other]}"
                )


def _setmaxnreg(emitter: Emitter, instruction: Instruction) -> None:
    (count,) = instruction.operands
    if not isinstance(count, Immediate):
        raise UnknownInstruction("setmaxnreg to no constant")
    emitter.line(f"registers_of_warps(S, G, {int(count.value)})")


HELPERS: dict[str, Any] = {"registers_of_warps": _registers}

TABLE: dict[str, Builder] = {
    **dict.fromkeys(("bra", "bra.uni", "ret", "exit"), _nothing),
    **{
        name: _barrier
        for base in ("bar.sync", "barrier.sync", "barrier.cta.sync")
        for name in (base, f"{base}.aligned")
    },
    **dict.fromkeys(("brx.idx", "brx.idx.uni"), _branch_table),
    "bar.warp.sync": _warp_barrier,
    **dict.fromkeys(
        (
            *("fence.proxy.async.shared::cta", "fence.proxy.async"),
            *("fence.proxy.async.shared::cluster", "fence.proxy.async.global"),
        ),
        _proxy_fence,
    ),
    **dict.fromkeys(
        (
            *("membar.gl", "membar.cta", "membar.sys"),
            *(
                f"fence.{o}.{s}"
                for o in ("acq_rel", "sc")
                for s in ("cta", "cluster", "gpu", "sys")
            ),
        ),
        _nothing,
    ),
    **{f"setmaxnreg.{way}.sync.aligned.u32": _setmaxnreg for way in ("inc", "dec")},
    **dict.fromkeys(("griddepcontrol.wait", "griddepcontrol.launch_dependents"), _nothing),
    "fence.mbarrier_init.release.cluster": _nothing,
    "nanosleep.u32": _nothing,
    # A prefetch of an address that is nobody's does nothing on the hardware either.
    **dict.fromkeys(("prefetch.global.L1", "prefetch.global.L2"), _nothing),
}

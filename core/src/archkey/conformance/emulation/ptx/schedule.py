# SPDX-License-Identifier: Apache-2.0
"""Runs a workgroup: which threads go next, where they meet again, and when nobody can go on.

Threads at one place are a group. The group that is least far in the text goes first, so that
those which parted meet again behind the branch. Source: PTX ISA, Parallel Synchronization: bar.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.machine import Group, Workgroup
from archkey.conformance.emulation.ptx.program import Code
from archkey.conformance.emulation.wave import Array

__all__ = ["run"]


class _Strand:
    """Threads that are run together: all, or one warp. places: block -> its threads there."""

    def __init__(self, group: Group) -> None:
        self.places: dict[int, Group] = {0: group}


class _Run:
    """The state of a workgroup's threads."""

    def __init__(self, code: Code, workgroup: Workgroup) -> None:
        self.code, self.workgroup = code, workgroup
        self.total = workgroup.total
        everybody = np.arange(self.total, dtype=np.uint32)
        warps = [everybody[n : n + 32] for n in range(0, self.total, 32)]
        parts = warps if workgroup.order.warps else [everybody]
        self.strands = [_Strand(self._group(part)) for part in parts]
        self.waiting: list[tuple[_Strand, int, Group, int]] = []
        self.barriers: dict[int, list[tuple[_Strand, int, Group, int]]] = {}
        # Warps that go alone, on the way to what a warp group does together.
        self.gathered: dict[tuple[int, int], list[tuple[_Strand, Group]]] = {}
        self.complete: list[tuple[int, list[tuple[_Strand, Group]]]] = []
        self.ended = 0
        self.counts = [0] * len(code.blocks)

    def _group(self, tid: Array) -> Group:
        key = tid.tobytes()
        found = self.code.groups.get((self.total, key))
        if found is None:
            found = self.code.groups[(self.total, key)] = Group(tid, self.total)
        return found

    def advance(self, steps: int = -1) -> bool:
        """Until no thread can go on, or for so many steps; whether any went."""
        drawn, order = self.workgroup.drawn, self.workgroup.order
        moved = False
        while steps:
            if self.workgroup.mbarriers.changed:
                self._wake()
            ready = [strand for strand in self.strands if strand.places]
            if self.complete:
                self._perform(*self.complete.pop())
            elif ready:
                strand = drawn.choice(ready) if order.warps else ready[0]
                at = min(strand.places)
                self._perform(at, [(strand, strand.places.pop(at))])
            else:
                break
            moved = True
            steps -= 1
        return moved

    @property
    def done(self) -> bool:
        """Whether all threads have ended."""
        return self.ended == self.total

    def _perform(self, at: int, parts: list[tuple[_Strand, Group]]) -> None:
        """One block of the threads of these strands together."""
        group = parts[0][1]
        if len(parts) > 1:
            group = self._group(np.sort(np.concatenate([part.tid for _, part in parts])))
        self.counts[at] += group.spread
        answer = self.code.call(at, self.workgroup, group)
        for strand, part in parts:
            mine = answer if len(parts) == 1 else _share(answer, group, part)
            self._follow(strand, at, part, mine)

    def _follow(self, strand: _Strand, at: int, group: Group, answer: Any) -> None:
        """Where a group goes after a block that returned `answer`."""
        block = self.code.blocks[at]
        following, target = at + 1, block.target if block.ends == "branch" else -1
        if type(answer) is tuple and answer[0] == "blocked":
            _, over, where = answer
            if over is None:
                self.waiting.append((strand, at, group, where))
            else:
                self.waiting.append((strand, at, group.part(~over), where))
                self._arrive(strand, at, group.part(over))
        elif block.ends == "fall":
            self._arrive(strand, following, group)
        elif block.ends == "barrier":
            self._barrier(strand, following, group, *answer)
        elif block.ends == "table":
            for number in np.unique(answer).tolist():
                if number >= len(block.targets):
                    raise Fault(f"branch {number} of a table of {len(block.targets)}")
                self._arrive(strand, block.targets[number], group.part(answer == number))
        elif answer is None or answer.all():
            self._leave(strand, target, group)
        elif not answer.any():
            self._arrive(strand, following, group)
        else:
            self._leave(strand, target, group.part(answer))
            self._arrive(strand, following, group.part(~answer))

    def _leave(self, strand: _Strand, target: int, group: Group) -> None:
        if target < 0:
            self.ended += group.n
            self.workgroup.ended = self.done
            self.workgroup.cluster.left(group.n)
        else:
            self._arrive(strand, target, group)

    def _arrive(self, strand: _Strand, at: int, group: Group) -> None:
        if at >= len(self.code.blocks):
            raise Fault("threads run past the end of the kernel")
        if self.workgroup.order.warps and self.code.blocks[at].together:
            parts = self.gathered.setdefault((at, int(group.tid[0]) // 128), [])
            parts.append((strand, group))
            if sum(part.n for _, part in parts) == min(128, self.total):
                self.complete.append((at, self.gathered.pop((at, int(group.tid[0]) // 128))))
            return
        there = strand.places.get(at)
        if there is not None:
            group = self._group(np.sort(np.concatenate([there.tid, group.tid])))
        strand.places[at] = group

    def _barrier(self, strand: _Strand, at: int, group: Group, number: int, count: int) -> None:
        """Park; let all go once enough have come."""
        waiting = self.barriers.setdefault(number, [])
        if waiting and waiting[0][3] != count:
            raise Fault(
                f"barrier {number} for {count} threads, others wait there for {waiting[0][3]}"
            )
        waiting.append((strand, at, group, count))
        self.workgroup.shared.publish(group.tid >> np.uint32(5))
        needed = count or self.workgroup.threads
        if group.whole and needed == self.workgroup.threads:
            del self.barriers[number]
            self._arrive(strand, at, group)
            return
        arrived = np.sum([self.workgroup.census(one[2]) for one in waiting], axis=0)
        if (arrived > needed).any():
            raise Fault(f"{arrived.max()} threads at barrier {number} for {needed}")
        go = arrived == needed
        if not go.any():
            return
        del self.barriers[number]
        for one, place, threads, _ in waiting:
            mine = go[threads.tid // np.uint32(self.workgroup.threads)]
            if mine.all():
                self._arrive(one, place, threads)
                continue
            self.barriers.setdefault(number, []).append((one, place, threads.part(~mine), count))
            if mine.any():
                self._arrive(one, place, threads.part(mine))

    def _wake(self) -> None:
        """Those who wait for an mbarrier look again."""
        self.workgroup.mbarriers.changed = False
        waiting, self.waiting = self.waiting, []
        for strand, at, group, _ in waiting:
            self._arrive(strand, at, group)

    def said(self) -> str:
        """Who waits where."""
        parts = []
        code = self.code.module.instructions
        for _, at, group, where in self.waiting:
            state = self.workgroup.said(where)
            place = code[self.code.blocks[at].start]
            parts.append(f"{group.n} threads wait for {state}, at {place}")
        for number, waiting in self.barriers.items():
            for _, at, group, count in waiting:
                place = code[self.code.blocks[at - 1].end - 1]
                needed = count or self.workgroup.threads
                parts.append(f"{group.n} of {needed} threads at barrier {number}, at {place}")
        for (at, _), gathered in self.gathered.items():
            place = code[self.code.blocks[at].start]
            count = sum(part.n for _, part in gathered)
            parts.append(f"{count} threads wait for the rest of their warp group, at {place}")
        return "; ".join(parts) or "no thread can go on"


def _share(answer: Any, group: Group, part: Group) -> Any:
    """What a block returned, for some of the threads that ran it."""
    if type(answer) is tuple and answer[0] == "blocked":
        return (answer[0], _share(answer[1], group, part), answer[2])
    if not isinstance(answer, np.ndarray):
        return answer
    mine = answer[np.searchsorted(group.tid, part.tid)]
    return mine


def run(code: Code, workgroups: Sequence[Workgroup]) -> None:
    """Run the workgroups of a cluster to their end. Fault for what the program must not do."""
    states = [_Run(code, workgroup) for workgroup in workgroups]
    state = states[0]
    drawn, together = workgroups[0].drawn, len(states) > 1
    try:
        while True:
            moved = False
            for state in states:
                # Warps that go alone go alone in a cluster, too.
                some = drawn.randrange(1, 64) if together and state.workgroup.order.warps else -1
                moved |= state.advance(some)
            if not moved and not any(workgroup.catch_up() for workgroup in workgroups):
                break
        if not all(state.done for state in states):
            raise Fault(f"deadlock: {'; '.join(s.said() for s in states if not s.done)}")
        for state in states:
            state.workgroup.check_done()
    except (Fault, UnknownInstruction) as error:
        where = code.place(traceback.extract_tb(error.__traceback__))
        place = f", at {where}" if where else ""
        who = ", ".join(str(tuple(map(int, one))) for one in state.workgroup.places)
        said = f"{error}{place} of {code.module.name}, workgroup {who}"
        raise type(error)(said) from error
    for state in states:
        code.count(state.counts, state.workgroup.counters)

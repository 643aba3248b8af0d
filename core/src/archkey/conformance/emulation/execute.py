# SPDX-License-Identifier: Apache-2.0
"""Runs a decoded program over a grid: workgroup after workgroup, wave after wave.

Between two barriers the waves of a workgroup run one after the other, in an order drawn anew each
time, so that a program which relies on an order has a chance to fail.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archkey.conformance.emulation.again import LAUNCHES, WORKGROUPS, Conditions, checked
from archkey.conformance.emulation.classes import flops_of
from archkey.conformance.emulation.counters import Counters, Place, places
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.group import Group
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.program import Code
from archkey.conformance.emulation.spread import spread
from archkey.conformance.emulation.wave import LANES, Wave

__all__ = ["Resources", "execute"]


@dataclass(frozen=True)
class Resources:
    """What a launch gives each workgroup.

    arguments  the kernarg segment
    waves      64 lanes each
    lds_bytes  LDS that the launch asks for, with what the program itself fixes
    """

    arguments: Room
    waves: int
    lds_bytes: int


_SUPPORTED = {
    "float_round_mode_32": 0,  # to the nearest
    "float_round_mode_16_64": 0,
    "float_denorm_mode_32": 3,  # kept
    "float_denorm_mode_16_64": 3,
    "dx10_clamp": 1,
    "ieee_mode": 1,
    "system_sgpr_workgroup_info": 0,
    "uses_dynamic_stack": 0,
}
"""Directives whose other values would mean a machine that is not emulated here."""

_USER_SGPRS = (
    ("private_segment_buffer", 4),
    ("dispatch_ptr", 2),
    ("queue_ptr", 2),
    ("kernarg_segment_ptr", 2),
)
"""Registers before and with the kernarg pointer, in the order in which hardware fills them."""


class _Run:
    """One launch: what every workgroup needs.

    seed    of the order of waves
    judged  whether outputs count, so that workgroups may run twice: see `again`
    doubly  whether some do in any case
    times   how often each instruction was executed
    """

    def __init__(
        self, code: Code, memory: Memory, resources: Resources, seed: int, judged: bool
    ) -> None:
        self.code, self.memory, self.resources = code, memory, resources
        self.seed, self.judged = seed, judged
        self.doubly = judged and next(code.launches) % LAUNCHES == 0
        names = (instruction.name for instruction in code.assembly.instructions)
        self.atomics = any("_atomic_" in name for name in names)
        self.counters, self.times = Counters(), [0] * len(code.steps)

    def once(self, number: int, place: Place) -> None:
        """Run the workgroup at `place`."""
        order = f"{self.seed} {place}"
        if self.judged:
            self._checked(place, order, self.doubly and number % WORKGROUPS == 0)
        else:
            self._workgroup(place, Conditions(order))

    def _workgroup(self, place: Place, conditions: Conditions) -> int | None:
        """Where it first read LDS that nobody wrote."""
        code, resources, order = self.code, self.resources, random.Random(conditions.order)
        group = Group(
            *(self.memory, resources.lds_bytes, resources.waves, self.counters),
            *(resources.arguments, conditions.fill, conditions.lds),
        )
        waves = [_wave(code, group, place, n, resources) for n in range(resources.waves)]
        self.memory.label = lambda: waves[group.running].pc - 1
        while True:
            numbers = order.sample(range(len(waves)), len(waves))
            for group.running in reversed(numbers) if conditions.reversed else numbers:
                _run(code, waves[group.running], self.times)
            if all(wave.state == "ended" for wave in waves):
                return group.unwritten
            _check_barrier(code, waves)
            group.lds.barrier()
            for wave in waves:
                wave.state = "running"

    def _checked(self, place: Place, order: str, always: bool) -> None:
        """Run it, and perhaps under other conditions. Fault if it leaves other bytes."""
        second = _Run(self.code, self.memory, self.resources, self.seed, False)
        runs = itertools.chain([self], itertools.repeat(second))
        found = checked(
            self.memory,
            lambda given: next(runs)._workgroup(place, given),
            order,
            atomics="atomics" in self.code.classes,
            always=always,
        )
        if found:
            instructions = self.code.assembly.instructions
            read = "" if found.read is None else f", read by {instructions[found.read]}"
            where = f"{instructions[found.label]} of {self.code.assembly.name}"
            raise Fault(f"{found.bytes} bytes that {where} writes depend on {found.cause}{read}")

    def counted(self) -> Counters:
        """What was done since this was last asked."""
        total = Counters(lds_loaded=0, lds_stored=0)
        total.add(self.counters.take())
        for number, times in enumerate(self.times):
            if times:
                self.times[number] = 0
                total.instructions[self.code.classes[number]] += times
                total.flops += flops_of(self.code.assembly.instructions[number].name) * times
        return total


def execute(code: Code, grid: Place, memory: Memory, resources: Resources, seed: int = 0) -> None:
    """Run every workgroup, some of them twice: see `again`. seed: of the order of waves"""
    directives = code.assembly.directives
    for name, value in _SUPPORTED.items():
        if directives.get(name, value) != value:
            raise UnknownInstruction(f".amdhsa_{name} {directives[name]}: only {value} is there")
    found = places(grid)
    found.done(spread(_Run(code, memory, resources, seed, found.times == 1), found.chosen))


def _wave(code: Code, group: Group, place: Place, number: int, resources: Resources) -> Wave:
    """A wave as the hardware starts it."""
    directives = code.assembly.directives
    total, first = directives["next_free_vgpr"], directives["accum_offset"]
    scratch_bytes = directives["private_segment_fixed_size"]
    wave = Wave(group, min(total, first), max(total - first, 0), scratch_bytes)
    # Bits 10 to 29, where .amdhsa_system_vgpr_workitem_id asks for them, have y and z, which are 0.
    wave.u32[0][:] = number * LANES + np.arange(LANES)
    at = 0
    for name, size in _USER_SGPRS:
        if directives.get(f"user_sgpr_{name}"):
            if name == "kernarg_segment_ptr":
                wave.set64(at, resources.arguments.start)
            at += size
    # Arguments that could be preloaded need not be: the plain entry loads them itself.
    at = directives["user_sgpr_count"]
    for axis, index in zip("xyz", place, strict=True):
        if directives.get(f"system_sgpr_workgroup_id_{axis}"):
            wave.s[at] = index
            at += 1
    wave.saturate = bool(directives.get("fp16_overflow"))
    return wave


def _run(code: Code, wave: Wave, times: list[int]) -> None:
    """Run up to a barrier or the end; counts in `times`."""
    steps = code.steps
    try:
        while wave.state == "running":
            pc = wave.pc
            wave.pc = pc + 1
            times[pc] += 1
            steps[pc](wave)
    except (Fault, UnknownInstruction) as error:
        where = code.assembly.instructions[wave.pc - 1]
        raise type(error)(f"{error}, at {where} of {code.assembly.name}") from error


def _check_barrier(code: Code, waves: Sequence[Wave]) -> None:
    """Fault unless all waves wait at the same barrier."""
    places = {
        f"the end for {n} waves" if pc < 0 else f"{code.assembly.instructions[pc]} for {n} waves"
        for pc, n in _counted([-1 if w.state == "ended" else w.pc - 1 for w in waves])
    }
    if len(places) > 1:
        raise Fault(f"waves wait at different barriers: {', '.join(sorted(places))}")


def _counted(places: list[int]) -> list[tuple[int, int]]:
    return [(place, places.count(place)) for place in sorted(set(places))]

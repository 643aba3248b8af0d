# SPDX-License-Identifier: Apache-2.0
"""Workgroups over processes: what one process after the other would have done."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from tests.emulation.programs import DATA, program, start
from tests.emulation.ptx_machine import text

from archkey.conformance.emulation import spread as room
from archkey.conformance.emulation.counters import Counters, counting
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.memory import Memory
from archkey.conformance.emulation.processes import allowed, processes
from archkey.conformance.emulation.ptx.launcher import launcher

# Each workgroup adds its number to an element of its own.
ADD = (
    *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "v_mov_b32_e32 v2, 0", "s_lshl_b32 s6, s2, 2"),
    *("v_add_u32_e32 v2, s6, v2", "global_load_dword v1, v2, s[4:5]", "s_waitcnt vmcnt(0)"),
    *("v_add_u32_e32 v1, s2, v1", "s_mov_b64 exec, 1", "global_store_dword v2, v1, s[4:5]"),
)
STRAY = (
    *("s_cmp_lt_i32 s2, 21", "s_cbranch_scc1 .LBB0_1", "v_mov_b32_e32 v2, 0x4000"),
    *("v_add_u32_e32 v2, s2, v2", "global_load_dword v1, v2, s[4:5]", ".LBB0_1:"),
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes are started for any launch, however short."""
    monkeypatch.setattr(room, "MOMENT", 0.0)
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_the_same_bytes_and_counts(count: int) -> None:
    DATA[:] = range(128)
    with processes(count):
        done = start(program(*ADD), grid=(100, 1, 1))
    assert DATA.tolist() == [2 * n if n < 100 else n for n in range(128)]
    assert (done.loaded, done.stored) == (100 * 256, 100 * 4)
    assert done.instructions["global"] == 200


def test_the_fault_of_the_first_workgroup_that_errs() -> None:
    """Whichever process finds one first."""
    said = []
    for count in (1, 3):
        with processes(count), pytest.raises(Fault) as caught:
            start(program(*ADD, *STRAY), grid=(40, 1, 1))
        said.append(str(caught.value).partition("first 0x")[2].partition(":")[2])
    assert said[0] == said[1]
    assert "`global_load_dword v1, v2, s[4:5]` (line 17) of body" in said[0]
    with pytest.raises(UnknownInstruction, match="a buffer with a stride"):
        lines = ("s_mov_b32 s9, -1", "buffer_load_dword v0, off, s[8:11], 0")
        start(program(*lines), grid=(40, 1, 1))


def test_atomics_stay_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_forked", None)
    DATA[:] = 0
    lines = (*ADD[:3], "v_mov_b32_e32 v1, 1", "global_atomic_add_u32 v2, v1, s[4:5]")
    lines = (*lines[:-1], "global_atomic_add v2, v1, s[4:5]")
    with processes(2):
        start(program(*lines), grid=(8, 1, 1))
    assert DATA[0] == 8 * 64


def test_ptx_over_processes() -> None:
    twice = (
        *("mov.u32 %r60, %ctaid.x;", "mul.wide.u32 %rd12, %r60, 512;"),
        *("add.s64 %rd10, %rd0, %rd9;", "add.s64 %rd11, %rd1, %rd9;"),
        *("add.s64 %rd10, %rd10, %rd12;", "add.s64 %rd11, %rd11, %rd12;"),
        *("ld.global.b32 %r50, [%rd10];", "add.f32 %r51, %r50, %r50;"),
        "st.global.b32 [%rd11], %r51;",
    )
    compiled = SimpleNamespace(
        program=SimpleNamespace(signature={"x": "*fp32", "out": "*fp32"}),
        kernel=SimpleNamespace(asm={"ptx": text(twice, 2)}, metadata=SimpleNamespace()),
        shared_memory_bytes=0,
    )
    x, out = torch.randn(128 * 20), torch.zeros(128 * 20)
    with counting() as counters, processes(3):
        launcher(compiled)((20, 1, 1), x, out)  # type: ignore[arg-type]
    assert torch.equal(out, 2 * x)
    assert (counters.loaded, counters.stored) == (x.nbytes, out.nbytes)


class Alone:
    """Work of which the processes are told what to do."""

    atomics = False

    def __init__(self, what: str) -> None:
        self.memory, self.what, self.parent = Memory([]), what, os.getpid()

    def once(self, number: int, place: tuple[int, int, int]) -> None:
        if os.getpid() == self.parent:
            return
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "wait":
            signal.pause()

    def counted(self) -> Counters:
        return Counters()


def test_a_process_that_dies_is_said() -> None:
    with processes(2), pytest.raises(RuntimeError, match="ended with exit code -9"):
        room.spread(Alone("die"), [(n, 0, 0) for n in range(8)])


def test_an_interrupt_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not heed Ctrl-C, which the terminal sends to all; the fixture looks for them."""

    def interrupted(connections: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGINT)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "wait", interrupted)
    with processes(2), pytest.raises(KeyboardInterrupt):
        room.spread(Alone("wait"), [(n, 0, 0) for n in range(8)])


def test_as_many_as_cores_unless_told() -> None:
    assert allowed() == len(os.sched_getaffinity(0))
    with processes(5):
        assert allowed() == 5

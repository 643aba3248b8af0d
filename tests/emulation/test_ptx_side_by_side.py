# SPDX-License-Identifier: Apache-2.0
"""Workgroups that run as one vector: each has its place, its memory and its barriers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.emulation.ptx_machine import text

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.ptx import launcher

WHERE = (
    *("mov.u32 %r2, %ctaid.x;", "mov.u32 %r3, %ctaid.y;", "mov.u32 %r4, %nctaid.x;"),
    *("mad.lo.s32 %r5, %r3, %r4, %r2;", "mad.lo.s32 %r6, %r5, 64, %r0;"),  # of all threads
    *("mul.wide.u32 %rd10, %r6, 4;", "add.s64 %rd11, %rd0, %rd10;"),
    *("shl.b32 %r7, %r0, 2;", "add.s32 %r8, %r1, %r7;"),  # its word of shared memory
)
GIVE = "st.global.b32 [%rd11], %r10;"


def _run(
    lines: Sequence[str], grid: tuple[int, int, int], shared: int = 256, lanes: int = 4096
) -> torch.Tensor:
    count = grid[0] * grid[1] * grid[2]
    out = torch.full((count, 64), -1, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "LANES", lanes)
        source = text([*WHERE, *lines], 1, threads=64)
        launcher.execute(source, grid, {"a": "*i32"}, {"a": out}, shared)
    return out


@pytest.mark.parametrize("lanes", [1, 128, 4096])
def test_places_and_threads(lanes: int) -> None:
    lines = ("mad.lo.s32 %r10, %r3, 1000, %r2;", "mad.lo.s32 %r10, %r10, 100, %r0;", GIVE)
    out = _run(lines, (3, 2, 1), lanes=lanes).view(2, 3, 64)
    y, x, thread = torch.meshgrid(*(torch.arange(n) for n in (2, 3, 64)), indexing="ij")
    assert torch.equal(out, ((1000 * y + x) * 100 + thread).int())


@pytest.mark.parametrize("lanes", [1, 128, 4096])
def test_each_has_shared_memory_of_its_own(lanes: int) -> None:
    lines = (
        *("mad.lo.s32 %r9, %r5, 100, %r0;", "st.shared.b32 [%r8], %r9;", "bar.sync 0;"),
        *("xor.b32 %r11, %r7, 252;", "add.s32 %r11, %r1, %r11;", "ld.shared.b32 %r10, [%r11];"),
        GIVE,
    )
    want = 100 * torch.arange(5)[:, None] + torch.arange(63, -1, -1)
    assert torch.equal(_run(lines, (5, 1, 1), lanes=lanes), want.int())


def test_barriers_are_of_one_workgroup() -> None:
    """Workgroup n meets n times: who waits in one lets no thread of another go on."""
    lines = (
        *("mov.b32 %r10, 0;", "setp.eq.s32 %p1, %r5, 0;", "@%p1 bra DONE;", "AGAIN:"),
        *("add.s32 %r9, %r10, %r0;", "st.shared.b32 [%r8], %r9;", "bar.sync 0;"),
        *("xor.b32 %r11, %r7, 128;", "add.s32 %r11, %r1, %r11;", "ld.shared.b32 %r12, [%r11];"),
        *("bar.sync 0;", "sub.s32 %r12, %r12, %r10;", "add.s32 %r10, %r10, 1;"),
        *("setp.lt.s32 %p2, %r10, %r5;", "@%p2 bra AGAIN;", "mad.lo.s32 %r10, %r10, 100, %r12;"),
        *("DONE:", GIVE),
    )
    out = _run(lines, (4, 1, 1))
    other = torch.arange(64) ^ 32
    want = [torch.zeros(64, dtype=torch.int64), *(100 * n + other for n in (1, 2, 3))]
    assert torch.equal(out, torch.stack(want).int())


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_another_workgroups_is_outside(count: int) -> None:
    """The next one's shared memory is no more there than without it."""
    lines = ("st.shared.b32 [%r8], %r0;", "ld.shared.b32 %r10, [%r8+8192];", GIVE)
    with pytest.raises(Fault, match="of shared memory of 256 bytes: outside"):
        _run(lines, (count, 1, 1))
    room = 1 << (1024 + 256 + 127).bit_length()
    lines = ("st.shared.b32 [%r8], %r0;", f"ld.shared.b32 %r10, [%r8+{room}];", GIVE)
    with pytest.raises(Fault, match="of shared memory of 256 bytes: outside"):
        _run(lines, (count, 1, 1))


def test_the_second_of_two_may_read_no_word_that_only_the_first_wrote() -> None:
    lines = (
        *("setp.eq.s32 %p1, %r5, 0;", "@%p1 st.shared.b32 [%r8], %r0;"),
        *("ld.shared.b32 %r10, [%r8];", GIVE),
    )
    with pytest.raises(Fault, match="nobody wrote, first at byte 0"):
        _run(lines, (2, 1, 1))


def test_one_that_waits_for_nobody_is_told_of() -> None:
    lines = (
        *("setp.eq.s32 %p1, %r5, 1;", "setp.lt.u32 %p2, %r0, 32;", "and.pred %p3, %p1, %p2;"),
        *("@%p3 bra DONE;", "bar.sync 0;", "DONE:", "mov.b32 %r10, 0;", GIVE),
    )
    with pytest.raises(Fault, match="deadlock: 32 of 64 threads at barrier 0"):
        _run(lines, (3, 1, 1))

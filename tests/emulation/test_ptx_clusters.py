# SPDX-License-Identifier: Apache-2.0
"""Two workgroups that run together, and what goes wrong between them, planted once each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.emulation.ptx_machine import launch
from tests.emulation.test_ptx_tma_faults import ORDERS, ROUND, _map

from archkey.conformance.emulation.faults import Fault, UnknownInstruction

_ARRIVE, _WAIT = "barrier.cluster.arrive.aligned;", "barrier.cluster.wait.aligned;"
# Each thread stores its number and 1000 times its rank, and reads that of the other workgroup.
_OTHER = (
    *("mov.u32 %r10, %cluster_ctarank;", "xor.b32 %r11, %r10, 1;"),
    *("mad.lo.s32 %r12, %r10, 1000, %r0;", "shl.b32 %r41, %r0, 2;", "add.s32 %r41, %r41, %r1;"),
    "st.shared.b32 [%r41], %r12;",
)
_MAPPED = "mapa.shared::cluster.u32 %r42, %r41, %r11;"
_READ = "ld.shared::cluster.b32 %r50, [%r42];"
_OUT = (
    *("mul.wide.u32 %rd11, %r10, 512;", "add.s64 %rd10, %rd0, %rd9;"),
    *("add.s64 %rd10, %rd10, %rd11;", "st.global.b32 [%rd10], %r50;"),
)
EXCHANGE = (*_OTHER, _MAPPED, _ARRIVE, _WAIT, _READ, *_OUT, _ARRIVE, _WAIT)


@pytest.mark.parametrize("order", ORDERS)
def test_numbers_of_the_other_workgroup(order: object) -> None:
    out = torch.zeros(256, dtype=torch.int32)
    launch(EXCHANGE, out, shared=512, order=order, cluster=2)  # type: ignore[arg-type]
    assert out.tolist() == [*range(1000, 1128), *range(128)]


@pytest.mark.parametrize("order", ORDERS)
def test_numbers_for_the_other_workgroup(order: object) -> None:
    """Stored there; before the first barrier nobody may touch the other's memory."""
    lines = [
        *(*_OTHER[:-1], _MAPPED, _ARRIVE, _WAIT, "st.shared::cluster.b32 [%r42], %r12;"),
        *(_ARRIVE, _WAIT, "ld.shared.b32 %r50, [%r41];", *_OUT),
    ]
    out = torch.zeros(256, dtype=torch.int32)
    launch(lines, out, shared=512, order=order, cluster=2)  # type: ignore[arg-type]
    assert out.tolist() == [*range(1000, 1128), *range(128)]


def _by_rank(rank: int, *lines: str) -> list[str]:
    return [f"setp.ne.s32 %p4, %r10, {rank};", "@%p4 bra PAST;", *lines, "PAST:"]


def _without(lines: Sequence[str], *left_out: str) -> list[str]:
    return [line for line in lines if line not in left_out]


PLANTED = {
    "a barrier that is not arrived at": (
        _without(EXCHANGE, _ARRIVE),
        "barrier.cluster.wait without barrier.cluster.arrive, at line .*: barrier.cluster.wait",
    ),
    "a barrier that is arrived at twice": (
        [*EXCHANGE[:-1], _ARRIVE],
        "barrier.cluster.arrive again before barrier.cluster.wait, at line",
    ),
    "a rank that there is not": (
        [line.replace("%r41, %r11;", "%r41, 2;") for line in EXCHANGE],
        "mapa to rank 2 of a cluster of 2, at line .*: mapa",
    ),
    "memory of another as the own": (
        [line.replace("ld.shared::cluster", "ld.shared") for line in EXCHANGE],
        "outside, at line .*: ld.shared.b32|another workgroup of the cluster, at line .*: ld.sh",
    ),
    "a number that is read before it is there": (
        _without(EXCHANGE[:-2], _ARRIVE, _WAIT),
        "shared memory is read that nobody wrote, first at byte 0, at line .*: ld.shared::cluster",
    ),
    "memory of a workgroup that has ended": (
        [*_OTHER, _MAPPED, _ARRIVE, _WAIT, *_by_rank(0, _READ, *_OUT)],
        "the shared memory of a workgroup of the cluster that has ended, at line .*: ld.shared",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted(name: str) -> None:
    lines, told = PLANTED[name]
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(256, dtype=torch.int32), shared=512, cluster=2)


def test_a_workgroup_that_waits_for_another() -> None:
    """Of rank 1 nobody arrives: all its threads wait at a barrier that half of them reach."""
    lines = [
        *(*_OTHER, "setp.eq.s32 %p4, %r10, 0;", "@%p4 bra FIRST;", "setp.lt.u32 %p5, %r0, 64;"),
        *("@%p5 bra LATE;", "bar.sync 0;", "LATE:", "bar.sync 1;", "FIRST:", _ARRIVE, _WAIT),
    ]
    told = "deadlock: 128 threads wait for the cluster's barrier, where 128 of 256 threads have arr"
    with pytest.raises(Fault, match=f"{told}.*64 of 128 threads at barrier 0"):
        launch(lines, torch.zeros(256, dtype=torch.int32), shared=512, cluster=2)


_SEVERAL = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"


@pytest.mark.parametrize("order", ORDERS)
def test_a_box_for_both(order: object) -> None:
    """The first workgroup loads for both; each waits for its own bytes."""
    x = torch.arange(128, dtype=torch.int32).view(8, 16)
    out = torch.zeros(256, dtype=torch.int32)
    lines = [
        *("mov.u32 %r10, %cluster_ctarank;", *ROUND[:6], _ARRIVE, _WAIT, "mov.b16 %rs1, 3;"),
        *("setp.eq.s32 %p2, %r10, 0;", "and.pred %p2, %p1, %p2;"),
        f"@%p2 {_SEVERAL}.multicast::cluster [%r1], [%rd40, {{%r46, %r46}}], [%r45], %rs1;",
        *(*ROUND[7:16], *_OUT),
    ]
    assert "ld.shared" in lines[-5]
    launch(lines, out, shared=8200, order=order, maps=[_map(x)], cluster=2)  # type: ignore[arg-type]
    assert out.tolist() == [*range(128), *range(128)]
    wrong = [line.replace("mov.b16 %rs1, 3;", "mov.b16 %rs1, 1;") for line in lines]
    with pytest.raises(Fault, match="deadlock: 128 threads wait for 0 of 1 arrivals and 512 bytes"):
        launch(wrong, out, shared=8200, maps=[_map(x)], cluster=2)
    wrong = [line.replace("mov.b16 %rs1, 3;", "mov.b16 %rs1, 5;") for line in lines]
    with pytest.raises(Fault, match="a bulk load for the workgroups 0b101 of a cluster of 2"):
        launch(wrong, out, shared=8200, maps=[_map(x)], cluster=2)


@pytest.mark.parametrize("order", ORDERS)
def test_an_arrival_at_the_other_workgroup(order: object) -> None:
    """Each waits for an arrival of the other; both at one: the other waits for ever."""
    lines = [
        *("mov.u32 %r10, %cluster_ctarank;", "xor.b32 %r11, %r10, 1;", *ROUND[:5], _ARRIVE, _WAIT),
        "mapa.shared::cluster.u32 %r42, %r45, %r11;",
        "@%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r42];",
        *("{", ".reg .pred complete;", "AGAIN:"),
        "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 complete, [%r45], 0;",
        *("@!complete nanosleep.u32 20;", "@!complete bra.uni AGAIN;", "}", "mov.b32 %r50, %r10;"),
        *(*_OUT, _ARRIVE, _WAIT),
    ]
    out = torch.full((256,), -1, dtype=torch.int32)
    launch(lines, out, shared=8200, order=order, cluster=2)  # type: ignore[arg-type]
    assert out.tolist() == [0] * 128 + [1] * 128
    wrong = [line.replace("%r45, %r11", "%r45, 0") for line in lines]
    with pytest.raises(Fault, match="deadlock: 128 threads wait for 1 of 1 arrivals"):
        launch(wrong, out, shared=8200, cluster=2)


def test_what_is_not_known_of_clusters() -> None:
    for line in (
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r0, [%r1];",
        "red.async.relaxed.cluster.global.add.u32 [%rd0], %r0;",
        "multimem.red.add.u32 [%rd0], %r0;",
    ):
        with pytest.raises(UnknownInstruction, match=f"unknown instruction line .*{line[:8]}"):
            launch([line], torch.zeros(128).int(), cluster=2)

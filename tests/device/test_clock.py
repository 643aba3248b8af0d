# SPDX-License-Identifier: Apache-2.0
"""The bench's clock and ceilings on a card: `make gpu`."""

from __future__ import annotations

import pytest
import torch

import archkey
from archkey.bench import ceilings
from archkey.bench.clock import Clock
from archkey.bench.workload import Cost

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


@pytest.fixture
def clock() -> Clock:
    return Clock(torch.device("cuda", 0), samples=20)


def test_a_call_is_captured_and_takes_what_its_bytes_take(clock: Clock) -> None:
    """1 GiB read and written takes four times as long as 256 MiB, within 10 %."""
    times = []
    for size in (256 << 20, 1 << 30):
        a = torch.ones(size // 4, device="cuda")
        b = torch.zeros_like(a)
        timing = clock.time([lambda a=a, b=b: torch.neg(a, out=b)])
        assert timing.method == "graph" and timing.low <= timing.us <= timing.high
        times.append(timing.us)
    assert times[1] / times[0] == pytest.approx(4, rel=0.1)


def test_what_waits_for_the_host_is_launched_between_events(clock: Clock) -> None:
    x = torch.ones(1000, device="cuda")
    timing = clock.time([lambda: x.sum().item()])
    assert timing.method == "events" and timing.warm_us is None
    assert clock.time([x.zero_]).method == "graph", "the clock still works after a failed capture"


def test_caches_are_cold_and_warm(clock: Clock) -> None:
    """16 MiB fit into the cache: warm they come from there."""
    a = torch.ones(4 << 20, device="cuda")
    b = torch.zeros_like(a)
    timing = clock.time([lambda: torch.neg(a, out=b)])
    assert timing.warm_us is not None and timing.warm_us < 0.8 * timing.us


def test_inputs_rotate(clock: Clock) -> None:
    outs = [torch.zeros(1, device="cuda") for _ in range(3)]
    clock.time([lambda out=out: out.add_(1) for out in outs])
    assert all(out.item() > 5 for out in outs)


def test_ceilings_are_plausible_and_repeat() -> None:
    session = archkey.open("cuda:0")
    one, other = ({c.name: c.value for c in ceilings.measure(session)} for _ in range(2))
    assert one["copy"] == pytest.approx(other["copy"], rel=0.05)
    assert one["bfloat16"] > 1e13 and 1 < one["launch"] < 100
    us, by = ceilings.bound(Cost(0.0, one["copy"]), one)
    assert (us, by) == (pytest.approx(1e6), "copy")

# SPDX-License-Identifier: Apache-2.0
"""Bounds, and the clock by the host's time."""

from __future__ import annotations

import time

import pytest
import torch

import archkey
from archkey.bench.ceilings import bound, measure
from archkey.bench.clock import Clock
from archkey.bench.workload import Cost

RATES = {"copy": 4e12, "bfloat16": 8e14, "float8": 1.5e15}


@pytest.mark.parametrize(
    ("cost", "us", "by"),
    [
        (Cost(0.0, 4e9), 1000.0, "copy"),
        (Cost(8e11, 4e8), 1000.0, "bfloat16"),
        (Cost(8e11, 4e9, "float8"), 1000.0, "copy"),
        (Cost(3e12, 4e9, "float8"), 2000.0, "float8"),
    ],
)
def test_the_larger_term_is_the_bound(cost: Cost, us: float, by: str) -> None:
    assert bound(cost, RATES) == (pytest.approx(us), by)


def test_a_rate_that_the_card_lacks_is_that_of_bfloat16() -> None:
    rates = {name: RATES[name] for name in ("copy", "bfloat16")}
    assert bound(Cost(8e14, 0.0, "float8"), rates) == (pytest.approx(1e6), "float8")


def test_the_cpu_has_ceilings_too() -> None:
    found = {ceiling.name: ceiling for ceiling in measure(archkey.open("cpu"))}
    assert set(found) == {"copy", "bfloat16", "launch"}
    assert all(ceiling.value > 0 for ceiling in found.values())
    assert found["copy"].value < 1e12, "bytes a second of this machine's memory"


def test_median_and_spread() -> None:
    """Nine sleeps of 2 ms and one of 20: the median does not know of it, the maximum does."""
    pauses = iter([0, 0, *([0.002] * 5), 0.02, *([0.002] * 4)])
    timing = Clock(torch.device("cpu"), samples=10).time([lambda: time.sleep(next(pauses))])
    assert timing.method == "host" and timing.samples == 10
    assert 1900 < timing.low <= timing.us <= timing.high
    assert timing.us < 15_000


def test_a_slow_call_is_timed_three_times() -> None:
    clock = Clock(torch.device("cpu"), samples=40, seconds=0.01)
    calls = []

    def slow() -> None:
        calls.append(time.sleep(0.02))

    assert clock.time([slow]).samples == 3
    assert len(calls) == 5


def test_what_a_call_raises_is_raised() -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Clock(torch.device("cpu")).time([broken])

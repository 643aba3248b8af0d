# SPDX-License-Identifier: Apache-2.0
"""When one measured time is slower or faster than another, and when that is noise.

`new` is slower than `old` if all of this holds, and faster if it holds the other way round:

1. its median is above the other's by more than a floor (`floor`), and
2. its median is above the other's 90th percentile, and
3. its 10th percentile is above the other's median.

The floor is what a run on another machine of the same kind moves, the two others are what a call
moves within its run. Both medians are first divided by a bound where the ceilings of the two
machines differ (`scales`): then shares of the bound are compared, not times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from archkey.bench.results import Timing

__all__ = [
    "CEILING",
    "FASTER",
    "FEW",
    "BY_HOST",
    "FLOOR",
    "GOVERNED",
    "LONG_US",
    "POWER",
    "SAME",
    "SHORT",
    "SHORT_US",
    "SLOWER",
    "differ",
    "floor",
    "judge",
    "obstacle",
    "scales",
]

FLOOR = 0.05
"""Between H200s the same rows differed by 1 % in the median and 4 to 5 % at the 90th percentile."""

POWER = 0.13
"""The most that matrix-bound rows over `LONG_US` differed: the card throttles on power."""

LONG_US = 1000.0
"""How long a matrix-bound call must take for power to matter [microseconds]."""

SHORT = 0.12
"""Where a process finds its memory moves a short call: of one build on one H200, two runs minutes
apart took 37.4 and 41.2 us, 115.8 and 128.6 us, with spreads of 1 to 4 % within each."""

SHORT_US = 200.0
"""Up to where that was seen [microseconds]."""

BY_HOST = 0.5
"""What waits for the host moves with it: the same two runs took 64 and 94 ms."""

FEW = 10
"""Fewer samples have no 10th and 90th percentile; without a spread the floor is doubled."""

CEILING = 0.04
"""Readings of one ceiling differ by this much between machines of a kind: 763 to 790 TFLOP/s."""

GOVERNED = 0.25
"""A call below this share of its bound waits for latency: the ceiling does not scale its time."""

SLOWER, FASTER, SAME = "slower", "faster", "same"


def judge(
    old: Timing, new: Timing, bound_by_matrix: bool, scale: tuple[float, float] = (1.0, 1.0)
) -> str:
    """`SLOWER`, `FASTER` or `SAME`: what `new` is beside `old`; swapped, the opposite.

    scale  what the times of `old` and of `new` are divided by
    """
    allowed = floor(old, new, bound_by_matrix)
    if _above(new, scale[1], old, scale[0], allowed):
        return SLOWER
    if _above(old, scale[0], new, scale[1], allowed):
        return FASTER
    return SAME


def floor(old: Timing, new: Timing, bound_by_matrix: bool) -> float:
    """The part by which two medians may differ whatever their spreads are."""
    us, few = min(old.us, new.us), min(old.samples, new.samples) < FEW
    if old.method != "graph":
        least = BY_HOST
    elif us < SHORT_US:
        least = SHORT
    else:
        least = POWER if bound_by_matrix and us > LONG_US else FLOOR
    return least * (2 if few else 1)


def obstacle(old: Timing, new: Timing) -> str:
    """Why the two cannot be compared; "" if they can."""
    if old.method != new.method:
        return f"timed by {old.method}, then by {new.method}"
    for timing in (old, new):
        if not all(math.isfinite(t) and t > 0 for t in (timing.us, timing.low, timing.high)):
            return "a time is not a positive number"
    return ""


def scales(
    old: Mapping[str, Any], new: Mapping[str, Any], old_us: float, new_us: float
) -> tuple[float, float] | None:
    """The bounds of one workload in two documents, if shares of them are what to compare.

    None, so that the times decide: where the ceilings agree, where the cost was counted in another
    way, where a bound is missing, and for a call that no ceiling governs.
    """
    if any(old.get(key) != new.get(key) for key in ("flops", "bytes", "rate")):
        return None
    before, after = old.get("bound_us"), new.get("bound_us")
    if not (before and after) or not differ(before, after):
        return None
    if min(before / old_us, after / new_us) < GOVERNED:
        return None
    return before, after


def differ(old: float, new: float) -> bool:
    """Whether two readings of a ceiling, or two bounds, differ by more than readings do."""
    return max(old, new) > min(old, new) * (1 + CEILING)


def _above(a: Timing, a_by: float, b: Timing, b_by: float, allowed: float) -> bool:
    """Whether `a` is above `b` beyond noise, each divided by its own scale."""
    return (
        a.us / a_by > b.us / b_by * (1 + allowed)
        and a.us / a_by > b.high / b_by
        and a.low / a_by > b.us / b_by
    )

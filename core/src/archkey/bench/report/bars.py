# SPDX-License-Identifier: Apache-2.0
"""Where the bars of a workload begin and end, in percent of their track."""

from __future__ import annotations

from dataclasses import dataclass

from archkey.bench.report.model import Line, WorkloadView

__all__ = ["Bar", "bars", "bound_at"]

LONGEST = 4.0
"""Bars are drawn to this multiple of the fastest time and torn off beyond it: a reference that
takes a thousand times as long would leave nothing to see of the others."""


@dataclass(frozen=True)
class Bar:
    """A timed entrant: the bar's length and the whisker from `low` to `high`, in percent."""

    line: Line
    width: float
    low: float
    high: float
    torn: bool


def bars(workload: WorkloadView) -> tuple[Bar, ...]:
    """One bar per entrant with a time, the fastest first."""
    scale = _scale(workload)
    found = []
    for line in workload.timed:
        timing = line.entry.timing
        if timing:
            ends = (timing.us, timing.low, timing.high)
            width, low, high = (round(min(100 * us / scale, 100), 2) for us in ends)
            found.append(Bar(line, width, low, high, timing.us > scale))
    return tuple(found)


def bound_at(workload: WorkloadView) -> float | None:
    """Where the bound lies; None if there is none, or it is beyond the track."""
    bound = workload.data["bound_us"]
    if not bound or not workload.timed:
        return None
    at = 100 * float(bound) / _scale(workload)
    return round(at, 2) if at <= 100 else None


def _scale(workload: WorkloadView) -> float:
    """The time at the end of the track [microseconds]."""
    timings = [line.entry.timing for line in workload.timed if line.entry.timing]
    longest = max(timing.high for timing in timings)
    return min(longest, LONGEST * min(timing.us for timing in timings))

# SPDX-License-Identifier: Apache-2.0
"""Numbers for people: one way to write each quantity, on the page and in the terminal.

Three digits are all that a timing supports. Units are those of the column's heading.
"""

from __future__ import annotations

from archkey.bench.results import Entry

__all__ = ["big", "error", "percent", "ratio", "rate", "spread", "time"]

NOTHING = "–"
"""Stands where there is no number."""


def time(us: float | None) -> str:
    """Microseconds, the same unit at every size so that a column can be compared: "19,415"."""
    return _three(us)


def spread(entry: Entry) -> str:
    """The 10th to the 90th percentile [microseconds]: "25.9 – 26.8"."""
    timing = entry.timing
    return f"{time(timing.low)} – {time(timing.high)}" if timing else NOTHING


def rate(value: float | None) -> str:
    """TFLOP/s or GB/s, three digits: "4,055"."""
    return _three(value)


def percent(part: float | None) -> str:
    """A share as a percentage: "95 %", below ten with a digit more."""
    if part is None:
        return NOTHING
    return f"{part * 100:.1f} %" if part < 0.0995 else f"{part * 100:.0f} %"


def ratio(value: float | None) -> str:
    """A factor: "1.24×", "0.012×", "35×"."""
    if value is None:
        return NOTHING
    if value >= 9.95:
        return f"{value:,.0f}×"
    return f"{value:.2f}×" if value >= 0.0995 else f"{value:.2g}×"


def error(value: float | None) -> str:
    """A distance from the truth: "0.0017"."""
    return NOTHING if value is None else f"{value:.2g}"


def big(value: float | None, unit: str = "") -> str:
    """A count with its prefix: "291 G", "4.28 TB/s". Microseconds stay as they are."""
    if value is None:
        return NOTHING
    if unit == "us":
        return f"{time(value)} µs"
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def _three(value: float | None) -> str:
    """Three digits, more before the point, fewer of what is very small."""
    if value is None:
        return NOTHING
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.2g}"

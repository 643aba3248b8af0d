# SPDX-License-Identifier: Apache-2.0
"""Plots of an operator as SVG to be put into a page: rates beside the machine's roofs.

Drawn 340 units wide, so that text has its size on a phone. Text stays text. Colours become CSS
variables of the page, which knows whether it is light or dark. The same model gives the same text.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from archkey.bench import numbers
from archkey.bench.report import marks
from archkey.bench.report.model import OperatorView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Plot", "plots"]

VARIABLES = ("ink", "soft", "line", "surface", "accent", *(f"p{n}" for n in range(1, 9)))
PAINT = {name: f"#0a0b{number:02x}" for number, name in enumerate(VARIABLES, 0x10)}
"""A colour that stands for each variable while matplotlib draws."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # for measuring; comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PAINT["line"],
    "axes.labelcolor": PAINT["soft"],
    "xtick.color": PAINT["line"],
    "ytick.color": PAINT["line"],
    "xtick.labelcolor": PAINT["soft"],
    "ytick.labelcolor": PAINT["soft"],
    "text.color": PAINT["ink"],
    "text.parse_math": False,
}
SIZE = (340 / 72, 280 / 72)  # in inches of 72 units
BESIDE = 5.0
"""Units from one entrant of a call to the next."""
MATRIX = {"bfloat16": "bf16 matrix", "float8": "fp8 matrix"}


@dataclass(frozen=True)
class Plot:
    """A drawing, what it is called, and what it shows in words for those who do not see it."""

    title: str
    svg: str
    label: str


@dataclass(frozen=True)
class _Point:
    mark: int
    workload: int
    x: float
    y: float


def plots(operator: OperatorView, ceilings: Iterable[Mapping[str, Any]]) -> tuple[Plot, ...]:
    """A roofline of the calls with operations, a bandwidth plot of those without."""
    roofs = {row["name"]: float(row["start"]) for row in ceilings if row["start"]}
    timed = [(w, line) for w in operator.workloads for line in w.timed]
    rates = [
        _Point(line.mark, w.number, w.intensity, line.entry.tflops)
        for w, line in timed
        if w.intensity and line.entry.tflops
    ]
    bandwidths = [
        _Point(line.mark, w.number, float(w.data["bytes"]), line.entry.gbs)
        for w, line in timed
        if not w.intensity and w.data["bytes"] and line.entry.gbs
    ]
    found = []
    if rates:
        found.append(_plot("Roofline", operator, rates, roofs))
    if bandwidths:
        found.append(_plot("Bandwidth", operator, bandwidths, roofs))
    return tuple(found)


def _plot(
    kind: str, operator: OperatorView, points: Sequence[_Point], roofs: Mapping[str, float]
) -> Plot:
    roofline = kind == "Roofline"
    unit = "TFLOP/s" if roofline else "GB/s"
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"{kind} {operator.name}"}):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log")
        _limits(axes, points, [_roof(kind, roofs, x) for x in {point.x for point in points}])
        (_matrix_roofs if roofline else _copy_line)(axes, roofs)
        _scatter(axes, points)
        _number(axes, points)
        axes.set_xlabel("operations per byte" if roofline else "bytes moved")
        axes.set_ylabel(unit)
        _ticks(axes, "" if roofline else "B")
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    names = dict(operator.entrants)
    best = max((point for point in points), key=lambda point: point.y)
    label = (
        f"{kind} of {operator.name}: {len(points)} points, of {', '.join(names.values())}. "
        f"Highest: {names[best.mark]} with {numbers.rate(best.y)} {unit} "
        f"at call {best.workload}. All figures are in the table below."
    )
    return Plot(kind, _embedded(file.getvalue(), label), label)


def _roof(kind: str, roofs: Mapping[str, float], x: float) -> float | None:
    """The machine's limit at `x`, in the unit of the plot."""
    copy = roofs.get("copy")
    if kind == "Bandwidth":
        return copy / 1e9 if copy else None
    limits = [*([copy * x] if copy else []), *(roofs[n] for n in ("bfloat16",) if n in roofs)]
    return min(limits) / 1e12 if limits else None


def _limits(axes: Axes, points: Sequence[_Point], roofs: Iterable[float | None]) -> None:
    """From the lowest point to the roof over them, at least a decade and a half wide."""
    xs = [math.log10(point.x) for point in points]
    ys = [*(p.y for p in points), *(roof for roof in roofs if roof)]
    logs = [math.log10(y) for y in ys]
    middle, half = (min(xs) + max(xs)) / 2, max((max(xs) - min(xs)) / 2 * 1.2, 0.75)
    axes.set_xlim(10 ** (middle - half), 10 ** (middle + half))
    span = max(max(logs) - min(logs), 1.0)
    axes.set_ylim(10 ** (max(logs) - span * 1.12), 10 ** (max(logs) + span * 0.22))


def _matrix_roofs(axes: Axes, roofs: Mapping[str, float]) -> None:
    """The copy slope as far as the highest matrix roof, and each matrix roof from there on."""
    low, high = axes.get_xlim()
    copy = roofs.get("copy")
    flat = {name: roofs[name] for name in MATRIX if name in roofs}
    bottom, top = axes.get_ylim()
    for name, roof in flat.items():
        start = max(low, roof / copy) if copy else low
        if start < high and roof / 1e12 < top:
            axes.plot([start, high], [roof / 1e12] * 2, color=PAINT["soft"], lw=1)
            _say(axes, high, roof / 1e12, MATRIX[name], "right")
    if copy:
        end = min(high, max(flat.values(), default=math.inf) / copy)
        axes.plot([low, end], [copy * low / 1e12, copy * end / 1e12], color=PAINT["soft"], lw=1)
        at = max(low, bottom * 1e12 / copy)
        if at < end:
            _slope(axes, at, copy * at / 1e12)


def _copy_line(axes: Axes, roofs: Mapping[str, float]) -> None:
    if "copy" in roofs:
        low, high = axes.get_xlim()
        axes.plot([low, high], [roofs["copy"] / 1e9] * 2, color=PAINT["soft"], lw=1)
        _say(axes, high, roofs["copy"] / 1e9, "copy", "right")


def _say(axes: Axes, x: float, y: float, text: str, align: str) -> None:
    axes.annotate(
        text, (x, y), (0, 3), textcoords="offset points", ha=align, color=PAINT["soft"], size=9
    )


def _slope(axes: Axes, x: float, y: float) -> None:
    """Name the copy roof below its lower end, where it never runs into the text."""
    axes.annotate(
        "copy", (x, y), (9, 0), textcoords="offset points", va="top", color=PAINT["soft"], size=9
    )


def _scatter(axes: Axes, points: Sequence[_Point]) -> None:
    """Archkey on its call's column and on top; peers beside it, so that none hides another."""
    present = sorted({point.mark for point in points}, key=lambda mark: (mark != 0, mark))
    for place, mark in reversed([*enumerate(present)]):
        mine = [point for point in points if point.mark == mark]
        aside = (place + 1) // 2 * (1 if place % 2 else -1) * BESIDE
        axes.plot(
            [point.x for point in mine],
            [point.y for point in mine],
            linestyle="none",
            marker=list(marks.shape(mark)),
            markersize=(8 if mark == 0 else 6) * marks.reach(mark),
            markerfacecolor=PAINT[marks.colour(mark)],
            markeredgecolor=PAINT["surface"],
            markeredgewidth=0.7,
            clip_on=False,
            transform=axes.transData
            + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans),
        )


def _number(axes: Axes, points: Sequence[_Point]) -> None:
    """Over each column of points the numbers of its calls; columns that touch share a text."""
    low, high = (math.log10(x) for x in axes.get_xlim())
    columns: list[tuple[float, dict[int, None]]] = []
    for point in sorted(points, key=lambda point: (point.x, point.workload)):
        at = (math.log10(point.x) - low) / (high - low)
        if not columns or at - columns[-1][0] > 0.07:
            columns.append((at, {}))
        columns[-1][1][point.workload] = None
    for at, calls in columns:
        axes.text(
            at, 1.0, _ranges(sorted(calls)), transform=axes.transAxes, ha="center", va="bottom",
            size=9, color=PAINT["ink"],
        )  # fmt: skip


def _ranges(calls: Sequence[int]) -> str:
    """Numbers with runs of three or more drawn together: "1, 3–5"."""
    runs: list[list[int]] = []
    for call in calls:
        if runs and call == runs[-1][-1] + 1:
            runs[-1].append(call)
        else:
            runs.append([call])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def _ticks(axes: Axes, unit: str) -> None:
    """Decades, written out; between them 2 and 5 where there are few."""
    for axis, ends, name in (
        (axes.xaxis, axes.get_xlim(), unit),
        (axes.yaxis, axes.get_ylim(), ""),
    ):
        decades = math.log10(ends[1] / ends[0])
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if decades < 1.8 else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda x, _, u=name: _tick(x, u)))


def _tick(value: float, unit: str) -> str:
    return numbers.big(value, unit) if unit else f"{value:,.6g}"


def _embedded(svg: str, label: str) -> str:
    """The drawing as an element of a page, with the page's colours and font."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # one page has many figure_1
    svg = svg.replace("'DejaVu Sans'", "var(--sans)")
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    for name, paint in PAINT.items():
        svg = svg.replace(paint, f"var(--{name})")
    svg = re.sub(
        r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg class="plot" viewBox="\1">', svg, count=1
    )
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)

# SPDX-License-Identifier: Apache-2.0
"""Level accuracy: how an output's errors are counted, and held against their limits.

What an output is held against is the best that its storage allows: the float64 result of the very
codes and scales that are stored (the truth), and that result rounded once to the output's dtype
(the best). Counted is what comes on top of that rounding:

    noise      ||out - truth|| / ||truth||, less that of the best, as squares
    bias       <out, truth> / <truth, truth> - 1, less that of the best: by so much out is too large
    error      of a logarithm: out - truth in natural units; its bias is the mean of that

Rounding goes either way, so in thousands of numbers no bias is left of it where the noise stays.
That tells a loss from arithmetic: scales that are cut off to bfloat16 make a noise like that of any
kernel, and all of them are too small.

Noise and bias are those of each head of each query row; of many of them, which count alike however
large they are, the root mean square and the mean; of errors of logarithms alike.

| over    | holds                                          | tells                               |
|---------|------------------------------------------------|-------------------------------------|
| row     | all heads of one query row                     | a wrong row, and the keys it wants  |
| window  | 256 query rows, in the order of the call       | a small loss everywhere             |
| head    | one head in a window                           | a tile of heads                     |
| columns | 64 columns, of all heads in a window           | a tile of the cache, of its scales  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from archkey.conformance.accuracy_limits import LOG_BIAS, OVER, Limit, limit, storage_of
from archkey.conformance.case import Case
from archkey.conformance.cases.distributions import WINDOW
from archkey.conformance.judge import Fault, Measured
from archkey.conformance.tolerances import LOGARITHMS
from archkey.ops import Operator

__all__ = [
    "COLUMNS",
    "AccuracyCase",
    "Gauge",
    "RoundTrip",
    "Statistic",
    "recorded",
    "statistics",
    "told",
]

COLUMNS = 64
"""Columns of an output that are counted together: the smallest tile with a scale of its own."""


class RoundTrip(NamedTuple):
    """For an operator that writes codes: what they stand for, and what they should.

    decode(inputs, outputs)  real numbers by a name, of the outputs of a kernel or the reference
    exact(inputs)            the numbers that were to be stored, by the same names
    """

    decode: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, torch.Tensor]]
    exact: Callable[[Mapping[str, Any]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class AccuracyCase(Case):
    """A Case whose numbers have a distribution that real models have; `model` is its name.

    An edge is small enough for an interpreter, a large one has a card's size; what is neither is
    for torch on a CPU.

    about       of a query row, what it wants: "keys 256..511"
    round_trip  how outputs that are codes are read
    """

    about: Callable[[int], str] | None = None
    round_trip: RoundTrip | None = None


class Statistic(NamedTuple):
    """The worst of one count.

    output  its name
    name    "noise", "bias", "error"
    over    "row", "window", "head" or "columns"; where  the worst one: "rows 0..255, head 3"
    value   its magnitude; best  that of the best; limit  of `value`
    """

    output: str
    name: str
    over: str
    where: str
    value: float
    best: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; NaN is not."""
        return self.value <= self.limit

    @property
    def told(self) -> str:
        """As in a reason: `bias of out over a window (rows 0..3)`."""
        article = "" if self.over == "columns" else "a "
        return f"{self.name} of {self.output} over {article}{self.over} ({self.where})"


def told(failed: Sequence[Statistic]) -> str:
    """What is over its limit, the worst first: `bias of out over a row (row 3) 7e-03 > ..`."""
    ranked = sorted(failed, key=lambda one: one.value / one.limit, reverse=True)
    return "; ".join(f"{one.told} {one.value:.1e} > {one.limit:.1e}" for one in ranked)


def recorded(one: Statistic) -> dict[str, Any]:
    """As it stands in a record: three digits, and an infinite value as the text "inf"."""
    found: dict[str, Any] = one._asdict()
    for name in ("value", "best"):
        value = found[name]
        found[name] = float(f"{value:.2e}") if value < float("inf") else "inf"
    return found


class Gauge:
    """Measures one case for the judge, and keeps the statistics of its call."""

    def __init__(self, case: AccuracyCase) -> None:
        self._case = case
        self.statistics: list[Statistic] = []

    def __call__(
        self,
        operator: Operator,
        inputs: Sequence[Any],
        found: Mapping[str, torch.Tensor],
        truth: Sequence[Any],
    ) -> list[Measured]:
        """The statistics of all float outputs, as the judge has them."""
        named = dict(zip(operator.inputs, inputs, strict=True))
        exact = dict(zip(operator.outputs, truth, strict=True))
        best = {name: exact[name].to(out.dtype) for name, out in found.items()}
        if trip := self._case.round_trip:
            found, best = dict(trip.decode(named, found)), dict(trip.decode(named, best))
            exact = dict(trip.exact(named))
        storage = storage_of(named)
        self.statistics = [
            one
            for name, out in found.items()
            for one in statistics(
                name,
                out,
                exact[name],
                best[name],
                limit(operator.name, name, storage),
                self._case.about,
            )
        ]
        if not self.statistics:
            raise Fault("no output whose accuracy could be measured")
        return [Measured(one.value, one.limit, one.told) for one in self.statistics]


def statistics(
    name: str,
    out: torch.Tensor,
    truth: torch.Tensor,
    best: torch.Tensor,
    most: Limit,
    about: Callable[[int], str] | None = None,
) -> Iterator[Statistic]:
    """The worst of each count of one output; none for integers.

    out, truth, best  `[.., H, D]`, or `[T, D]` of no heads; of a logarithm `[T, H]`
    """
    if not out.dtype.is_floating_point:
        return
    got, want, least = out.double(), truth.double(), best.double()
    if not _same_places(got, want):
        # A NaN or an infinity where there is none, or the reverse: nothing can be counted.
        yield Statistic(name, "noise", "row", "any", float("inf"), 0.0, most.noise)
        return
    if name in LOGARITHMS:
        off = torch.where(want.isfinite(), got - want, 0.0).reshape(got.shape[0], -1)
        part = _Part(name, len(off), about)
        zero = torch.zeros(())
        windows = off.split(WINDOW)
        for over, means in (
            ("row", off.square().mean(1)),
            ("head", torch.stack([rows.square().mean(0) for rows in windows])),
        ):
            yield part.worst("error", over, means.sqrt(), zero, most.error * OVER[over][0])
        means = torch.stack([rows.mean() for rows in windows]).abs()
        yield part.worst("bias", "window", means, zero, most.error * LOG_BIAS)
        return
    shape = (-1, 1, want.shape[-1]) if want.ndim < 3 else (-1, *want.shape[-2:])
    got, want, least = (x.reshape(shape) for x in (got, want, least))
    part = _Part(name, len(got), about)
    squares, off = _counts(got, want)
    floors, floor_off = _counts(least, want)
    for over, (noise, bias) in OVER.items():
        square, floor = _over(over, squares), _over(over, floors)
        if over == "row":
            noise, bias = noise * most.rows, bias * most.rows
        excess = (square - floor).clamp_min(0).sqrt()
        yield part.worst("noise", over, excess, floor.sqrt(), most.noise * noise)
        if bias:
            by, least_by = _over(over, off), _over(over, floor_off)
            yield part.worst("bias", over, (by - least_by).abs(), least_by.abs(), most.bias * bias)


def _same_places(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether all that is not a number or infinite is so in both."""
    same = torch.where(
        want.isfinite(), got.isfinite(), (got == want) | (got.isnan() & want.isnan())
    )
    return got.shape == want.shape and bool(same.all())


def _counts(got: torch.Tensor, want: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square of the noise, and the bias, `[T, H, 1 + blocks]`: of each head of each row.

    First of all its columns, then of each block of them. What is 0 in truth has to be 0: otherwise
    it is infinitely wrong.
    """
    off = got - want
    sums = []
    for one, other in ((off, off), (off, want), (want, want)):
        product = torch.nn.functional.pad(one * other, (0, -want.shape[-1] % COLUMNS))
        blocks = product.unflatten(-1, (-1, COLUMNS)).sum(-1)
        sums.append(torch.cat([blocks.sum(-1, keepdim=True), blocks], -1))
    squares, along, size = sums
    none = size == 0
    wrong = torch.zeros_like(squares).masked_fill(none & (squares > 0), torch.inf)
    size = size.masked_fill(none, 1.0)
    return torch.where(none, wrong, squares / size), torch.where(none, wrong, along / size)


def _over(over: str, counts: torch.Tensor) -> torch.Tensor:
    """Means of `[T, H, 1 + blocks]`: `[T]` of rows, `[windows]`, or these by head or by columns."""
    whole, blocks = counts[..., 0], counts[..., 1:]
    if over == "row":
        return whole.mean(1)
    if over == "columns":
        return torch.stack([rows.mean((0, 1)) for rows in blocks.split(WINDOW)])
    windows = whole.split(WINDOW)
    return torch.stack([rows.mean(0) if over == "head" else rows.mean() for rows in windows])


@dataclass(frozen=True)
class _Part:
    """An output, and how the parts of its rows are called."""

    output: str
    rows: int
    about: Callable[[int], str] | None

    def worst(
        self, name: str, over: str, values: torch.Tensor, best: torch.Tensor, most: float
    ) -> Statistic:
        """The largest of `values`, with what the best has there."""
        values = values.nan_to_num(torch.inf, torch.inf)  # infinite less infinite
        at = int(values.argmax())
        first, *rest = (int(i) for i in torch.unravel_index(torch.tensor(at), values.shape))
        where = self._row(first) if over == "row" else self._window(first)
        if over == "head":
            where += f", head {rest[0]}"
        elif over == "columns":
            where += f", columns {rest[0] * COLUMNS}..{(rest[0] + 1) * COLUMNS - 1}"
        floor = float(best.expand(values.shape).flatten()[at])
        return Statistic(self.output, name, over, where, float(values.flatten()[at]), floor, most)

    def _row(self, row: int) -> str:
        return f"row {row}" + (f", which wants {self.about(row)}" if self.about else "")

    def _window(self, window: int) -> str:
        first = window * WINDOW
        return f"rows {first}..{min(first + WINDOW, self.rows) - 1}"

# SPDX-License-Identifier: Apache-2.0
"""What the report says, decided from the document alone: who leads, by how much, who is missing.

Pure: the page and the terminal only render this. Times are microseconds on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from archkey.bench.place import beside, is_ours, place_of
from archkey.bench.results import OURS, Entry
from archkey.errors import RecordError

__all__ = ["Glance", "Line", "OperatorView", "Tally", "View", "WorkloadView", "view"]

VERDICTS = ("ahead", "level", "behind", "no peer", "not timed")


@dataclass(frozen=True)
class Line:
    """An entrant at a workload.

    mark  its number in `View.entrants`: which symbol and colour it has on the whole page
    """

    entry: Entry
    mark: int

    @property
    def ratio(self) -> float | None:
        """Its time over archkey's; None where either has none."""
        return self.entry.ratio

    @property
    def ours(self) -> bool:
        """Whether this is archkey's own kernel."""
        return self.entry.entrant == OURS

    @property
    def peer(self) -> bool:
        """Whether it is another library's: "archkey:KERNEL" is a further kernel of ours."""
        return not is_ours(self.entry.entrant)

    @property
    def us(self) -> float:
        """The median; infinite without a time, so that it sorts last."""
        return self.entry.timing.us if self.entry.timing else math.inf


@dataclass(frozen=True)
class WorkloadView:
    """A workload with its entrants, the fastest first, those without a time last.

    number   in its operator, from 1: marks its column in the plot
    data     its row of the document, for what is shown as it is
    """

    number: int
    anchor: str
    data: Mapping[str, Any]
    lines: tuple[Line, ...]

    @property
    def timed(self) -> tuple[Line, ...]:
        """Those with a time."""
        return tuple(line for line in self.lines if line.entry.timing)

    @property
    def absent(self) -> tuple[Line, ...]:
        """Those without a time for a reason of this call."""
        return tuple(line for line in self.lines if not line.entry.timing and line not in self.gone)

    @property
    def gone(self) -> tuple[Line, ...]:
        """Those that are not installed: the same at every call, with the reason at the peers."""
        return tuple(line for line in self.lines if line.entry.status == "not installed")

    @property
    def ours(self) -> Line | None:
        """Archkey's line, timed or not."""
        return next((line for line in self.lines if line.ours), None)

    @property
    def peer(self) -> Line | None:
        """The fastest peer."""
        return next((line for line in self.timed if line.peer), None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over archkey's: above 1, archkey is faster."""
        return self.peer.ratio if self.peer else None

    @property
    def intensity(self) -> float | None:
        """Operations per byte; None for what has no operations."""
        flops, bytes_ = self.data["flops"], self.data["bytes"]
        return flops / bytes_ if flops and bytes_ else None

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if not self.ours or not self.ours.entry.timing:
            return "not timed"
        place = place_of(self.data)
        return place.standing if place else "no peer"


@dataclass(frozen=True)
class Tally:
    """How many workloads have each verdict."""

    ahead: int
    level: int
    behind: int
    no_peer: int
    not_timed: int

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Verdicts with their counts, without the zeros."""
        counts = (self.ahead, self.level, self.behind, self.no_peer, self.not_timed)
        return tuple((v, n) for v, n in zip(VERDICTS, counts, strict=True) if n)


@dataclass(frozen=True)
class Glance:
    """An operator in one line: one call that stands for it, and the tally of all.

    workload  the call: the first of the short run in which archkey's kernel has a time
    kernels   that archkey chose in any of its calls; degraded: any was made for another target
    shares    of the bound, archkey's, call by call
    mean      geometric mean of the fastest peer's time over archkey's, where both have one
    """

    operator: str
    workload: WorkloadView
    kernels: tuple[str, ...]
    degraded: bool
    shares: tuple[float, ...]
    mean: float | None
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """The numbers and names of the line."""
        ours, peer = self.workload.ours, self.workload.peer
        return {
            "operator": self.operator,
            "kernels": list(self.kernels),
            "degraded": self.degraded,
            "workload": self.workload.data["name"],
            "us": ours.entry.timing.us if ours and ours.entry.timing else None,
            "of_bound": ours.entry.of_bound if ours else None,
            "best_peer": peer.entry.entrant if peer else None,
            "best_peer_us": peer.us if peer else None,
            "ratio": self.workload.ratio,
            "verdict": self.workload.verdict,
            "mean_ratio": self.mean,
            "tally": dict(self.tally.parts),
        }


@dataclass(frozen=True)
class OperatorView:
    """An operator's section."""

    name: str
    family: str
    workloads: tuple[WorkloadView, ...]
    glance: Glance

    @property
    def entrants(self) -> tuple[tuple[int, str], ...]:
        """Those with a time in any workload: mark and name, in the order of the marks."""
        found = {line.mark: line.entry.entrant for w in self.workloads for line in w.timed}
        return tuple(sorted(found.items()))

    @property
    def explained(self) -> dict[str, tuple[WorkloadView, ...]]:
        """Each text that explains a decision, with the calls it is about."""
        texts = dict.fromkeys(str(w.data["explained"]) for w in self.workloads)
        return {
            text: tuple(w for w in self.workloads if w.data["explained"] == text) for text in texts
        }


@dataclass(frozen=True)
class View:
    """The whole report. `document` holds what is shown as it is."""

    document: Mapping[str, Any]
    entrants: tuple[str, ...]
    operators: tuple[OperatorView, ...]
    tally: Tally

    @property
    def machine(self) -> str:
        """The device's name, or its target where it has none."""
        device = self.document["machine"]["device"]
        return str(device.get("name") or device.get("target") or "unknown device")

    @property
    def further(self) -> tuple[str, ...]:
        """Kernels of ours that were measured beside the chosen one."""
        return tuple(name for name in self.entrants if name.startswith(f"{OURS}:"))

    @property
    def coverage(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Rows of the coverage: operator -> target -> row."""
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in self.document["coverage"]:
            found.setdefault(row["operator"], {})[row["target"]] = row
        return found

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets of the coverage."""
        return tuple(dict.fromkeys(row["target"] for row in self.document["coverage"]))


def view(document: Mapping[str, Any]) -> View:
    """The report of a document that `results.read` accepted. RecordError for one with holes."""
    try:
        return _view(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"the results lack something that the report needs ({type(error).__name__}: {error}); "
            "run `archkey bench` again"
        ) from error


def _view(document: Mapping[str, Any]) -> View:
    for key in ("complete", "started", "archkey", "coverage"):
        document[key]
    by_operator: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["workloads"]:
        by_operator.setdefault(row["operator"], []).append(row)
    names = dict.fromkeys(e["entrant"] for row in document["workloads"] for e in row["entries"])
    entrants = (OURS, *sorted(name for name in names if name != OURS))
    marks = {name: number for number, name in enumerate(entrants)}
    operators = tuple(_operator(name, rows, marks) for name, rows in by_operator.items())
    return View(
        document,
        entrants,
        operators,
        _tally(w for operator in operators for w in operator.workloads),
    )


def _operator(
    name: str, rows: Iterable[Mapping[str, Any]], marks: Mapping[str, int]
) -> OperatorView:
    found = tuple(_workload(number, row, marks) for number, row in enumerate(rows, 1))
    return OperatorView(
        name,
        next((str(w.data["family"]) for w in found if w.data["family"]), ""),
        found,
        _glance(name, found),
    )


def _workload(number: int, row: Mapping[str, Any], marks: Mapping[str, int]) -> WorkloadView:
    for key in ("name", "title", "problem", "flops", "bytes", "bound_us", "bound_by", "explained"):
        row[key]
    entries = beside(Entry.from_json(entry) for entry in row["entries"])
    lines = [Line(entry, marks[entry.entrant]) for entry in entries]
    lines.sort(key=lambda line: (line.us, not line.ours, line.mark))
    return WorkloadView(number, f"{row['operator']}-{number}", row, tuple(lines))


def _glance(operator: str, workloads: tuple[WorkloadView, ...]) -> Glance:
    ours = [line.entry for w in workloads if (line := w.ours)]
    ratios = [w.ratio for w in workloads if w.ratio]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return Glance(
        operator,
        min(workloads, key=lambda w: (w.verdict == "not timed", not w.data["quick"], w.number)),
        tuple(dict.fromkeys(entry.kernel for entry in ours if entry.kernel)),
        any(entry.degraded for entry in ours),
        tuple(entry.of_bound for entry in ours if entry.of_bound is not None),
        mean,
        _tally(workloads),
    )


def _tally(workloads: Iterable[WorkloadView]) -> Tally:
    verdicts = [workload.verdict for workload in workloads]
    return Tally(*(verdicts.count(verdict) for verdict in VERDICTS))

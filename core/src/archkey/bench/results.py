# SPDX-License-Identifier: Apache-2.0
"""The results of a bench run as one document: what was measured, beside what, on which machine.

    {"format": 1, "complete": true, "started": "2026-11-21T14:20:42Z", "archkey": "0.1.0",
     "machine": {"device": {...}, "host": {...}},
     "versions": {"torch": "2.11.0+cu130", ...},
     "settings": {"seed": 0, "samples": 30, ...},
     "ceilings": [{"name": "copy", "unit": "B/s", "start": 4.28e12, "end": 4.27e12}, ...],
     "peers": [{"name": "fla", "title": "...", "state": "installed", "reason": "",
                "versions": {...}, "install": "...", "home": "..."}],
     "coverage": [rows of `archkey coverage --json`],
     "workloads": [{"operator": "mla_decode", "family": "mla", "name": "...", "title": "...",
                    "model": "...", "tp": 8, "quick": true, "problem": "MlaDecodeProblem(...)",
                    "flops": 2.9e11, "bytes": 1.2e9, "rate": "bfloat16",
                    "bound_us": 370.1, "bound_by": "bfloat16", "ceiling": 7.8e14,
                    "decision": {...}, "explained": "...",
                    "entries": [{"entrant": "archkey", "status": "timed", ...}]}]}

An entry's `status` says what became of it: "timed"; "wrong": outside its bound, so that it has no
time; "not served": the library cannot compute this call; "not installed"; "failed": it raised, or
its process died. `reason` says more for all but the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archkey._files import replace
from archkey.errors import RecordError

__all__ = ["FORMAT", "OURS", "STATUSES", "Entry", "Timing", "entries", "read", "write"]

FORMAT = 1

OURS = "archkey"
"""The entrant that is our own kernel, as the session chooses it."""

STATUSES = ("timed", "wrong", "not served", "not installed", "failed")


@dataclass(frozen=True)
class Timing:
    """One call's time on the device.

    us         median [microseconds], with the caches swept before each call
    low, high  the 10th and 90th percentile: the spread
    samples    calls that were timed
    method     "graph": replays of a captured call; "events": launched one by one, where the host's
               work between launches counts; "host": no accelerator, by the host's clock
    warm_us    median of a call among many of its kind in one graph, inputs rotating; None without
    clock_mhz  the slowest clock of the multiprocessors that was seen meanwhile; None if unknown
    """

    us: float
    low: float
    high: float
    samples: int
    method: str
    warm_us: float | None = None
    clock_mhz: int | None = None


@dataclass(frozen=True)
class Entry:
    """What became of one entrant at one workload.

    entrant    "archkey", or a peer's "name" or "name:label"
    kernel     of archkey's own: the kernel's id
    degraded   archkey's kernel was made for another target: the torch reference
    error      the worst output's distance from float64, and `tolerance`, what it may be; `output`
               says which one it is
    tflops, gbs  the workload's cost over the time
    of_bound   the bound over the time: 1 is the machine's limit
    ratio      its time over that of archkey's own kernel: above 1, archkey is faster
    how        what a reader of the time must know
    """

    entrant: str
    status: str
    reason: str = ""
    kernel: str = ""
    degraded: bool = False
    error: float | None = None
    tolerance: float | None = None
    output: str = ""
    timing: Timing | None = None
    tflops: float | None = None
    gbs: float | None = None
    of_bound: float | None = None
    ratio: float | None = None
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields; those of the timing beside the others, and absent where there is none."""
        fields = {**self.__dict__}
        timing = fields.pop("timing")
        return {**fields, **(timing.__dict__ if timing else {})}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote."""
        names = Timing.__dataclass_fields__
        timing = Timing(**{n: row[n] for n in names if n in row}) if "us" in row else None
        later = {"timing", "ratio"}
        own = {n: row[n] for n in cls.__dataclass_fields__ if n not in later}
        return cls(**own, timing=timing, ratio=row.get("ratio"))


def entries(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Entry]]:
    """Each entry of a document, with the workload it is about."""
    for workload in document["workloads"]:
        for row in workload["entries"]:
            yield workload, Entry.from_json(row)


def read(path: Path) -> dict[str, Any]:
    """The document at `path`. RecordError for what is not there, or no document of ours."""
    try:
        found = json.loads(path.read_text("utf-8"))
        number = found["format"]
        list(entries(found))
        for key in ("machine", "versions", "ceilings", "peers", "settings"):
            found[key]
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is no result of `archkey bench` ({type(error).__name__}: {error})"
        ) from error
    if number != FORMAT:
        raise RecordError(
            f"{path} is of format {number}, this archkey reads {FORMAT}; run `archkey bench` again"
        )
    return found  # type: ignore[no-any-return]


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as a whole or not at all."""
    try:
        replace(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RecordError(f"the results cannot be written to {path}: {error}") from error

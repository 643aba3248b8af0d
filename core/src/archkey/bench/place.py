# SPDX-License-Identifier: Apache-2.0
"""Where our kernel stands at a workload: ahead of the best peer, level with it, or behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archkey.bench import noise
from archkey.bench.results import OURS, Entry, Timing

__all__ = ["Place", "beside", "best_peer", "bound_by_matrix", "is_ours", "place_of"]

_STANDINGS = {noise.SLOWER: "behind", noise.FASTER: "ahead", noise.SAME: "level"}


@dataclass(frozen=True)
class Place:
    """Ours beside the best peer of the same run.

    standing  "ahead", "level" or "behind", beyond noise
    ratio     the peer's time over ours: above 1 we are faster
    """

    standing: str
    ratio: float
    peer: str


def is_ours(entrant: str) -> bool:
    """Whether a kernel is archkey's: the chosen one, or "archkey:KERNEL", a further one."""
    return entrant.partition(":")[0] == OURS


def beside(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of one workload, each with its ratio to archkey's own kernel."""
    listed = list(entries)
    ours = next((e.timing.us for e in listed if e.entrant == OURS and e.timing), None)
    return [replace(e, ratio=e.timing.us / ours if e.timing and ours else None) for e in listed]


def best_peer(entries: Iterable[Entry]) -> tuple[Entry, Timing] | None:
    """The fastest right entrant that is not ours, with its time; None if nobody has one."""
    timed = [(e, e.timing) for e in entries if not is_ours(e.entrant) and e.timing is not None]
    return min(timed, key=lambda pair: pair[1].us, default=None)


def place_of(workload: Mapping[str, Any]) -> Place | None:
    """Our place at a workload of a document; None where ours or every peer has no time."""
    listed = [Entry.from_json(row) for row in workload["entries"]]
    ours = next((e.timing for e in listed if e.entrant == OURS), None)
    best = best_peer(listed)
    if ours is None or best is None or not ours.us > 0:
        return None
    peer, theirs = best
    verdict = noise.judge(theirs, ours, bound_by_matrix(workload))
    return Place(_STANDINGS[verdict], theirs.us / ours.us, peer.entrant)


def bound_by_matrix(workload: Mapping[str, Any]) -> bool:
    """Whether operations bound the workload, not memory."""
    return bool(workload.get("bound_by")) and workload["bound_by"] == workload.get("rate")

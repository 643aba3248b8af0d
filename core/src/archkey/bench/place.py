# SPDX-License-Identifier: Apache-2.0
"""Where our kernel stands at a workload: ahead of the best peer, level with it, or behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from archkey.bench import noise
from archkey.bench.results import OURS, Entry, Timing

__all__ = ["Place", "best_peer", "bound_by_matrix", "place_of"]

_STANDINGS = {noise.SLOWER: "behind", noise.FASTER: "ahead", noise.SAME: "level"}


@dataclass(frozen=True)
class Place:
    """Ours beside the best peer of the same run.

    standing  "ahead", "level" or "behind", beyond noise
    ratio     our time over the peer's: below 1 we are faster
    """

    standing: str
    ratio: float
    peer: str


def best_peer(entries: Iterable[Entry]) -> tuple[Entry, Timing] | None:
    """The fastest right entrant that is not ours, with its time; None if nobody has one."""
    timed = [(e, e.timing) for e in entries if e.entrant != OURS and e.timing is not None]
    return min(timed, key=lambda pair: pair[1].us, default=None)


def place_of(workload: Mapping[str, Any]) -> Place | None:
    """Our place at a workload of a document; None where ours or every peer has no time."""
    listed = [Entry.from_json(row) for row in workload["entries"]]
    ours = next((e.timing for e in listed if e.entrant == OURS), None)
    best = best_peer(listed)
    if ours is None or best is None:
        return None
    peer, theirs = best
    verdict = noise.judge(theirs, ours, bound_by_matrix(workload))
    return Place(_STANDINGS[verdict], ours.us / theirs.us, peer.entrant)


def bound_by_matrix(workload: Mapping[str, Any]) -> bool:
    """Whether operations bound the workload, not memory."""
    return bool(workload.get("bound_by")) and workload["bound_by"] == workload.get("rate")

# SPDX-License-Identifier: Apache-2.0
"""The way through rows, calls and candidates, and which numbers a row gets. Pure: what measures

and what remembers are given.

For each candidate and each call that a row serves: how many times the best candidate's time it
takes. A candidate is as good as its worst call; the best one is taken if it is better than the
present numbers by more than the noise, which two runs of one setting differ by. A candidate that
failed or was wrong on one call is out, whatever its times are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from archkey.bench.results import Timing
from archkey.tuning import Row

__all__ = ["NOISE", "Choice", "Group", "Memory", "Outcome", "choose", "measure"]

NOISE = 0.05
"""What two runs of one setting differ by: seen on an H200."""


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate on one call.

    status  "timed"; "wrong": outside its bound, so that it has no time; "failed": it could not be
            compiled, its machine code is not what it must be, or it raised
    reason  more, for all but the first
    """

    status: str
    reason: str = ""
    timing: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys `status`, `reason`, and those of the timing if there is one."""
        timing = self.timing.__dict__ if self.timing else {}
        return {"status": self.status, "reason": self.reason, **timing}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Outcome:
        """What `to_json` wrote. KeyError or TypeError for anything else."""
        names = Timing.__dataclass_fields__
        timing = Timing(**{name: row[name] for name in names}) if row["status"] == "timed" else None
        return cls(row["status"], row["reason"], timing)


@dataclass(frozen=True)
class Group:
    """A row of the table, from 1, what it serves, and the values to try: the present ones first."""

    number: int
    row: Row
    samples: tuple[Any, ...]
    candidates: tuple[Any, ...]


Outcomes = Mapping[tuple[str, Any], Outcome]
"""(name of the sample, values) -> what became of them."""


@dataclass(frozen=True)
class Choice:
    """The values that a row gets.

    worst   times over those of the best candidate, on the worst call: with the present values, and
            with these; None where the present ones have no times
    why     in a few words
    before  microseconds by the name of the call, with the present values; `after` with the new ones
    """

    group: Group
    values: Any
    worst: tuple[float, float] | None
    why: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    outcomes: Outcomes

    @property
    def changed(self) -> bool:
        """Whether these are other values than the row has."""
        return bool(self.values != self.group.row.values)

    @property
    def gain(self) -> float | None:
        """How much of the worst ratio is gained, as a share: 0.1 is a tenth."""
        return None if self.worst is None else 1 - self.worst[1] / self.worst[0]


class Memory(Protocol):
    """The half of a journal that the search needs."""

    def get(self, key: Mapping[str, Any]) -> Outcome | None:
        """What is known of `key`."""

    def add(self, key: Mapping[str, Any], outcome: Outcome) -> None:
        """Keep an outcome."""


def measure(
    group: Group,
    rig: Callable[[Any, Row], Callable[[Any], Outcome]],
    key: Callable[[Any, Any], Mapping[str, Any]],
    memory: Memory,
    step: Callable[[str], None],
) -> Outcomes:
    """Outcomes of all candidates of a group on all its samples, those in `memory` included.

    rig   (sample, row) -> values -> outcome; made when the first outcome is missing
    key   (sample, values) -> what the outcome depends on
    step  is told each name before it is measured

    A candidate that is out is not tried on the samples that are left.
    """
    found: dict[tuple[str, Any], Outcome] = {}
    alive = list(group.candidates)
    for sample in group.samples:
        one: Callable[[Any], Outcome] | None = None
        for values in alive:
            step(f"row {group.number}, {sample.name}: {values}")
            outcome = memory.get(key(sample, values))
            if outcome is None:
                one = one or rig(sample, group.row)
                outcome = one(values)
                memory.add(key(sample, values), outcome)
            found[sample.name, values] = outcome
        alive = [values for values in alive if found[sample.name, values].timing]
    return found


def choose(group: Group, outcomes: Outcomes, noise: float = NOISE) -> Choice:
    """The values for the row of `group`. Equal candidates: the one that is listed first."""
    names = [sample.name for sample in group.samples]
    present = group.row.values
    times = {values: _times(names, values, outcomes) for values in group.candidates}
    right = {values: found for values, found in times.items() if len(found) == len(names)}
    before = right.get(present, {})

    def kept(why: str, worst: float | None = None) -> Choice:
        both = None if worst is None else (worst, worst)
        return Choice(group, present, both, why, before, before, outcomes)

    if not names:
        return kept("kept: no call that is timed gets this row")
    if not right:
        return kept(f"kept: none of {len(times)} candidates is right on every call")
    best = {name: min(found[name] for found in right.values()) for name in names}
    worst = {
        values: max(found[name] / best[name] for name in names) for values, found in right.items()
    }
    chosen = min(right, key=lambda values: worst[values])  # the first of equals
    if present not in right:
        after = right[chosen]
        why = "the present values fail: " + _against(names, present, outcomes)
        return Choice(group, chosen, None, why, times[present], after, outcomes)
    if chosen == present:
        return kept(f"kept: the best of {len(right)}", worst[present])
    if 1 - worst[chosen] / worst[present] <= noise:
        return kept(f"kept: the best gains no more than {noise:.0%}", worst[present])
    why, both = f"the best of {len(right)}", (worst[present], worst[chosen])
    return Choice(group, chosen, both, why, before, right[chosen], outcomes)


def _times(names: Iterable[str], values: Any, outcomes: Outcomes) -> dict[str, float]:
    found = {name: outcomes.get((name, values)) for name in names}
    return {name: out.timing.us for name, out in found.items() if out and out.timing}


def _against(names: Sequence[str], values: Any, outcomes: Outcomes) -> str:
    """The first thing that speaks against `values`."""
    for name in names:
        outcome = outcomes.get((name, values))
        if outcome and outcome.timing is None:
            return f"{outcome.status} on {name}: {outcome.reason}"
    return "they were not measured"

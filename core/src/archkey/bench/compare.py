# SPDX-License-Identifier: Apache-2.0
"""What moved between two runs of the bench: times beyond noise, and whatever else changed.

Whether a time moved is judged by `bench.noise`. A workload is known by operator and name; where
its problem differs, two different calls stand under one name, and their times are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from archkey.bench import noise, surroundings
from archkey.bench.place import Place, bound_by_matrix, place_of
from archkey.bench.results import OURS, Entry, Timing
from archkey.bench.surroundings import Ceiling, Version

__all__ = ["UNCOMPARED", "Choice", "Comparison", "Move", "Shift", "StatusChange", "compare"]

UNCOMPARED = "not comparable"

# What is worst comes first: a result that became wrong, then what is lost.
_GRAVITY = ("wrong", "failed", "not served", "not installed", "timed")


@dataclass(frozen=True)
class Move:
    """One entrant at one workload, timed in both runs [microseconds].

    ratio       new over old
    normalised  the same of the shares of the bound, where the ceilings differ: it decides then
    verdict     "slower", "faster", "same" or "not comparable"
    why         of the last
    """

    operator: str
    workload: str
    entrant: str
    old_us: float
    new_us: float
    ratio: float | None
    normalised: float | None
    verdict: str
    why: str = ""

    @property
    def decides(self) -> float:
        """The ratio that was judged; 1 where nothing was."""
        return self.normalised or self.ratio or 1.0


@dataclass(frozen=True)
class StatusChange:
    """An entrant whose status is another one, and the reason it has now."""

    operator: str
    workload: str
    entrant: str
    old: str
    new: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """archkey decided differently: another kernel, or the same with another tuning row."""

    operator: str
    workload: str
    old: str
    new: str
    old_tuning: str
    new_tuning: str


@dataclass(frozen=True)
class Shift:
    """Our place beside the best peer changed."""

    operator: str
    workload: str
    old: Place
    new: Place


@dataclass(frozen=True)
class Comparison:
    """All that differs, gravest first. Entrants are (operator, workload, entrant).

    cards             those of the old and of the new run, and `same_card`: of one kind
    complete          whether the old and the new run came to their ends
    settings          name -> [old, new]
    changed           workloads, as operator and name, whose problem is another one
    only_old, only_new  entrants that one run has at a workload and the other has not
    """

    cards: tuple[str, str]
    same_card: bool
    complete: tuple[bool, bool]
    moves: tuple[Move, ...]
    statuses: tuple[StatusChange, ...]
    choices: tuple[Choice, ...]
    shifts: tuple[Shift, ...]
    versions: tuple[Version, ...]
    ceilings: tuple[Ceiling, ...]
    settings: Mapping[str, tuple[Any, Any]]
    changed: tuple[tuple[str, str], ...]
    only_old: tuple[tuple[str, str, str], ...]
    only_new: tuple[tuple[str, str, str], ...]

    @property
    def summary(self) -> dict[str, int]:
        """How many there are of each kind."""
        verdicts = (noise.SLOWER, noise.FASTER, noise.SAME, UNCOMPARED)
        return {
            "compared": len(self.moves),
            **{name: sum(m.verdict == name for m in self.moves) for name in verdicts},
            "now wrong": sum(s.new == "wrong" for s in self.statuses),
            "status changed": len(self.statuses),
            "decided differently": len(self.choices),
            "place changed": len(self.shifts),
            "only old": len(self.only_old),
            "only new": len(self.only_new),
        }

    @property
    def worse(self) -> bool:
        """Whether archkey's own kernels lost: one is slower, or has no time any more."""
        slower = any(m.entrant == OURS and m.verdict == noise.SLOWER for m in self.moves)
        return slower or any(s.entrant == OURS and s.old == "timed" for s in self.statuses)

    def to_json(self) -> dict[str, Any]:
        """All fields, `summary` and `worse`."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("moves", "statuses", "choices", "shifts", "versions", "ceilings"):
            own[name] = [asdict(row) for row in own[name]]
        return {**own, "summary": self.summary, "worse": self.worse}


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """What moved from `old` to `new`, two documents as `bench.results.read` gives them."""
    before, after = _workloads(old), _workloads(new)
    changed = tuple(k for k in before if k in after and _other_problem(before[k], after[k]))
    both = [(before[k], after[k]) for k in before if k in after and k not in changed]
    moves: list[Move] = []
    statuses: list[StatusChange] = []
    for one, other in both:
        _entrants(one, other, moves, statuses)
    names = [set(_names(document.values())) for document in (before, after)]
    return Comparison(
        cards=(surroundings.card(old), surroundings.card(new)),
        same_card=surroundings.same_kind(old, new),
        complete=(bool(old.get("complete")), bool(new.get("complete"))),
        moves=tuple(sorted(moves, key=_order)),
        statuses=tuple(sorted(statuses, key=_gravity)),
        choices=tuple(filter(None, (_choice(*pair) for pair in both))),
        shifts=tuple(filter(None, (_shift(*pair) for pair in both))),
        versions=tuple(surroundings.versions(old, new)),
        ceilings=tuple(surroundings.ceilings(old, new)),
        settings=surroundings.settings(old, new),
        changed=changed,
        only_old=tuple(n for n in _names(before.values()) if n not in names[1]),
        only_new=tuple(n for n in _names(after.values()) if n not in names[0]),
    )


def _workloads(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(w["operator"], w["name"]): w for w in document["workloads"]}


def _other_problem(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two problems are known and differ: a run that was cut off may lack one."""
    return len({old.get("problem"), new.get("problem")} - {None}) == 2


def _names(workloads: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for workload in workloads:
        for row in workload["entries"]:
            yield workload["operator"], workload["name"], row["entrant"]


def _entrants(
    old: dict[str, Any], new: dict[str, Any], moves: list[Move], statuses: list[StatusChange]
) -> None:
    """What became of those who took part in both runs of a workload."""
    before = {row["entrant"]: Entry.from_json(row) for row in old["entries"]}
    for row in new["entries"]:
        after = Entry.from_json(row)
        was = before.get(after.entrant)
        if was is None:
            continue
        where = (new["operator"], new["name"], after.entrant)
        if was.status != after.status:
            statuses.append(StatusChange(*where, was.status, after.status, after.reason))
        elif was.timing and after.timing:
            moves.append(_move(where, old, new, was.timing, after.timing))


def _move(
    where: tuple[str, str, str], old: dict[str, Any], new: dict[str, Any], was: Timing, now: Timing
) -> Move:
    reason = noise.obstacle(was, now)
    if reason:
        return Move(*where, was.us, now.us, None, None, UNCOMPARED, reason)
    scale = noise.scales(old, new, was.us, now.us)
    verdict = noise.judge(was, now, bound_by_matrix(new), scale or (1.0, 1.0))
    normalised = (now.us / scale[1]) / (was.us / scale[0]) if scale else None
    return Move(*where, was.us, now.us, now.us / was.us, normalised, verdict)


def _order(move: Move) -> tuple[int, bool, float]:
    """Slower before faster before the rest; ours before peers; the farthest first."""
    verdicts = (noise.SLOWER, noise.FASTER, UNCOMPARED, noise.SAME)
    far = max(move.decides, 1 / move.decides)
    return verdicts.index(move.verdict), move.entrant != OURS, -far


def _gravity(change: StatusChange) -> tuple[bool, bool, int, bool]:
    """What is wrong now first, and of that what had a time; ours before peers."""
    had_time, ours = change.old == "timed", change.entrant == OURS
    return change.new != "wrong", not had_time, _GRAVITY.index(change.new), not ours


def _choice(old: dict[str, Any], new: dict[str, Any]) -> Choice | None:
    before, after = _decided(old), _decided(new)
    if before == after or not (before and after):
        return None
    return Choice(new["operator"], new["name"], before[0], after[0], before[1], after[1])


def _decided(workload: dict[str, Any]) -> tuple[str, str] | None:
    """The chosen kernel and its tuning values as text; None where no decision was noted."""
    decision = workload.get("decision")
    if not decision:
        return None
    tuning = decision.get("tuning") or {}
    return decision.get("chosen") or "none", tuning.get("values", "")


def _shift(old: dict[str, Any], new: dict[str, Any]) -> Shift | None:
    before, after = place_of(old), place_of(new)
    if before is None or after is None or before.standing == after.standing:
        return None
    return Shift(new["operator"], new["name"], before, after)

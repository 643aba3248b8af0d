# SPDX-License-Identifier: Apache-2.0
"""Which rules on installed distributions hold here, and what a broken one changes.

A rule is written once and rested on by many: kernels, and single rows of tunings. What it changes
is found by deciding twice: as the session does, and as it would if every rule held. The difference,
over the example problems of all operators, is what the user loses.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from archkey.errors import UnknownName
from archkey.kernel import Kernel
from archkey.plugins import Loaded
from archkey.requirements import SEVERITIES, Requirement, Violation, distributions_of
from archkey.selection import Code, Decision
from archkey.session import Session
from archkey.settings import settings
from archkey.tuning import Row, Table

__all__ = ["Dependent", "Effect", "Instead", "Standing", "examine", "machine", "misnamed"]


class Effect(str, Enum):
    """What a rule does to one of those that rest on it."""

    NONE = "none"  # the rule holds
    CHANGED = "changed"  # something else runs for at least one example problem
    UNSEEN = "unseen"  # it is disabled, and no example problem would get it
    UNUSED = "unused"  # it is disabled, and would not run here in any case


@dataclass(frozen=True)
class Instead:
    """What runs in place of what is disabled.

    kernel    its id; None if nothing can run
    row       of its tuning, from 1; None without a table
    degraded  it was made for another target: the torch reference on a GPU
    """

    kernel: str | None
    row: int | None
    degraded: bool

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dict(vars(self))


@dataclass(frozen=True)
class Dependent:
    """A kernel that rests on a rule, or one row of its tuning.

    row      the row's number, from 1; None: the kernel itself
    instead  what runs for the example problems that it would get, each once
    """

    target: str
    operator: str
    kernel: str
    row: int | None
    effect: Effect
    instead: tuple[Instead, ...] = ()

    @property
    def last_resort(self) -> bool:
        """Nothing that was made for the target is left to run, for one problem at least."""
        return any(other.degraded or other.kernel is None for other in self.instead)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        instead = [other.to_json() for other in self.instead]
        return {**vars(self), "effect": self.effect.value, "instead": instead}


@dataclass(frozen=True)
class Standing:
    """A rule, the version that is installed (None: not installed), and all that rests on it."""

    rule: Requirement
    version: str | None
    dependents: tuple[Dependent, ...]

    @property
    def state(self) -> str:
        """ "ok", "violated" or "not installed"."""
        if self.version is None:
            return "not installed"
        return "ok" if self.rule.satisfied_by({self.rule.package: self.version}) else "violated"

    @property
    def matters(self) -> bool:
        """Whether a user should act.

        A wrong version matters if anything else runs for it, or might. What is not installed is an
        option that nobody took: it matters if nothing but the last resort is left.
        """
        if self.version is None:
            return any(dependent.last_resort for dependent in self.dependents)
        lost = (Effect.CHANGED, Effect.UNSEEN)
        return any(dependent.effect in lost for dependent in self.dependents)

    def to_json(self) -> dict[str, Any]:
        """Keys `package`, `required`, `found`, `version`, `state`, `severity`, `why`, `reference`,

        `remedy`, `matters`, `dependents`.
        """
        return {
            "package": self.rule.package,
            **Violation(self.rule, self.version).to_json(),
            "version": self.version,
            "state": self.state,
            "matters": self.matters,
            "dependents": [dependent.to_json() for dependent in self.dependents],
        }


def examine(sessions: Iterable[Session]) -> tuple[Standing, ...]:
    """All rules that kernels and tunings of the sessions rest on: what matters and is worst first.

    The sessions are those of the environment's settings, as `archkey.open(target)` makes them.
    """
    found: dict[Requirement, list[Dependent]] = {}
    versions: dict[str, str] = {}
    for session in sessions:
        versions |= session.versions
        for rule, dependent in _dependents(session):
            found.setdefault(rule, []).append(dependent)
    listed = (
        Standing(rule, versions.get(rule.package), tuple(dependents))
        for rule, dependents in found.items()
    )
    return tuple(sorted(listed, key=_urgency))


def _urgency(standing: Standing) -> tuple[Any, ...]:
    rule, states = standing.rule, ("violated", "not installed", "ok")
    severity = SEVERITIES.index(rule.severity)
    return (not standing.matters, states.index(standing.state), severity, str(rule), rule.why)


# ---- deciding twice


@dataclass(frozen=True)
class _Pair:
    """The decision of an example problem as it is, and as it would be if every rule held."""

    now: Decision
    free: Decision

    @property
    def instead(self) -> Instead:
        chosen, tuning = self.now.chosen, self.now.tuning
        row = tuning.number if tuning else None
        return Instead(chosen.id if chosen else None, row, self.now.degraded)


def _dependents(session: Session) -> Iterator[tuple[Requirement, Dependent]]:
    """Each rule with each kernel and row that rests on it."""
    free = _freed(session)
    pairs = {name: list(_pairs(session, free, name)) for name in session.operators}
    for kernel in (kernel for plugin in session.plugins for kernel in plugin.kernels):
        rows = kernel.tuning.rows if kernel.tuning else ()
        for number, row in [(None, None), *enumerate(rows, 1)]:
            for rule in kernel.requires if row is None else row.requires:
                effect, instead = Effect.NONE, _NOTHING
                if not rule.satisfied_by(session.versions):
                    effect, instead = _effect(kernel, number, row, pairs[kernel.operator])
                target, operator = session.device.target.key, kernel.operator
                yield rule, Dependent(target, operator, kernel.id, number, effect, instead)


_NOTHING: tuple[Instead, ...] = ()


def _freed(session: Session) -> Session:
    """The same session, if nothing rested on anything."""
    plugins = tuple(
        replace(plugin, kernels=tuple(map(_without_rules, plugin.kernels)))
        for plugin in session.plugins
    )
    return Session(session.device, settings(), loaded=Loaded(plugins, session.report))


def _without_rules(kernel: Kernel) -> Kernel:
    table = kernel.tuning
    if table is not None:
        table = Table(tuple(replace(row, requires=()) for row in table.rows))
    return replace(kernel, requires=(), tuning=table)


def _pairs(session: Session, free: Session, operator: str) -> Iterator[_Pair]:
    for problem in session.operators[operator].examples.values():
        with suppress(UnknownName):  # an override names no kernel: see `misnamed`
            yield _Pair(session.decide(problem), free.decide(problem))


def _effect(
    kernel: Kernel, number: int | None, row: Row | None, pairs: Iterable[_Pair]
) -> tuple[Effect, tuple[Instead, ...]]:
    """What is lost with `kernel`, or with a row of its tuning that has this number."""
    lost, spared = [], False
    for pair in pairs:
        chosen, tuning = pair.free.chosen, pair.free.tuning
        if chosen is None or chosen.id != kernel.id:
            spared |= any(
                r.kernel == kernel.id and r.code in _ELSEWHERE for r in pair.free.rejected
            )
        elif number is None or (tuning is not None and tuning.number == number):
            lost.append(pair.instead)
        else:  # a row before it is for the same problems
            spared |= row is not None and row.accepts(pair.free.problem)
    if lost:
        return Effect.CHANGED, tuple(dict.fromkeys(lost))
    return (Effect.UNUSED if spared else Effect.UNSEEN), _NOTHING


_ELSEWHERE = (Code.OUTRANKED, Code.CAPABILITY, Code.OVERRIDE, Code.DEGRADED)
"""Why a kernel does not run here, whatever is installed."""


# ---- beside the rules


def misnamed(session: Session) -> tuple[str, ...]:
    """What is wrong with overrides of the environment that name no kernel; each call would fail."""
    said = []
    for operator in session.operators.values():
        for problem in [*operator.examples.values()][:1]:
            try:
                session.decide(problem)
            except UnknownName as error:
                said.append(f"{session.device.target.key}: {error}")
    return tuple(said)


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a report on this machine begins with; nothing is imported for it.

    Keys `python`, `executable`, `platform`, `distributions` (package -> name -> version; of
    archkey, torch, triton and `packages`) and `environment`: variables that change what runs.
    """
    listed = dict.fromkeys(["archkey", "torch", "triton", *sorted(packages)])
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "distributions": {package: distributions_of(package) for package in listed},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("ARCHKEY_", "TRITON_")) or name in _VISIBLE
        },
    }


_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

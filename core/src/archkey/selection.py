# SPDX-License-Identifier: Apache-2.0
"""Problem + device + kernels -> Decision. Pure: no environment, no import of kernels, no device.

**Order, not scores.** Candidates come best first; the first that nothing speaks against is
chosen. The Decision keeps a reason for every other one, also for those behind the choice. The
call, the error, `explain`, the command line and the log all render this one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from archkey.capabilities import Capabilities
from archkey.kernel import Kernel
from archkey.requirements import Violation
from archkey.target import Target
from archkey.tuning import Lookup

if TYPE_CHECKING:
    from archkey.ops import Problem

__all__ = ["Candidate", "Code", "Decision", "Policy", "Rejection", "select"]


class Code(str, Enum):
    """Why a kernel was not chosen."""

    OUTRANKED = "outranked"  # nothing speaks against it, another one comes first
    PROBLEM = "problem"  # it does not accept this problem
    CAPABILITY = "capability"  # the device lacks what it needs
    REQUIREMENT = "requirement"  # a distribution is missing, too old, or known to be bad
    OVERRIDE = "override"  # the user asked for another one
    DEGRADED = "degraded"  # it was made for another target, and the user is strict
    BUILD = "build"  # it was chosen before and could not be built


@dataclass(frozen=True)
class Rejection:
    """One reason against one kernel: what was required, what was found, what would help.

    violation: the broken rule, where the code is "requirement"
    """

    kernel: str
    code: Code
    required: str
    found: str
    remedy: str
    violation: Violation | None = None

    @property
    def consequence(self) -> str:
        """What it would be to run in spite of a known-bad version; "" for every other reason."""
        broken = self.violation
        return broken.rule.consequence if broken and broken.version and broken.rule.why else ""

    def to_json(self) -> dict[str, str]:
        """The keys `kernel`, `code`, `required`, `found`, `remedy`.

        Of a requirement also `severity`, `why`, `reference`.
        """
        return {
            "kernel": self.kernel,
            "code": self.code.value,
            "required": self.required,
            "found": self.found,
            "remedy": self.remedy,
            **(self.violation.to_json() if self.violation else {}),
        }


@dataclass(frozen=True)
class Candidate:
    """A kernel, and the target its plugin was made for."""

    kernel: Kernel
    home: Target


@dataclass(frozen=True)
class Policy:
    """What the user asked for: a kernel by name per operator, and whether to be strict."""

    override: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    strict: bool = False


@dataclass(frozen=True)
class Decision:
    """The chosen kernel, and for every other one the reason against it.

    degraded: the chosen kernel was made for another target (the torch reference on a GPU).
    tuning: the row of numbers that the chosen kernel gets, and the rows that were fenced off.
    """

    operator: str
    target: Target
    problem: Problem
    chosen: Kernel | None
    degraded: bool
    rejected: tuple[Rejection, ...]
    overridden: bool = False
    tuning: Lookup | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys `operator`, `target`, `problem`, `chosen`, `degraded`, `tuning`, `rejected`."""
        return {
            "operator": self.operator,
            "target": self.target.key,
            "problem": self.problem._asdict(),
            "chosen": self.chosen.id if self.chosen else None,
            "degraded": self.degraded,
            "tuning": self.tuning.to_json() if self.tuning else None,
            "rejected": [r.to_json() for r in self.rejected],
        }


def select(
    problem: Problem,
    target: Target,
    capabilities: Capabilities,
    candidates: Sequence[Candidate],
    versions: Mapping[str, str],
    policy: Policy | None = None,
    failed: Mapping[str, str] | None = None,
) -> Decision:
    """Choose a kernel of `problem.operator` for `target`.

    candidates  kernels of the operator, best first
    versions    installed distributions (name -> version) that requirements are judged by
    failed      kernels that could not be built before: id -> what happened
    """
    policy = policy or Policy()
    wanted = policy.override.get(problem.operator)
    chosen: Candidate | None = None
    rejected: list[Rejection] = []
    for candidate in candidates:
        kernel, made_here = candidate.kernel, candidate.home.serves(target)
        against = next(
            _against(kernel, problem, capabilities, versions, wanted, failed or {}), None
        )
        if against is None and policy.strict and not made_here:
            against = _degraded(kernel, candidate.home, target)
        if against is None and chosen is not None:
            against = _outranked(kernel, chosen.kernel)
        if against is None:
            chosen = candidate
        else:
            rejected.append(against)
    table = chosen.kernel.tuning if chosen else None
    return Decision(
        operator=problem.operator,
        target=target,
        problem=problem,
        chosen=chosen.kernel if chosen else None,
        degraded=chosen is not None and not chosen.home.serves(target),
        rejected=tuple(rejected),
        overridden=wanted is not None,
        tuning=table.consult(problem, versions) if table else None,
    )


def _against(
    kernel: Kernel,
    problem: Problem,
    capabilities: Capabilities,
    versions: Mapping[str, str],
    wanted: str | None,
    failed: Mapping[str, str],
) -> Iterator[Rejection]:
    """Reasons against `kernel`, the most telling first."""
    for need in kernel.needs:
        capability = capabilities[need.field]
        if not need.holds(capability.value):
            remedy = need.why or "use a device that has it"
            found = f"{need.field} = {capability.value} ({capability.reason})"
            yield Rejection(kernel.id, Code.CAPABILITY, str(need), found, remedy)
    for accept in kernel.accepts:
        value = getattr(problem, accept.field)
        if not accept.holds(value):
            remedy = accept.why or f"change {accept.field} or use another kernel"
            found = f"{accept.field} = {value}"
            yield Rejection(kernel.id, Code.PROBLEM, str(accept), found, remedy)
    for rule in kernel.requires:
        broken = rule.violation(versions)
        if broken is not None:
            found, remedy = broken.found, broken.remedy
            yield Rejection(kernel.id, Code.REQUIREMENT, str(rule), found, remedy, broken)
    if kernel.id in failed:
        remedy = "see the log, mend or remove the plugin, and start again"
        yield Rejection(kernel.id, Code.BUILD, "a build without error", failed[kernel.id], remedy)
    if wanted is not None and not kernel.named(wanted):
        remedy = f"end the override of {kernel.operator}"
        yield Rejection(kernel.id, Code.OVERRIDE, f"kernel {wanted}", kernel.id, remedy)


def _degraded(kernel: Kernel, home: Target, target: Target) -> Rejection:
    return Rejection(
        kernel.id,
        Code.DEGRADED,
        f"a kernel made for {target.key}",
        f"made for {home.key}",
        f"install the plugin of {target.key}, or allow it with strict=False",
    )


def _outranked(kernel: Kernel, chosen: Kernel) -> Rejection:
    return Rejection(
        kernel.id,
        Code.OUTRANKED,
        "the first place among those that accept",
        f"{chosen.id} comes first",
        f'override {kernel.operator} with "{kernel.id}" to use it',
    )

# SPDX-License-Identifier: Apache-2.0
"""Which calls are timed, and which row of the table serves each of them today.

A table may be shared by kernels: rmsnorm's numbers are fused_add_rmsnorm's too. So the calls are
those of every operator whose kernel would feel a change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch

from archkey.bench.gate import hear
from archkey.bench.tune.search import Group
from archkey.bench.workload import Supply, Workload, workloads_of
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import maker_of
from archkey.errors import ArchkeyError, UnknownName, Unsupported, describe
from archkey.kernel import Kernel
from archkey.ops import Operator
from archkey.session import Session
from archkey.tuning import Table

__all__ = ["Sample", "calls_of", "groups", "pick", "samples", "sharers"]


@dataclass(frozen=True)
class Sample:
    """One call: `inputs(maker)` are the keyword arguments of the operator's public function.

    name     of operator and workload; of the kernel too, where two of one operator share the table
    kernel   the one that runs it, with the table that is tuned
    problem  what the call is a Problem of
    """

    name: str
    kernel: Kernel
    inputs: Callable[[Maker], Mapping[str, Any]]
    problem: Any


def pick(session: Session, operator: str, name: str | None) -> Kernel:
    """The kernel to tune: the one called `name`, or the one that the first example gets.

    Raises for a kernel without a table, or without a space to search.
    """
    if operator not in session.operators:
        raise UnknownName("operator", operator, session.operators)
    listed = session.kernels(operator)
    tunable = [kernel.id for kernel in listed if kernel.tuning and kernel.space]
    others = f"to be tuned: {', '.join(tunable) or 'none'} (--kernel)"
    if name is None:
        examples = session.operators[operator].examples.values()
        decisions = (session.decide(problem) for problem in examples)
        kernel = next((d.chosen for d in decisions if d.chosen), None)
        if kernel is None:
            raise Unsupported(f"{operator} has no kernel on {session.device.target}; {others}")
    else:
        named = [kernel for kernel in listed if kernel.named(name)]
        if not named:
            known = {known for kernel in listed for known in (kernel.name, kernel.id)}
            raise UnknownName(f"kernel of {operator}", name, known)
        kernel = named[0]
    if kernel.tuning is None:
        raise ArchkeyError(f"kernel {kernel.id} of {operator} has no tuning table; {others}")
    if kernel.space is None:
        raise ArchkeyError(
            f"kernel {kernel.id} of {operator} does not say which numbers may be tried: give it a "
            f"`space` (archkey.tuning.Space); {others}"
        )
    return kernel


def sharers(session: Session, kernel: Kernel) -> tuple[Kernel, ...]:
    """All kernels of its plugin that have this very table, `kernel` first."""
    listed = [k for plugin in session.plugins for k in plugin.kernels if k.plugin == kernel.plugin]
    return (kernel, *(k for k in listed if k != kernel and _same(k.tuning, kernel.tuning)))


def _same(one: Table | None, other: Table | None) -> bool:
    """One object, or one place in a file; equal numbers alone are a coincidence."""
    if one is None or other is None:
        return False
    return one is other or (one.source is not None and one.source == other.source)


def calls_of(operator: Operator) -> Sequence[Workload | Case]:
    """The operator's workloads; without any, the cases of real models in its exam."""
    return workloads_of(operator) or [case for case in cases_of(operator) if case.real]


def samples(
    session: Session, kernels: Sequence[Kernel], pattern: str = ""
) -> tuple[list[Sample], list[str]]:
    """The calls that these kernels serve, and for each other call a line that says why not.

    pattern  only calls whose name it is a part of; `*` stands for anything
    """
    found: list[Sample] = []
    left: list[str] = []
    for number, kernel in enumerate(kernels):
        twin = kernel.operator in [other.operator for other in kernels[:number]]
        for call in calls_of(session.operators[kernel.operator]):
            name = f"{kernel.operator} {call.name}" + f" with {kernel.name}" * twin
            if not fnmatch(name, f"*{pattern}*"):
                continue
            try:
                inputs = call.inputs(maker_of(session, 0, Supply))
                problem, _ = hear(session, kernel.operator, inputs)
            except (Unsupported, torch.OutOfMemoryError) as error:
                left.append(f"{name}: {describe(error, 200)}")
                continue
            decision = session.decide(problem, kernel=kernel.id)
            if decision.chosen is None:
                against = next(r for r in decision.rejected if r.kernel == kernel.id)
                left.append(f"{name}: {kernel.id} needs {against.required}, found {against.found}")
                continue
            found.append(Sample(name, kernel, call.inputs, problem))
    return found, left


def groups(
    session: Session, kernel: Kernel, listed: Sequence[Sample], only: int | None = None
) -> list[Group]:
    """The rows of the kernel's table, each with the samples that it serves.

    only  the number of the one row to look at, from 1
    """
    table, space = kernel.tuning, kernel.space
    if table is None or space is None:
        raise ArchkeyError(f"kernel {kernel.id} has no tuning table or no space; see `pick`")
    if only is not None and not 1 <= only <= len(table.rows):
        raise UnknownName("row", str(only), map(str, range(1, len(table.rows) + 1)))
    serves = [table.consult(sample.problem, session.versions).number for sample in listed]
    return [
        Group(
            number,
            row,
            tuple(s for s, n in zip(listed, serves, strict=True) if n == number),
            space.around(row.values, session.capabilities),
        )
        for number, row in enumerate(table.rows, 1)
        if only in (None, number)
    ]

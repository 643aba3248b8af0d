# SPDX-License-Identifier: Apache-2.0
"""A Decision as text: one line for a table, a paragraph for an error, all of it for `explain`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from archkey.plugins import DEFAULT
from archkey.selection import Code, Decision, Rejection
from archkey.target import Target
from archkey.tuning import Fence, Row

__all__ = [
    "explain",
    "fence_text",
    "headline",
    "measured_text",
    "row_text",
    "short_name",
    "unprepared",
    "unsupported",
]


def headline(decision: Decision) -> str:
    """Why the chosen kernel was chosen, in a few words."""
    if decision.chosen is None:
        return f"none of {len(decision.rejected)} kernels can serve this problem"
    ahead = [r for r in decision.rejected if r.code is not Code.OUTRANKED]
    if decision.overridden:
        why = "asked for by name"
    elif decision.degraded:
        why = "last resort"
    elif not ahead:
        why = "first in order"
    else:
        why = f"first that nothing speaks against, {len(ahead)} refused"
    return why + (" (degraded)" if decision.degraded else "")


def explain(decision: Decision) -> str:
    """The whole decision: problem, choice, and every other kernel with its reason."""
    fields = ", ".join(
        f"{name}={value}"
        for name, value in decision.problem._asdict().items()
        if name != "operator"
    )
    chosen = decision.chosen.id if decision.chosen else "no kernel"
    lines = [
        f"{decision.operator} on {decision.target}",
        f"  problem: {fields}",
        f"  chosen:  {chosen} - {headline(decision)}",
    ]
    if decision.chosen and decision.chosen.summary:
        lines.append(f"           {decision.chosen.summary}")
    if decision.tuning:
        number, row = decision.tuning.number, decision.tuning.row
        lines.append(f"  tuning:  {row_text(number, row)}; {measured_text(row)}")
        lines += [f"  fenced:  {fence_text(fence)}" for fence in decision.tuning.fenced]
    lines += [f"  not:     {_sentence(r)}" for r in decision.rejected]
    return "\n".join(lines)


def short_name(kernel: str, target: str, degraded: bool) -> str:
    """A kernel's id for a table about `target`: without the plugin's name if that is the target's
    own or the default's; `*` is a degraded one."""
    return kernel.removeprefix(f"{target}:").removeprefix(f"{DEFAULT}:") + "*" * degraded


def row_text(number: int, row: Row) -> str:
    """A row of a tuning table: its number, its values, and which problems it is for."""
    when = " and ".join(map(str, row.when)) or "every problem"
    return f"row {number}, {row.values}, for {when}"


def measured_text(row: Row) -> str:
    """Where the numbers of a row come from; tables write "not measured: ..." for guesses."""
    said = str(row.measured)
    return said if said.startswith("not ") else f"measured: {said}"


def fence_text(fence: Fence) -> str:
    """A row that was passed over, and why."""
    start, broken = row_text(fence.number, fence.row), fence.violation
    return f"{start}, needs {broken.rule}; found {broken.found}; {broken.rule.consequence}"


def unsupported(decision: Decision) -> str:
    """The message of an error: nothing can run, and what would help."""
    start = f"{decision.operator} cannot run on {decision.target} for this problem."
    if not decision.rejected:
        return f"{start} No plugin supplies a kernel of it; `archkey plugins` lists what is loaded."
    return start + "\n" + explain(decision)


def unprepared(
    problem: Any, wanted: str | None, prepared: Iterable[tuple[Any, str | None]], target: Target
) -> str:
    """The message of a frozen session: what was asked, the nearest that was prepared, what to do.

    wanted, and the second of each pair  the kernel that an override asks for
    """
    said = f"{problem} was not prepared before freeze() on {target}"
    asked = _fields(problem, wanted)
    known = [_fields(*pair) for pair in prepared if pair[0].operator == problem.operator]
    if known:
        near = min(known, key=lambda fields: sum(fields[n] != asked[n] for n in asked))
        differences = ", ".join(
            f"{name}: {near[name]} -> {asked[name]}" for name in asked if near[name] != asked[name]
        )
        said += f"; of {len(known)} prepared for {problem.operator} the nearest differs in"
        said += f" (prepared -> asked) {differences}"
    else:
        said += f"; nothing was prepared for {problem.operator}"
    return said + (
        ". Pass it to session.prepare() before freeze(); `archkey prepare --list` shows what a "
        "model needs, session.thaw() lets kernels be built again"
    )


def _fields(problem: Any, wanted: str | None) -> dict[str, Any]:
    return {**problem._asdict(), "kernel by override": wanted}


def _sentence(r: Rejection) -> str:
    said = (f"needs {r.required}", f"found {r.found}", r.consequence, r.remedy)
    return f"{r.kernel} [{r.code.value}] " + "; ".join(filter(None, said))

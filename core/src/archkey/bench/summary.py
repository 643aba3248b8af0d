# SPDX-License-Identifier: Apache-2.0
"""The report as tables of text, for a terminal: what they hold, not how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archkey.bench import numbers
from archkey.bench.report.model import Line, OperatorView, Tally, View, WorkloadView

__all__ = ["Block", "Table", "blocks"]

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Columns and rows, and below them what is too long for a column.

    right  columns that are set to the right
    spare  columns that a narrow terminal can do without, the first first
    notes  names and texts
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    notes: Pairs = ()


@dataclass(frozen=True)
class Block:
    """A heading with facts and tables below. `warnings` are lines that stand out."""

    title: str
    facts: Pairs = ()
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()


def blocks(view: View) -> Iterator[Block]:
    """The parts of the report in the order of the page."""
    yield _head(view)
    if view.operators:
        yield _glance(view)
    for operator in view.operators:
        yield _operator(operator)
    if view.targets:
        yield _coverage(view)
    yield Block("Peers", tuple(map(_peer, view.document["peers"])) or (("none", "took part"),))
    yield _machine(view)


def _head(view: View) -> Block:
    document = view.document
    return Block(
        f"archkey bench on {view.machine}",
        (
            ("started", str(document["started"])),
            ("versions", _listed({"archkey": document["archkey"], **document["versions"]})),
            ("beside the best peer", _counted(view.tally) or "no call was measured"),
        ),
        warnings=() if document["complete"] else ("interrupted: not all calls were measured",),
    )


def _glance(view: View) -> Block:
    rows = []
    for operator in view.operators:
        glance = operator.glance
        ours, peer = glance.workload.ours, glance.workload.peer
        rows.append(
            (
                operator.name + "*" * glance.degraded,
                (numbers.time(ours.us) if ours.entry.timing else ours.entry.status) if ours else "",
                numbers.percent(ours.entry.of_bound) if ours else "",
                peer.entry.entrant if peer else "none timed",
                numbers.time(peer.us) if peer else "",
                numbers.ratio(glance.workload.ratio),
                _counted(glance.tally),
            )
        )
    columns = ("operator", "us", "bound", "best peer", "its us", "ratio", "all calls")
    right = ("us", "bound", "its us", "ratio")
    note = "* degraded: a kernel made for another target, usually the torch reference"
    return Block(
        "At a glance",
        (("one call each", "the first of the short run that has a time"),
         ("ratio", "the best peer's time over archkey's: above 1, archkey is faster")),
        (Table("", columns, tuple(rows), right, ("all calls",)),),
        (note,) if any(o.glance.degraded for o in view.operators) else (),
    )  # fmt: skip


def _operator(operator: OperatorView) -> Block:
    glance = operator.glance
    kernels = ", ".join(glance.kernels) or "no kernel of archkey"
    mean = f"; mean {numbers.ratio(glance.mean)}" if glance.mean else ""
    return Block(
        operator.name,
        (("kernel", kernels), ("calls", _counted(glance.tally) + mean)),
        tuple(map(_times, operator.workloads)),
        (f"degraded: {kernels} was made for another target",) if glance.degraded else (),
    )


def _times(workload: WorkloadView) -> Table:
    data = workload.data
    by = f" by {data['bound_by']}" if data["bound_by"] else ""
    bound = f"bound {numbers.time(data['bound_us'])} us{by}"
    right = ("us", "spread", "rate", "bound", "ratio", "error/may be")
    return Table(
        f"{workload.number}. {data['title']}; {bound}",
        ("entrant", *right),
        tuple(map(_line, workload.timed)),
        right,
        ("error/may be", "spread"),
        _notes(workload),
    )


def _line(line: Line) -> tuple[str, ...]:
    entry = line.entry
    rate = f"{numbers.rate(entry.gbs)} GB/s" if entry.gbs else ""
    if entry.tflops:
        rate = f"{numbers.rate(entry.tflops)} TF"
    return (
        entry.entrant + "*" * entry.degraded,
        numbers.time(line.us),
        numbers.spread(entry),
        rate,
        numbers.percent(entry.of_bound),
        numbers.ratio(line.ratio),
        f"{numbers.error(entry.error)}/{numbers.error(entry.tolerance)}",
    )


def _notes(workload: WorkloadView) -> Pairs:
    said = [
        (line.entry.entrant, text)
        for line in (*workload.timed, *workload.absent)
        if (text := _note(line))
    ]
    gone = ", ".join(line.entry.entrant for line in workload.gone)
    return (*said, ("not installed", gone)) if gone else tuple(said)


def _note(line: Line) -> str:
    """What has no column: why there is no time, what was left out of it, how it was taken."""
    entry = line.entry
    method = f"by {entry.timing.method}" if entry.timing and entry.timing.method != "graph" else ""
    status = "" if entry.timing else entry.status
    reason = ": ".join(filter(None, (status, entry.reason)))
    return "; ".join(filter(None, (reason, entry.how, method)))


def _coverage(view: View) -> Block:
    rows = []
    for target in view.targets:
        mine = [row for row in view.document["coverage"] if row["target"] == target]
        without = sum(row["kernel"] is None for row in mine)
        degraded = sum(row["degraded"] for row in mine)
        levels = [row["level"] for row in mine]
        counts = ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(levels))
        made = len(mine) - without - degraded
        rows.append((target, str(made), str(degraded), str(without), counts))
    counted = ("made for it", "degraded", "no kernel")
    problems = tuple(
        f"{row['operator']} on {row['target']}: {problem}"
        for row in view.document["coverage"]
        for problem in row["problems"]
    )
    table = Table("", ("target", *counted, "level on record"), tuple(rows), counted)
    return Block("Coverage: operators by target", (), (table,), problems)


def _peer(peer: Mapping[str, Any]) -> tuple[str, str]:
    parts = [peer["state"], _listed(peer["versions"]), peer["reason"]]
    if peer["state"] != "installed" and peer["install"] not in peer["reason"]:
        parts.append(peer["install"])
    return str(peer["title"]), "; ".join(filter(None, parts))


def _machine(view: View) -> Block:
    document = view.document
    rows = tuple(
        (
            str(row["name"]),
            numbers.big(row["start"], row["unit"]),
            "not measured" if row["end"] is None else numbers.big(row["end"], row["unit"]),
        )
        for row in document["ceilings"]
    )
    none = () if rows else (("ceilings", "none was measured, so that there is no bound either"),)
    return Block(
        "Machine",
        (
            ("device", _listed(document["machine"]["device"])),
            ("host", _listed(document["machine"]["host"])),
            ("settings", _listed(document["settings"])),
            *none,
        ),
        (Table("", ("ceiling", "start", "end"), rows, ("start", "end")),) if rows else (),
    )


def _counted(tally: Tally) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in tally.parts)


def _listed(values: Mapping[str, Any]) -> str:
    """Names and values in a line, without what is unknown."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, ""))

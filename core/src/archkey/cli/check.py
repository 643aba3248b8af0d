# SPDX-License-Identifier: Apache-2.0
"""`archkey check`: the exam of a target or a plugin, and its record."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archkey.cli.output import emit, json_option
from archkey.conformance.levels import Level, parse_levels
from archkey.errors import UnknownName
from archkey.locate import find_device
from archkey.requirements import installed_versions

if TYPE_CHECKING:
    from rich.text import Text

    from archkey.conformance.exam import Subject
    from archkey.conformance.levels import Item, Outcome
    from archkey.conformance.pool import Terms

__all__ = ["command"]


@click.command(short_help="Examine the kernels of a target or plugin.")
@click.argument("name", metavar="[TARGET|PLUGIN]", required=False)
@click.option("--level", "-l", "levels", multiple=True, help="Only this level; repeatable.")
@click.option("--operator", "-o", "operators", multiple=True, help="Only this one; repeatable.")
@click.option("--full", is_flag=True, help="On the CPU the sizes of real models too: slow.")
@click.option("--examples", default=20, show_default=True, help="Random problems a kernel.")
@click.option("--seed", default=0, show_default=True, help="Of all random numbers.")
@click.option(
    "--jobs", "-j", type=int, help="Processes at a time; default: one a core, one alone on a card."
)
@click.option("--timeout", default=600.0, show_default=True, help="Seconds a case; 0 is no limit.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The record; default: in the user's data folder.",
)
@json_option
def command(
    name: str | None,
    levels: tuple[str, ...],
    operators: tuple[str, ...],
    full: bool,
    examples: int,
    seed: int,
    jobs: int | None,
    timeout: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Examine the kernels of a TARGET, or of one PLUGIN such as cuda_sm90.acme, level by level.

    Levels: contract, compiled, interpreted, emulated, device; and accuracy, which says how well a
    kernel computes, on the card or else on the CPU. What cannot run here is skipped, with the
    reason, and never counts as passed. Cases run in processes of their own; progress goes to
    stderr. The outcome is kept in an evidence record, which `archkey coverage` reads: levels that
    did not run now stay in it as they were, and so do operators that were not asked for.

    Exit code 1 if a case failed, or if a level asked for by name ran no case.

    \b
    archkey check rocm_gfx950
    archkey check cuda_sm90 --level device --level accuracy
    archkey check cuda_sm90 -o mla_decode -o mla_prefill --output evidence.json
    archkey check cuda_sm90.acme --operator rmsnorm --level interpreted --full
    archkey check acme_x1 --json | jq '.levels.interpreted.cases[] | select(.outcome == "failed")'
    """
    from archkey.conformance import evidence, exam, record
    from archkey.conformance.pool import Terms

    wanted = parse_levels(levels)
    subject = exam.find(name or find_device(None).target.key)
    for operator in operators:
        if operator not in subject.session.operators:
            raise UnknownName("operator", operator, subject.session.operators)
    # Most of a case's time on a card is its reference on the CPU; but memory is everyone's.
    terms = Terms(jobs or os.cpu_count() or 1, timeout, examples, seed, sharing=jobs or 1)
    asked = {level: exam.questions(subject, level, operators, full) for level in wanted}
    path = output or evidence.own_path(subject.name)
    record.read(path)  # one that cannot be understood is said before the work, not after
    document = record.new(subject.target)
    complete = _hold(subject, asked, operators, terms, document, path)
    if as_json:
        emit(document)
    else:
        _show(subject.name, document, path)
    if not complete:
        raise click.exceptions.Exit(130)
    if _failed(document, levels):
        raise click.exceptions.Exit(1)


def _hold(
    subject: Subject,
    asked: dict[Level, tuple[list[Item], list[Outcome]]],
    operators: Collection[str],
    terms: Terms,
    document: dict[str, Any],
    path: Path,
) -> bool:
    """Hold the exam: each level goes into `document`, and to `path`, as soon as it ends.

    operators: those it is of; none means all. False if it was interrupted; what was done by then is
    kept, marked as incomplete.
    """
    from archkey.cli import render
    from archkey.conformance import evidence, exam, record
    from archkey.conformance.pool import answers, built

    complete = True
    versions, sources = _versions(subject), exam.sources(subject, operators)
    ahead = {
        level: exam.ahead(subject, level, items) if terms.jobs > 1 else []
        for level, (items, _) in asked.items()
    }
    steps = sum(len(items) + len(ahead[level]) for level, (items, _) in asked.items())
    with render.progress(steps) as step:
        for level, (items, answered) in asked.items():
            outcomes = list(answered)
            try:
                for item in built(subject.target, level, ahead[level], terms):
                    step(f"compiled for {item.name}")
                for outcome in answers(subject.target, level, items, terms):
                    outcomes.append(outcome)
                    failed = ": failed" if outcome.outcome == "failed" else ""
                    step(f"{outcome.item.name}{failed}")
            except KeyboardInterrupt:
                complete = False
                done = len(outcomes) - len(answered)
                click.echo(f"interrupted at {level.value}: {done} of {len(items)}", err=True)
            document["levels"][level.value] = record.block(
                outcomes,
                complete=complete,
                date=datetime.now(timezone.utc).date().isoformat(),
                device=_device(subject, level),
                versions=versions,
                sources=sources,
                parts=_answered(operators, items, outcomes),
            )
            if complete or len(outcomes) > len(answered):
                evidence.keep(path, subject.target, document["levels"])
            if not complete:
                break
    return complete


def _answered(
    operators: Iterable[str], items: Iterable[Item], outcomes: Iterable[Outcome]
) -> dict[str, bool]:
    """Whether each of `operators` has all its answers."""
    done = {outcome.item for outcome in outcomes}
    cut = {item.operator for item in items if item not in done}
    return {operator: operator not in cut for operator in operators}


def _device(subject: Subject, level: Level) -> dict[str, Any] | None:
    """What it ran on, without what tells one card from its twin; None if it ran on no device."""
    from archkey.conformance.worker import device_of

    device = device_of(subject.target, level)
    return device.kind_to_json() if device else None


def _versions(subject: Subject) -> dict[str, str]:
    """What the outcomes depend on besides the source: distributions and Python."""
    packages = {"archkey", "torch", "triton", *(p.distribution for p in subject.plugins)}
    found = installed_versions(sorted(packages))
    return {**found, "python": platform.python_version()}


def _failed(document: dict[str, Any], asked: tuple[str, ...]) -> bool:
    """Whether a case failed, or a level that was asked for by name ran none."""
    levels = document["levels"]
    idle = [name for name in asked if not levels[name]["passed"] + levels[name]["failed"]]
    for name in idle:
        reasons = sorted({row["reason"] for row in levels[name]["cases"]})
        click.echo(f"level {name} was not run: {'; '.join(reasons)}", err=True)
    return bool(idle) or any(level["failed"] for level in levels.values())


def _show(name: str, document: dict[str, Any], path: Path) -> None:
    from rich.text import Text

    from archkey.cli import accuracy, render

    console = render.open_console()
    levels: dict[str, Any] = document["levels"]
    rows = [(name, row) for name, level in levels.items() for row in level["cases"]]
    table: list[list[render.Cell]] = []
    for operator in dict.fromkeys(row["operator"] for _, row in rows):
        table.append([Text(operator, "bold"), *("" for _ in levels)])
        mine = [(name, row) for name, row in rows if row["operator"] == operator]
        for kernel in dict.fromkeys(row["kernel"] for _, row in mine):
            cells = [
                _cell([row for n, row in mine if n == name and row["kernel"] == kernel], level)
                for name, level in levels.items()
            ]
            table.append([f"  {kernel}", *cells])
    render.table(console, ("kernel", *levels), table)
    if Level.ACCURACY.value in levels:
        accuracy.show(console, levels[Level.ACCURACY.value]["cases"])
    for (level, reason), count in Counter(
        (level, row["reason"]) for level, row in rows if row["outcome"] == "skipped"
    ).items():
        console.print(Text(f"  - {level}: not run, {count} x {reason}", "dim"))
    for text in dict.fromkeys(
        f"  - {level}: {row['operator']} {row['kernel']}, fenced off: {fence}"
        for level, row in rows
        for fence in row.get("details", {}).get("fenced", ())
    ):
        console.print(Text(text, "yellow"))
    for level, row in rows:
        if row["outcome"] == "failed":
            what = f"failed: {level} {row['operator']} {row['kernel']}, {row['case']}: "
            console.print(Text(what + _measured(row) + row["reason"], "red"))
    counts = {key: sum(level[key] for level in levels.values()) for key in _COUNTS}
    said = ", ".join(f"{count} {key}" for key, count in counts.items())
    console.print(f"{name}: {said}; recorded in {path}")


_COUNTS = ("passed", "failed", "skipped")


def _cell(rows: list[dict[str, Any]], level: dict[str, Any]) -> Text:
    """What became of a kernel at a level: counts, and the error next to its limit."""
    from rich.text import Text

    from archkey.conformance.record import facts

    counts = Counter(row["outcome"] for row in rows)
    if counts["failed"]:
        return Text(f"{counts['failed']} failed\nof {counts['failed'] + counts['passed']}", "red")
    if not counts["passed"]:
        return Text("-" if rows else "", "dim")
    complete = facts(level, rows[0]["operator"])["complete"]
    text = f"{counts['passed']} passed" + ("" if complete else ",\ncut off")
    measured = [row for row in rows if row["tolerance"]]
    if measured:
        worst = max(measured, key=lambda row: row["error"] / row["tolerance"])
        text += "\n" + _measured(worst).rstrip().replace(" <=", "\n<=")
    return Text(text, "green" if complete else "yellow")


def _measured(row: dict[str, Any]) -> str:
    """ "1.2e-03 <= 4.0e-03 ", or nothing where nothing was measured."""
    if row["error"] is None or row["tolerance"] is None:
        return ""
    error = float(row["error"])
    sign = "<=" if error <= row["tolerance"] else ">"
    return f"{error:.1e} {sign} {row['tolerance']:.1e} "

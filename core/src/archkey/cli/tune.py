# SPDX-License-Identifier: Apache-2.0
"""`archkey tune`: the numbers of a kernel, searched on the card, and written with their source."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import archkey
from archkey import tables
from archkey.cli.output import emit, json_option
from archkey.errors import ArchkeyError, Unsupported

if TYPE_CHECKING:
    from archkey.bench.tune.journal import Journal
    from archkey.bench.tune.rig import Time
    from archkey.bench.tune.samples import Sample
    from archkey.bench.tune.search import Choice, Group
    from archkey.kernel import Kernel
    from archkey.session import Session
    from archkey.tuning import Table

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Search a kernel's tuning numbers on the card.")
@click.argument("operator")
@click.option("--target", "-t", metavar="TARGET", help="Default: the first device of this machine.")
@click.option("--kernel", "-k", metavar="KERNEL", help="Default: the one that the operator gets.")
@click.option("--only-row", "only", type=int, metavar="N", help="Only this row of the table.")
@click.option("--workload", "-w", default="", metavar="PATTERN", help="Only calls of such a name.")
@click.option(
    *("--noise", "noise"),
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="A smaller gain changes nothing.",
)
@click.option("--jobs", "-j", type=int, help="Processes that compile; default: one a core.")
@click.option("--dry-run", is_flag=True, help="Show what would change; write no table.")
@click.option("--output", type=_FILE, help="The table; default: the plugin's own file.")
@click.option("--journal", type=_FILE, help="Default: in the user's data folder.")
@click.option("--fresh", is_flag=True, help="Measure again what the journal has.")
@json_option
def command(
    operator: str,
    target: str | None,
    kernel: str | None,
    only: int | None,
    workload: str,
    noise: float,
    jobs: int | None,
    dry_run: bool,
    output: Path | None,
    journal: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Search the numbers of OPERATOR's kernel on this machine's card, and write its table.

    Each row is measured on the workloads that get it, with every candidate of the kernel's space:
    compiled, checked against float64, and only then timed. Rows and their conditions stay. Numbers
    change where the worst call gains more than the noise.

    Every time is kept in a journal at once. Ctrl-C (exit 130) writes no table, and the same command
    goes on where it stopped.

    \b
    archkey tune rmsnorm --dry-run
    archkey tune rmsnorm --target cuda_sm90 --only-row 3
    archkey tune rmsnorm --kernel acme_x1:row --output src/archkey_acme_x1/tuning.json
    """
    from archkey.bench.tune import samples
    from archkey.bench.tune.journal import Journal, own_path

    session = archkey.open(target)
    chosen = samples.pick(session, operator, kernel)
    path = None if dry_run else _destination(chosen, output)
    _need_the_card(session)
    shared = samples.sharers(session, chosen)
    listed, left = samples.samples(session, shared, workload)
    for line in left:
        click.echo(f"not timed: {line}", err=True)
    if not listed:
        raise ArchkeyError(
            f"{operator} has no workload to time {chosen.id} with"
            + (f" whose name has {workload!r} in it" if workload else "")
        )
    groups = samples.groups(session, chosen, listed, only)
    kept = Journal(journal or own_path(session.device.target.key), fresh)
    choices = _search(session, groups, kept, noise, jobs or os.cpu_count() or 1)
    found = _found(session, chosen, choices)
    if path:
        tables.save(path, _name(chosen), found)
    if as_json:
        emit(_document(session, chosen, choices, path, kept))
    else:
        _show(session, shared, choices, path)


def _destination(kernel: Kernel, output: Path | None) -> Path:
    """Where the table goes, if it can be written; said before the work, not after."""
    source = kernel.tuning.source if kernel.tuning else None
    path = output or (source.path if source else None)
    if path is None:
        raise ArchkeyError(
            f"the table of {kernel.id} is written in Python, where nothing can be put: --output "
            "names a file, which archkey.tables.read gives to the plugin; --dry-run only shows"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ArchkeyError(
            f"{path} cannot be written ({error.strerror}): is the plugin's installation read-only? "
            "--output names another file, --dry-run only shows"
        ) from error
    return path


def _need_the_card(session: Session) -> None:
    """Raises where times would be of something else."""
    from archkey.conformance.exam import no_device
    from archkey.conformance.levels import Level
    from archkey.launch import interpreting

    key = session.device.target.key
    if why := no_device(key, Level.DEVICE):
        raise Unsupported(
            f"tune measures on the card: {why}. `archkey probe` shows what was found; run it where "
            f"a {key} is"
        )
    if interpreting() and session.device.torch_kind != "cpu":
        raise Unsupported("TRITON_INTERPRET is set, and an interpreter's times say nothing: unset")


def _clock(session: Session) -> Time:
    """What times the calls."""
    import torch

    from archkey.bench.clock import Clock
    from archkey.conformance.judge import torch_device

    return Clock(torch.device(torch_device(session))).time


def _search(
    session: Session, groups: list[Group], kept: Journal, noise: float, workers: int
) -> list[Choice]:
    """Measure and choose, row by row. Exit 130 if interrupted: the journal has what was done."""
    from archkey.bench.tune.ahead import compile_ahead, jobs
    from archkey.bench.tune.rig import Rig
    from archkey.bench.tune.search import choose, measure
    from archkey.cli import render

    rig, key = Rig(session, _clock(session)), _key(session)
    ahead = jobs(groups, lambda sample, values: key(sample, values) in kept)
    total = sum(len(group.samples) * len(group.candidates) for group in groups)
    choices: list[Choice] = []
    try:
        if len(ahead) > 1 and workers > 1:
            with render.progress(len(ahead)) as step:
                compile_ahead(session.device, ahead, workers, step)
        with render.progress(total) as step:
            for group in groups:
                found = measure(group, rig, key, kept, step)
                choices.append(choose(group, found, noise))
    except KeyboardInterrupt:
        click.echo(
            f"interrupted: {kept.added} of {total} measured now and {kept.reused} before, kept in "
            f"{kept.path}; no table was written, and the same command goes on from here",
            err=True,
        )
        raise click.exceptions.Exit(130) from None
    return choices


def _key(session: Session) -> Callable[[Sample, Any], Mapping[str, Any]]:
    """What an outcome depends on: the card, what compiles, the code, the call and the numbers."""
    from archkey.conformance.sources import digest

    codes: dict[str, str] = {}

    def key(sample: Sample, values: Any) -> Mapping[str, Any]:
        kernel = sample.kernel
        name = f"{kernel.operator} {kernel.id}"
        if name not in codes:
            # Of the body alone: numbers that were changed by hand do not make times old.
            bare = replace(kernel, tuning=None)
            codes[name] = digest(bare, session.operators[kernel.operator])
        return {
            "card": _card(session),
            "versions": _versions(session, kernel),
            "kernel": kernel.id,
            "code": codes[name],
            "sample": sample.name,
            "problem": str(sample.problem),
            "values": tables.numbers(values),
        }

    return key


def _card(session: Session) -> str:
    return " ".join(filter(None, (session.device.name, session.device.partition)))


def _versions(session: Session, kernel: Kernel) -> dict[str, str]:
    """Of torch, and of what the kernel rests on."""
    names = sorted({"torch", *(rule.package for rule in kernel.rules())})
    return {name: session.versions[name] for name in names if name in session.versions}


def _name(kernel: Kernel) -> str:
    """What the table is called in a file."""
    source = kernel.tuning.source if kernel.tuning else None
    return source.name if source else kernel.operator


def _found(session: Session, kernel: Kernel, choices: list[Choice]) -> Table:
    from archkey.bench.tune.outcome import revised

    if kernel.tuning is None:
        raise ArchkeyError(f"kernel {kernel.id} has no tuning table")
    date = datetime.now(timezone.utc).date().isoformat()
    return revised(
        tables.again(kernel.tuning), choices, _card(session), date, _versions(session, kernel)
    )


def _document(
    session: Session, kernel: Kernel, choices: list[Choice], path: Path | None, kept: Journal
) -> dict[str, Any]:
    from archkey.bench.tune.outcome import document

    return {
        "operator": kernel.operator,
        "kernel": kernel.id,
        "target": session.device.target.key,
        "card": _card(session),
        "versions": _versions(session, kernel),
        "rows": document(choices),
        "written": str(path) if path else None,
        "journal": str(kept.path),
    }


def _show(
    session: Session, shared: tuple[Kernel, ...], choices: list[Choice], path: Path | None
) -> None:
    from rich.text import Text

    from archkey.bench.tune.outcome import difference
    from archkey.cli import render

    console, kernel = render.open_console(), shared[0]
    operators = ", ".join(k.operator for k in shared)
    console.print(Text(f"{kernel.id} for {operators} on {_card(session)}", "bold"))
    rows: list[list[render.Cell]] = [
        [
            str(choice.group.number),
            name,
            f"{choice.before[name]:.1f}" if name in choice.before else "-",
            f"{after:.1f}",
        ]
        for choice in choices
        for name, after in choice.after.items()
    ]
    if rows:
        columns = ("row", "call", "before us", "after us")
        render.table(console, columns, rows, numbers=("row", "before us", "after us"))
    colours = {"-": "red", "+": "green"}
    for line in difference(choices):
        console.print(Text(line, colours.get(line[0], "")), soft_wrap=True)
    changed = sum(choice.changed for choice in choices)
    said = f"{changed} of {len(choices)} rows changed"
    if path is None:
        console.print(f"{said}; nothing was written")
        return
    console.print(f"{said}; written to {path}", soft_wrap=True)
    if changed:
        key = session.device.target.key
        console.print(f"other numbers have no evidence yet: `archkey check {key}` makes it")

# SPDX-License-Identifier: Apache-2.0
"""`archkey bench`: kernels beside peers and bounds, and what archkey itself costs on the host."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archkey._files import data_path
from archkey.cli.grouped import Grouped
from archkey.cli.output import emit, json_option
from archkey.errors import Unsupported
from archkey.locate import find_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archkey.bench.asked import Asked
    from archkey.bench.asker import Terms
    from archkey.bench.workload import Workload
    from archkey.probe import Device

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)

_GROUPS = {
    "What is measured": ("patterns", "quick", "kernels", "peers", "skipped", "no_peers"),
    "How it is measured": ("device", "samples", "seconds", "timeout", "seed"),
    "Results": ("output", "resume", "old", "as_json"),
    "Nothing is measured": ("listing", "given"),
    "With `archkey bench peers`": ("check",),
    "What archkey itself costs": ("host", "repeats"),
    "What kernels do, without a card": ("count", "target", "workgroups"),
}


@click.command(cls=Grouped, groups=_GROUPS, short_help="Measure kernels beside peers and bounds.")
@click.argument("what", nargs=-1, metavar="[OPERATOR...|peers]")
@click.option(
    *("--workload", "-w", "patterns"),
    metavar="PATTERN",
    multiple=True,
    help="Only such, '*tp8*'; repeatable.",
)
@click.option("--quick", is_flag=True, help="Only a few workloads of each operator.")
@click.option(
    *("--kernel", "-k", "kernels"),
    metavar="KERNEL",
    multiple=True,
    help="And this one of ours; repeatable.",
)
@click.option(
    *("--peer", "-p", "peers"),
    metavar="PEER",
    multiple=True,
    help="Only this one, or PEER:ROUTE; repeatable.",
)
@click.option(
    *("--skip", "skipped"),
    metavar="PEER",
    multiple=True,
    help="Not this one, or PEER:ROUTE; repeatable.",
)
@click.option("--no-peers", is_flag=True, help="archkey's own kernels only.")
@click.option("--device", metavar="DEVICE", help="As cuda:1; default: the first accelerator.")
@click.option("--samples", default=40, show_default=True, help="Timed calls of an entry, at most.")
@click.option("--seconds", default=0.4, show_default=True, help="Device time of those, at most.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds for an entry; 0: any.")
@click.option("--seed", default=0, show_default=True, help="Of random inputs.")
@click.option("--output", "-o", type=_FILE, help="Default: a new file in the user's data folder.")
@click.option("--resume", is_flag=True, help="Measure only what the run in --output lacks.")
@click.option("--compare", "old", type=_FILE, help="Say what moved since these earlier results.")
@click.option("--list", "listing", is_flag=True, help="List the workloads that would be measured.")
@click.option("--results", "given", type=_FILE, help="Show these, with --compare what moved.")
@click.option("--check", is_flag=True, help="Judge each installed peer on small inputs.")
@click.option("--host", is_flag=True, help="Measure import, discovery, decision, plan, calls.")
@click.option("--count", is_flag=True, help="Count instructions, bytes and FLOPs on an emulator.")
@click.option("--target", metavar="TARGET", help="Whose kernels: one that is emulated.")
@click.option(
    "--workgroups",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Of each launch that are run, for all of them.",
)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Of each.")
@json_option
def command(
    what: tuple[str, ...],
    patterns: tuple[str, ...],
    quick: bool,
    peers: tuple[str, ...],
    skipped: tuple[str, ...],
    no_peers: bool,
    kernels: tuple[str, ...],
    device: str | None,
    samples: int,
    seconds: float,
    timeout: float,
    seed: int,
    output: Path | None,
    resume: bool,
    old: Path | None,
    given: Path | None,
    listing: bool,
    check: bool,
    host: bool,
    count: bool,
    target: str | None,
    workgroups: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure operators (default: all) on workloads of real models, beside peers and bounds.

    An entry is one kernel at one workload: archkey's, or another library's (a peer's). It is judged
    first, on the very inputs that it would be timed with, against float64; what is wrong gets no
    time. Then calls are replayed from graphs, with inputs that rotate and caches that are swept.
    What the card can do at most is measured in the same run.

    Results are written after every entry, so an interrupted run loses nothing, and --resume goes on
    with it. `archkey report FILE` makes a page of them.

    `archkey bench peers` lists the peers, whether they are installed, and how to install them.

    Exit 1 if an entry of archkey's own is wrong or failed, a checked peer is wrong, or a host cost
    is over its limit. Exit 130 if the run is not complete.

    \b
    archkey bench --quick
    archkey bench mla_decode --workload '*tp8*' --peer vllm-flashmla
    archkey bench --results new.json --compare old.json
    archkey bench peers --check
    archkey bench --host
    archkey bench rmsnorm --quick --count --target cuda_sm100
    """
    if host:
        from archkey.cli import host_costs

        host_costs.run(repeats, as_json)
        return
    from archkey.bench import results
    from archkey.bench.asker import Terms

    if what == ("peers",):
        from archkey.cli import peers as libraries

        place = device or _name(find_device(None))
        libraries.run(Terms(place, timeout=timeout, seed=seed), peers, check, as_json)
        return
    before = results.read(old) if old else None
    if count != bool(target):
        raise click.UsageError("--count and --target go together: --count --target cuda_sm100.")
    if given:
        _tell(results.read(given), given, before, as_json)
        return
    from archkey.bench.asked import Asked, workloads
    from archkey.session import open as open_session

    chosen = workloads(open_session(target or device), what, patterns, quick)
    if target:
        _count(target, chosen, workgroups, seed, as_json)
        return
    if listing:
        _list(chosen, as_json)
        return
    terms = Terms(_device(device), samples, seconds, timeout, seed)
    if resume and not output:
        raise click.UsageError("--resume goes on with the results at --output; name them.")
    asked = Asked(() if no_peers else peers or None, skipped)
    path = output or _own_path(terms)
    document = _measure(terms, chosen, kernels, asked, path, resume)
    _tell(document, path, before, as_json)


def _device(asked: str | None) -> str:
    """The device to measure on; the CPU only if it was asked for."""
    device = find_device(asked)
    if device.source == "pretend":
        raise Unsupported(f"{device.target} is not in this machine: nothing can be measured on it")
    if device.target.platform == "cpu" and asked is None:
        raise Unsupported(
            "no accelerator in this machine (`archkey probe` shows what was tried). "
            "`archkey bench --host` measures host costs, `--list` lists workloads, and "
            "`--device cpu` times the torch reference on the CPU, which takes its time"
        )
    return asked or _name(device)


def _name(device: Device) -> str:
    """The device as torch names it; by its target, if it is an accelerator in host memory."""
    if device.torch_kind == "cpu":
        return device.target.key
    return f"{device.torch_kind}:{device.index}"


def _own_path(terms: Terms) -> Path:
    """A new file in the user's data folder."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return data_path("bench") / f"{find_device(terms.device).target.key}-{now}.json"


def _measure(
    terms: Terms,
    chosen: Sequence[Workload],
    names: Sequence[str],
    asked: Asked,
    path: Path,
    resume: bool,
) -> dict[str, Any]:
    """Hold the run; the document goes to `path` after every step.

    names   further kernels of ours
    resume  go on with what is at `path`, if there is something
    """
    from archkey.bench import document, results
    from archkey.bench.asked import check_peers, guests, kernels
    from archkey.bench.asker import Asker
    from archkey.bench.run import run, steps
    from archkey.cli import render
    from archkey.cli.coverage import rows
    from archkey.session import open as open_session

    check_peers((*(asked.only or ()), *asked.without))
    session = open_session(terms.device)
    more = kernels(session, names, {workload.operator for workload in chosen})
    found = document.new(terms, {"workloads": len(chosen), **asked.to_json()})
    if resume and path.exists():
        found = document.resumed(results.read(path), found)
    found["coverage"] = rows(())
    results.write(path, found)  # a folder that cannot be written is said before the work
    with render.progress(steps(chosen, more, asked)) as step, Asker(terms) as asker:
        try:
            for name in run(found, asker, chosen, more, asked, guests(session, more)):
                results.write(path, found)
                step(name)
        except KeyboardInterrupt:
            click.echo("interrupted; what was measured is kept", err=True)
        results.write(path, found)
    return found


def _tell(
    document: dict[str, Any], path: Path, before: dict[str, Any] | None, as_json: bool
) -> None:
    """The results, and what moved since `before`; exit 1 if a kernel of ours is not right."""
    from archkey.bench.compare import compare
    from archkey.bench.place import is_ours
    from archkey.bench.results import entries

    moved = compare(before, document) if before else None
    if as_json:
        emit({**document, **({"comparison": moved.to_json()} if moved else {})})
    else:
        from archkey.cli import comparison, render
        from archkey.cli.summary import show_summary

        console = render.open_console()
        show_summary(console, document)
        if moved:
            comparison.show(console, moved)
        console.print(f"results: {path}")
    ours = [e for _, e in entries(document) if is_ours(e.entrant)]
    if not document["complete"]:
        raise click.exceptions.Exit(130)
    if any(entry.status in ("wrong", "failed") for entry in ours):
        raise click.exceptions.Exit(1)


def _count(
    target: str, chosen: Sequence[Workload], workgroups: int, seed: int, as_json: bool
) -> None:
    """One line a workload: instructions, bytes and FLOPs beside the least there can be."""
    from archkey.bench.count import counted

    rows = []
    for row in counted(target, chosen, workgroups, seed):
        found = row.to_json()
        rows.append(found)
        if as_json:
            continue
        classes = found["counts"]["instructions"]
        click.echo(f"{row.operator} {row.workload}: {sum(classes.values()):,} instructions")
        for name, times in sorted(classes.items(), key=lambda one: -one[1]):
            click.echo(f"  {times:>16,} {name}")
        for what, times, least in (
            ("bytes", row.bytes, row.least_bytes),
            ("FLOPs", found["counts"]["flops"], row.least_flops),
        ):
            ratio = f", {times / least:.2f} of the least" if least else ""
            click.echo(f"  {times:>16,} {what}{ratio}")
        if found["counts"]["lds_loaded"] is not None:
            moved = found["counts"]["lds_loaded"] + found["counts"]["lds_stored"]
            click.echo(f"  {moved:>16,} bytes of LDS")
    if as_json:
        emit(rows)


def _list(chosen: Sequence[Workload], as_json: bool) -> None:
    if as_json:
        fields = ("operator", "name", "title", "model", "tp", "quick")
        emit([{field: getattr(workload, field) for field in fields} for workload in chosen])
        return
    from rich.text import Text

    from archkey.cli import render

    lines: list[list[render.Cell]] = [
        [w.operator, Text(w.name, "bold"), w.title, "quick" if w.quick else ""] for w in chosen
    ]
    columns = ("operator", "workload", "what", "")
    render.table(render.open_console(), columns, lines, spare=("what",))

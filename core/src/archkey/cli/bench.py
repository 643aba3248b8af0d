# SPDX-License-Identifier: Apache-2.0
"""`archkey bench`: kernels beside peers and bounds, and what archkey itself costs on the host."""

from __future__ import annotations

import fnmatch
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archkey._files import data_path
from archkey.cli.output import emit, json_option
from archkey.errors import UnknownName, Unsupported
from archkey.locate import find_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archkey.bench.run import Asked, Terms
    from archkey.bench.workload import Workload
    from archkey.probe import Device

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Measure kernels beside peers and bounds.")
@click.argument("what", nargs=-1, metavar="[OPERATOR...|peers]")
@click.option("--workload", "-w", "patterns", multiple=True, help="Only such names; repeatable.")
@click.option("--quick", is_flag=True, help="The short run: a few workloads an operator.")
@click.option("--peer", "-p", "peers", multiple=True, help="Only this peer; repeatable.")
@click.option("--skip", "skipped", multiple=True, help="Not this peer; repeatable.")
@click.option("--no-peers", is_flag=True, help="archkey's own kernels only.")
@click.option("--kernel", "-k", "kernels", multiple=True, help="Another of ours; repeatable.")
@click.option("--device", default=None, help="As torch names it; default: the first accelerator.")
@click.option("--samples", default=40, show_default=True, help="Timed calls, at most.")
@click.option("--seconds", default=0.4, show_default=True, help="Device time an entrant, at most.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds an entrant, or 0.")
@click.option("--seed", default=0, show_default=True, help="Of all inputs.")
@click.option("--output", "-o", type=_FILE, help="Where results go.")
@click.option("--resume", is_flag=True, help="Go on with --output: measure what it lacks.")
@click.option("--compare", "old", type=_FILE, help="Say what moved since.")
@click.option("--results", "given", type=_FILE, help="Show these; measure nothing.")
@click.option("--list", "listing", is_flag=True, help="List workloads; measure nothing.")
@click.option("--check", is_flag=True, help="With `peers`: judge each one.")
@click.option("--host", is_flag=True, help="Host costs: import, discovery, decision, plan, calls.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Of --host.")
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
    repeats: int,
    as_json: bool,
) -> None:
    """Measure operators (default: all) on workloads of real models, beside peers and bounds.

    An entrant is judged first: on the very inputs it would be timed with, against float64. What is
    wrong gets no time. Inputs rotate, caches are swept, calls are replayed from graphs; the bound
    is measured in the same run. Results are kept after every entrant, so an interrupted run loses
    nothing. `archkey report FILE` makes a page of them.

    `archkey bench peers` lists the libraries that can be measured beside archkey, whether they are
    here, and how to install them.

    Exit 1 if an entry of archkey's own is wrong or failed, a checked peer is wrong, or a host cost
    is over its limit.

    \b
    archkey bench --quick
    archkey bench mla_decode --workload '*tp8*' --peer flash_mla
    archkey bench --results new.json --compare old.json
    archkey bench peers --check
    archkey bench --host
    """
    if host:
        _host(repeats, as_json)
        return
    if what == ("peers",):
        from archkey.bench.run import Terms

        place = device or _name(find_device(None))
        _peers(Terms(place, timeout=timeout, seed=seed), peers, check, as_json)
        return
    before = _read(old) if old else None
    if given:
        document, path = _read(given), given
    else:
        chosen = _workloads(what, patterns, quick)
        if listing:
            _list(chosen, as_json)
            return
        from archkey.bench.run import Asked, Terms

        terms = Terms(_device(device), samples, seconds, timeout, seed)
        if resume and not output:
            raise click.UsageError("--resume goes on with the results at --output; name them.")
        path = output or _own_path(terms)
        asked = Asked(() if no_peers else peers or None, skipped)
        earlier = _read(path) if resume and path.exists() else None
        document = _measure(terms, chosen, kernels, asked, path, earlier)
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
    """The device as torch names it."""
    return "cpu" if device.torch_kind == "cpu" else f"{device.torch_kind}:{device.index}"


def _workloads(operators: Sequence[str], patterns: Sequence[str], quick: bool) -> list[Workload]:
    from archkey.bench.workload import workloads_of
    from archkey.session import open as open_session

    known = open_session().operators
    for name in operators:
        if name not in known:
            raise UnknownName("operator", name, {*known, "peers"})
    listed = [w for name in operators or known for w in workloads_of(known[name])]
    if quick:
        listed = [w for w in listed if w.quick]
    if patterns:
        matched = [w for w in listed if any(fnmatch.fnmatch(w.name, p) for p in patterns)]
        if not matched:
            raise UnknownName("workload", " ".join(patterns), {w.name for w in listed})
        listed = matched
    return listed


def _own_path(terms: Terms) -> Path:
    """A new file in the user's data folder."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return data_path("bench") / f"{find_device(terms.device).target.key}-{now}.json"


def _measure(
    terms: Terms,
    chosen: Sequence[Workload],
    kernels: Sequence[str],
    asked: Asked,
    path: Path,
    earlier: dict[str, Any] | None,
) -> dict[str, Any]:
    """Hold the run; the document goes to `path` after every step."""
    from archkey.bench import results, run
    from archkey.bench.peers import PEERS
    from archkey.cli import render
    from archkey.cli.coverage import rows

    known = {peer.name for peer in PEERS}
    for name in (*(asked.only or ()), *asked.without):
        if name.partition(":")[0] not in known:
            raise UnknownName("peer", name, known)
    settings = {"workloads": len(chosen), "only": asked.only, "without": list(asked.without)}
    document = run.new(terms, settings)
    if earlier:
        document = run.resumed(earlier, document)
    document["coverage"] = rows(())
    results.write(path, document)  # a folder that cannot be written is said before the work
    more = _kernels(kernels, {workload.operator for workload in chosen})
    total = run.steps(chosen, more, asked)
    with render.progress(total) as step, run.Asker(terms) as asker:
        try:
            for name in run.run(document, asker, chosen, more, asked):
                results.write(path, document)
                step(name)
        except KeyboardInterrupt:
            click.echo("interrupted; what was measured is kept", err=True)
        results.write(path, document)
    return document


def _kernels(names: Sequence[str], operators: set[str]) -> dict[str, list[str]]:
    """Operator -> those of the kernels `names` that it has."""
    from archkey.session import open as open_session

    session = open_session()
    every = {name: session.kernels(name) for name in operators}
    for name in names:
        if not any(kernel.named(name) for listed in every.values() for kernel in listed):
            raise UnknownName("kernel", name, {k.id for listed in every.values() for k in listed})
    return {
        operator: [name for name in names if any(kernel.named(name) for kernel in listed)]
        for operator, listed in every.items()
    }


def _read(path: Path) -> dict[str, Any]:
    from archkey.bench import results

    return results.read(path)


def _tell(
    document: dict[str, Any], path: Path, before: dict[str, Any] | None, as_json: bool
) -> None:
    """The results, and what moved since `before`; exit 1 if a kernel of ours is not right."""
    from archkey.bench.compare import compare
    from archkey.bench.results import OURS, entries

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
    ours = [e for _, e in entries(document) if e.entrant.partition(":")[0] == OURS]
    if not document["complete"]:
        raise click.exceptions.Exit(130)
    if any(entry.status in ("wrong", "failed") for entry in ours):
        raise click.exceptions.Exit(1)


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


def _peers(terms: Terms, wanted: Sequence[str], check: bool, as_json: bool) -> None:
    """What can be measured beside us; with `check`, whether our use of it is right."""
    from archkey.bench import run
    from archkey.bench.peers import PEERS
    from archkey.cli import peers

    known = {peer.name: peer for peer in PEERS}
    for name in wanted:
        if name not in known:
            raise UnknownName("peer", name, known)
    with run.Asker(terms) as asker:
        rows = [row for row in run.standings(asker) if not wanted or row["name"] in wanted]
        if check:
            for row in rows:
                row["checks"] = []
                if row["state"] == "installed":
                    row["checks"] = peers.checked(run.checks(asker, known[row["name"]]))
    if as_json:
        emit(rows)
    else:
        peers.show(rows)
    cases = [case for row in rows for route in row.get("checks", ()) for case in route["cases"]]
    if any(case["status"] in ("wrong", "failed") for case in cases):
        raise click.exceptions.Exit(1)


def _host(repeats: int, as_json: bool) -> None:
    """What archkey costs on the host, beside the limits of its design."""
    from archkey.bench.host import measure
    from archkey.cli import host_costs

    rows = []
    for row in measure(repeats):
        rows.append(row)
        if sys.stderr.isatty():
            cost = row.note if row.value is None else f"{row.value:.2f} {row.unit}"
            click.echo(f"{row.what}: {cost}", err=True)
    if as_json:
        emit([row.to_json() for row in rows])
    else:
        from archkey.cli import render

        host_costs.show(render.open_console(), rows)
    if not all(row.passed for row in rows):
        raise click.exceptions.Exit(1)

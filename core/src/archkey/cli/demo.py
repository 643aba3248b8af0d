# SPDX-License-Identifier: Apache-2.0
"""`archkey demo`: the main job. Every operator, on this machine, against the reference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.errors import UnknownName, Unsupported
from archkey.launch import interpreting
from archkey.requirements import installed_versions
from archkey.session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from archkey.conformance.judge import Result

__all__ = ["command"]


@click.command(short_help="Run every operator here, against the reference.")
@click.option("--operator", "-o", "operators", multiple=True, help="Only this one; repeatable.")
@click.option("--family", "-f", "families", multiple=True, help="Only these; repeatable.")
@click.option(
    "--target", "-t", metavar="TARGET", help="A device or target; default: the first device."
)
@json_option
def command(
    operators: tuple[str, ...], families: tuple[str, ...], target: str | None, as_json: bool
) -> None:
    """Run every operator at the shapes of real models, and compare with the float64 reference.

    Probes, loads plugins, and prints what was found; then a line for each problem: the chosen
    kernel and why, the error and what is allowed, the time. Progress goes to stderr. Exit code 1 if
    a line did not pass. A target that is not here can be run by Triton's interpreter, slowly.

    \b
    archkey demo
    archkey demo --family rmsnorm --json
    archkey demo --operator rmsnorm --target cuda:1
    TRITON_INTERPRET=1 archkey demo --operator rmsnorm --target rocm_gfx950
    """
    session = archkey.open(target)
    names = _wanted(session, operators, families)
    if session.device.source == "pretend" and not interpreting():
        raise Unsupported(
            f"demo launches kernels, and no {session.device.target} is here; run it there, or set "
            "TRITON_INTERPRET=1 to interpret them on the CPU. `archkey explain` works anywhere."
        )
    if not as_json:
        _show_machine(session)
    begin = time.perf_counter()
    results, planned = _run(session, names)
    if as_json:
        device = session.device.to_json()
        emit({"device": device, "results": [result.to_json() for result in results]})
    else:
        _show(results, planned, time.perf_counter() - begin)
    if len(results) < planned:
        raise click.exceptions.Exit(130)
    if any(_failed(result) for result in results):
        raise click.exceptions.Exit(1)


def _failed(result: Result) -> bool:
    return not result.passed and not result.skipped


def _wanted(
    session: Session, operators: tuple[str, ...], families: tuple[str, ...]
) -> list[str] | None:
    """Names of the operators asked for; None for all."""
    known = session.operators
    for name in operators:
        if name not in known:
            raise UnknownName("operator", name, known)
    all_families = {operator.family for operator in known.values()}
    for family in families:
        if family not in all_families:
            raise UnknownName("family", family, all_families)
    chosen = [n for n, o in known.items() if n in operators or o.family in families]
    return chosen if operators or families else None


def _run(session: Session, names: list[str] | None) -> tuple[list[Result], int]:
    """The results, up to an interruption if there is one, and how many there should be."""
    from archkey.cli import render
    from archkey.conformance import demo

    cases = demo.chosen(session, names)
    if not cases:
        raise click.ClickException(f"nothing to run: there is no case of {', '.join(names or ())}")
    results: list[Result] = []
    try:
        with render.progress(len(cases)) as step:
            running = demo.run(session, names)
            for case in cases:
                step(f"{case.operator}, {case.model}")
                results.append(next(running))
    except KeyboardInterrupt:
        click.echo(f"interrupted after {len(results)} of {len(cases)}", err=True)
    return results, len(cases)


def _show_machine(session: Session) -> None:
    from rich.text import Text

    from archkey.cli import render
    from archkey.cli.plugins import STATE_STYLE

    facts = session.capabilities.values()
    can = [f.name for f in facts if f.value is True]
    cannot = [f.name for f in facts if f.value is False or f.value == "none"]
    values = [
        f"{f.name} {render.value_text(f.name, f.value)}"
        for f in facts
        if not isinstance(f.value, bool) and f.value not in (None, "none")
    ]
    plugins = Text(", ").join(
        Text.assemble(f"{e.found.name} ", (e.state.value, STATE_STYLE[e.state]))
        for e in session.report
    )
    name = session.device.name or "pretended: Triton's interpreter on the CPU"
    versions = installed_versions(["archkey", "torch", "triton"])
    render.facts(
        render.open_console(),
        [
            ("device", f"{session.device.target} {name}"),
            ("with", ", ".join(f"{package} {version}" for package, version in versions.items())),
            ("can", ", ".join([*can, *values])),
            ("cannot", Text(", ".join(cannot), "dim")),
            ("plugins", plugins),
        ],
    )


def _show(results: list[Result], planned: int, seconds: float) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    if results:
        _show_table(console, results)
    for result in results:
        if not result.passed:
            what = "failed" if _failed(result) else "not run"
            style = "red" if _failed(result) else "dim"
            console.print(
                Text(f"{what}: {result.operator}, {result.model}: {result.reason}", style)
            )
    passed = sum(result.passed for result in results)
    failed = sum(map(_failed, results))
    degraded = sum(result.degraded for result in results)
    count = len({result.operator for result in results})
    summary = (
        f"{count} operator{'s' * (count != 1)}, {len(results)} of {planned} problems: "
        f"{passed} passed, {failed} failed, "
        + (f"{skipped} not run, " if (skipped := len(results) - passed - failed) else "")
        + f"{degraded} degraded, {seconds:.1f} s"
    )
    good = not failed and len(results) == planned
    console.print(Text(summary, "bold green" if good else "bold red"))


def _show_table(console: Console, results: list[Result]) -> None:
    from rich.text import Text

    from archkey.cli import render

    wide = console.width >= render.WIDE
    rows: list[tuple[render.Cell, ...]] = []
    for r in results:
        mark = Text("pass", "green") if r.passed else Text("FAIL", "bold red")
        if r.skipped:
            mark = Text("-", "dim")
        kernel = render.stack(Text(r.kernel, "yellow" if r.degraded else ""), r.why)
        error, allowed = f"{r.error:.1e}", f"{r.tolerance:.1e}" if r.tolerance else "exact"
        name, problem = Text(r.operator, "bold"), f"{r.model}: {r.problem}"
        milliseconds = f"{r.seconds * 1e3:.2f}"
        if wide:
            rows.append((name, problem, kernel, error, allowed, milliseconds, mark))
        else:
            bound = render.stack(error, f"<= {allowed}")
            rows.append((render.stack(name, problem), kernel, bound, milliseconds, mark))
    start = ("operator", "problem", "kernel", "error", "allowed")
    columns = start if wide else ("operator, problem", "kernel", "error")
    render.table(console, (*columns, "ms", "result"), rows, numbers=("ms",), airy=not wide)

# SPDX-License-Identifier: Apache-2.0
"""`archkey prepare`: what a model will run, compiled before the engine starts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from archkey.cli.grouped import Grouped
from archkey.cli.output import emit, json_option
from archkey.errors import PrepareError

if TYPE_CHECKING:
    from archkey.ops import Problem
    from archkey.session import Session

__all__ = ["command"]

_GROUPS = {
    "What is served": (
        *("model", "tp", "dtype", "kv_dtype", "page_size", "q_len", "quant", "descale"),
    ),
    "How": ("target", "jobs", "only_list", "strict"),
}


@click.command(cls=Grouped, groups=_GROUPS, short_help="Compile what a model will run.")
@click.option("--model", "-m", required=True, metavar="NAME|PATH", help="Or a config.json.")
@click.option("--tp", default=1, show_default=True, help="Ranks that share the heads.")
@click.option("--dtype", help="Of activations; default: the config's.")
@click.option("--kv-dtype", default="auto", show_default=True, help="Of the cache: auto or fp8.")
@click.option("--page-size", default=64, show_default=True, help="Tokens a page of the cache.")
@click.option("--q-len", default=1, show_default=True, help="Tokens a sequence to verify.")
@click.option("--quant", default="", metavar="KIND", help="What the norms feed: fp8_group, mxfp4.")
@click.option(
    "--descale", default="tensor", show_default=True, help="Of FP8: tensor, number or heads."
)
@click.option("--target", "-t", metavar="TARGET", help="Default: the first device of this machine.")
@click.option("--jobs", "-j", type=int, help="Processes at a time; default: one a core.")
@click.option("--list", "--dry-run", "only_list", is_flag=True, help="Show it and compile nothing.")
@click.option("--strict", is_flag=True, help="Exit code 1 if a problem has no kernel made for it.")
@json_option
def command(
    model: str,
    tp: int,
    dtype: str | None,
    kv_dtype: str,
    page_size: int,
    q_len: int,
    quant: str,
    descale: str,
    target: str | None,
    jobs: int | None,
    only_list: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Compile what a model's calls will run on a target, into the cache that engines load from.

    MODEL is a name, or a model's config.json or its folder. Works without a GPU for any --target,
    as in the build of an image; name it as `archkey probe` prints it on the machine that will
    serve. An engine does the same with session.prepare(archkey.problems_for(...)).

    Exit code 1 if a problem could not be prepared, or with --strict if one has no kernel that was
    made for the target and runs on the torch reference.

    \b
    archkey prepare --model deepseek-v3.2 --tp 8 --q-len 4
    archkey prepare --model ./config.json --target rocm_gfx942 --kv-dtype fp8 --list
    """
    import archkey
    from archkey.models import problems_for

    session = archkey.open(target)
    problems = problems_for(
        model,
        session,
        tp=tp,
        dtype=dtype,
        kv_dtype=kv_dtype,
        page_size=page_size,
        q_len=q_len,
        quant=quant,
        descale=descale,
    )
    failed: dict[Problem, BaseException] = {}
    started = time.perf_counter()
    try:
        if not only_list:
            session.prepare(problems, jobs=jobs, progress=True)
    except PrepareError as error:
        failed = error.failed
    rows = [_row(session, problem, failed, only_list) for problem in problems]
    document = {
        "model": model,
        "target": str(session.device.target),
        "prepared": not only_list,
        "seconds": round(time.perf_counter() - started, 3),
        "problems": rows,
    }
    if as_json:
        emit(document)
    else:
        _show(document)
    if failed or (strict and any(row["degraded"] or not row["kernel"] for row in rows)):
        raise click.exceptions.Exit(1)


def _row(
    session: Session, problem: Problem, failed: dict[Problem, BaseException], only_list: bool
) -> dict[str, Any]:
    """What became of a problem; `programs` is None where it was not bound."""
    bound = not (only_list or problem in failed)
    plan = session.plan(problem) if bound else None
    decision = plan.decision if plan else session.decide(problem)
    fields = {name: value for name, value in problem._asdict().items() if name != "operator"}
    return {
        "operator": problem.operator,
        "problem": fields,
        "kernel": decision.chosen.id if decision.chosen else None,
        "degraded": decision.degraded,
        "programs": len(plan.programs) if plan else None,
        "error": str(failed[problem]) if problem in failed else None,
    }


def _show(document: dict[str, Any]) -> None:
    from rich.text import Text

    from archkey.cli import render

    console, rows = render.open_console(), document["problems"]
    console.print(Text(f"{document['model']} on {document['target']}", "bold"))
    table: list[list[render.Cell]] = []
    for operator in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == operator]
        varying = [n for n in mine[0]["problem"] if len({str(r["problem"][n]) for r in mine}) > 1]
        for number, row in enumerate(mine):
            what = " ".join(f"{n}={row['problem'][n]}" for n in varying)
            said = row["kernel"] or "none"
            colour = "yellow" if row["degraded"] else "red" if not row["kernel"] else "green"
            if row["degraded"]:
                said += " (degraded: no kernel for this target)"
            if row["error"]:
                said, colour = f"failed: {row['error'].splitlines()[0]}", "red"
            programs = "" if row["programs"] is None else str(row["programs"])
            name = Text(operator, "bold") if not number else ""
            table.append([name, what, Text(said, colour), programs])
    numbers = ("programs",)
    render.table(console, ("operator", "differs in", "kernel", "programs"), table, numbers=numbers)
    degraded = sum(row["degraded"] for row in rows)
    broken = sum(bool(row["error"]) for row in rows)
    done = f"prepared in {document['seconds']:.1f} s" if document["prepared"] else "not prepared"
    tail = f", {degraded} degraded" if degraded else ""
    tail += f", {broken} failed" if broken else ""
    console.print(f"{len(rows)} problems{tail}; {done}")

# SPDX-License-Identifier: Apache-2.0
"""`archkey explain`: which kernel a problem gets, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

import archkey
from archkey.cli.output import emit, json_option
from archkey.errors import UnknownName
from archkey.explain import fence_text, headline, measured_text, row_text
from archkey.ops import Operator, Problem
from archkey.selection import Decision

if TYPE_CHECKING:
    from archkey.cli import render

__all__ = ["changed", "command", "pick"]

_KINDS = {bool: "yes or no", int: "an integer", float: "a number"}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@click.command(short_help="Explain which kernel an operator gets.")
@click.argument("operator")
@click.argument("changes", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--target", "-t", metavar="TARGET", help="Default: the first device of this machine.")
@click.option("--model", "-m", metavar="NAME", help="Which example: its label, or a part of it.")
@click.option("--kernel", "-k", metavar="KERNEL", help="Ask for this kernel; it is still checked.")
@click.option("--strict", is_flag=True, help="Refuse kernels that were made for another target.")
@json_option
def command(
    operator: str,
    changes: tuple[str, ...],
    target: str | None,
    model: str | None,
    kernel: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Explain which kernel OPERATOR gets on a target, and the reason against every other one.

    The problem is an example from a real model (--model; default: the operator's first), changed
    by FIELD=VALUE. Nothing is compiled or launched. Exit code 1 if no kernel can serve it.

    \b
    archkey explain fused_qk_rmsnorm --target rocm_gfx950
    archkey explain rmsnorm --target cuda_sm90 --model glm aligned=no
    archkey explain rmsnorm --target cuda_sm90 --kernel torch
    """
    session = archkey.open(target, strict=strict or None)
    try:
        contract = session.operators[operator]
    except KeyError:
        raise UnknownName("operator", operator, session.operators) from None
    label = pick(contract, model)
    problem = changed(contract.examples[label], changes)
    decision = session.decide(problem, kernel=kernel)
    if as_json:
        emit(decision.to_json())
    else:
        _show(contract, label, changes, decision)
    if decision.chosen is None:
        raise click.exceptions.Exit(1)


def pick(operator: Operator, model: str | None) -> str:
    """The label of the example that `model` names: the whole label, its start, or a part of it."""
    labels = list(operator.examples)
    if not labels:
        raise UnknownName("example problem of", operator.name, (), "Its supplier gives none.")
    wanted = (model or labels[0]).lower()
    for like in (str.__eq__, str.startswith, str.__contains__):
        for label in labels:
            if like(label.lower(), wanted):
                return label
    raise UnknownName(f"model of {operator.name}", wanted, labels)


def changed(problem: Problem, changes: Iterable[str]) -> Problem:
    """`problem` with `FIELD=VALUE` texts applied, each read as the type of the present value."""
    fields = {name: v for name, v in problem._asdict().items() if name != "operator"}
    new: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise click.UsageError(f"{change!r} is no FIELD=VALUE; fields: {', '.join(fields)}.")
        if name not in fields:
            raise UnknownName(f"field of {problem.operator}'s problem", name, fields)
        try:
            new[name] = _read(text, fields[name])
        except (KeyError, ValueError):
            kind = _KINDS.get(type(fields[name]), "not to be changed here")
            raise click.UsageError(f"{change}: {name} is {kind}, now {fields[name]}.") from None
    return problem._replace(**new)  # type: ignore[no-any-return]


def _read(text: str, present: object) -> Any:
    """`text` as the type of `present`; KeyError or ValueError if it is none of that type."""
    if isinstance(present, bool):
        return _BOOLEANS[text.lower()]
    if isinstance(present, (int, float, str)):
        return type(present)(text)
    raise ValueError(text)


def _show(operator: Operator, label: str, changes: Iterable[str], decision: Decision) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    problem = {k: v for k, v in decision.problem._asdict().items() if k != "operator"}
    chosen = decision.chosen
    colour = "red" if chosen is None else "yellow" if decision.degraded else "green"
    models = [name for name in operator.examples if name != label]
    title = ", ".join([label, *changes])
    console.print(Text(f"{operator.name} on {decision.target}", "bold"))
    render.facts(
        console,
        [
            ("computes", operator.summary),
            ("problem", render.stack(title, " ".join(f"{k}={v}" for k, v in problem.items()))),
            ("kernel", Text(f"{chosen.id if chosen else 'none'} - {headline(decision)}", colour)),
            ("", chosen.summary if chosen else ""),
            *_tuning(decision),
            ("--model", Text(", ".join(map(repr, models)), "dim")),
        ],
    )
    if not decision.rejected:
        console.print("No other kernel is known for it; `archkey plugins` lists what is installed.")
        return
    wide = console.width >= render.WIDE
    rows: list[tuple[render.Cell, ...]] = []
    for reason in decision.rejected:
        name, code = Text(reason.kernel, "bold"), reason.code.value
        if wide:
            remedy = render.stack(reason.remedy, reason.consequence)
            rows.append((name, code, reason.required, reason.found, remedy))
        else:
            below = (f"found {reason.found}", reason.consequence, f"remedy: {reason.remedy}")
            rows.append((name, code, render.stack(f"needs {reason.required}", *below)))
    columns = ("required", "found", "remedy") if wide else ("why",)
    render.table(console, ("not taken", "reason", *columns), rows, airy=not wide)


def _tuning(decision: Decision) -> list[tuple[str, render.Cell]]:
    """The row that the chosen kernel gets, and those that were fenced off."""
    from archkey.cli import render

    used = decision.tuning
    if used is None:
        return []
    lines: list[tuple[str, render.Cell]] = [
        ("tuning", render.stack(row_text(used.number, used.row), measured_text(used.row)))
    ]
    return lines + [("fenced off", fence_text(fence)) for fence in used.fenced]

# SPDX-License-Identifier: Apache-2.0
"""`archkey bench peers`: the libraries that can be measured beside archkey, and their checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from archkey.cli import render
from archkey.cli.output import emit

if TYPE_CHECKING:
    from archkey.bench.asker import Terms
    from archkey.bench.peers import Route

__all__ = ["run"]

_STYLES = {"installed": "green", "not installed": "dim", "broken": "red"}


def run(terms: Terms, wanted: Sequence[str], check: bool, as_json: bool) -> None:
    """Show the peers called `wanted`, none named: all. With `check`, exit 1 if one is not right."""
    from archkey.bench.asked import check_peers
    from archkey.bench.asker import Asker
    from archkey.bench.peers import PEERS
    from archkey.bench.run import checks, standings

    check_peers(wanted, routes=False)
    known = {peer.name: peer for peer in PEERS}
    with Asker(terms) as asker:
        rows = [row for row in standings(asker) if not wanted or row["name"] in wanted]
        if check:
            for row in rows:
                here = row["state"] == "installed"
                row["checks"] = _checked(checks(asker, known[row["name"]])) if here else []
    if as_json:
        emit(rows)
    else:
        _show(rows)
    cases = [case for row in rows for route in row.get("checks", ()) for case in route["cases"]]
    if any(case["status"] in ("wrong", "failed") for case in cases):
        raise click.exceptions.Exit(1)


def _checked(found: Iterable[tuple[Route, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The routes of a peer with what came of them, each named on stderr as soon as it is known."""
    console = render.open_console(stderr=True)
    rows = []
    for route, cases in found:
        rows.append({"operator": route.operator, "label": route.label, "cases": cases})
        console.print(f"{route.operator} {route.label}: {_counted(cases)}", soft_wrap=True)
    return rows


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Every peer: state, versions, what it computes, how to install it, and its checks."""
    console = render.open_console()
    render.table(console, ("peer", "state"), [_line(row) for row in rows], airy=True)
    for row in rows:
        for route in row.get("checks", ()):
            entrant = ":".join(filter(None, (row["name"], route["label"])))
            console.print(f"{entrant} {route['operator']}: {_counted(route['cases'])}")
            for case in route["cases"]:
                if case["status"] in ("wrong", "failed"):
                    said = f"  {case['status']}: {case['case']}: {case['reason']}{_far(case)}"
                    console.print(Text(said, "red"))


def _line(row: Mapping[str, Any]) -> list[render.Cell]:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    facts = [row["home"], f"computes {', '.join(row['operators'])}"]
    if row["state"] == "broken":
        facts.insert(0, f"install: {row['install']}")
    if row["reason"]:  # where it is missing, that ends with the command that mends it
        facts.insert(0, row["reason"])
    state = render.stack(Text(row["state"], _STYLES[row["state"]]), versions, *facts)
    return [render.stack(Text(row["name"], "bold"), row["title"]), state]


def _counted(cases: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(case["status"] for case in cases)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no case"
    worst = [case["error"] for case in cases if case["status"] == "passed"]
    return said + (f", worst error {max(worst):.1e}" if worst else "")


def _far(case: Mapping[str, Any]) -> str:
    if case.get("error") is None or case.get("tolerance") is None:
        return ""
    return f" by {case['error']:.2g}, allowed {case['tolerance']:.2g}"

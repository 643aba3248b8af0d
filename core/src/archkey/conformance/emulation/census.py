# SPDX-License-Identifier: Apache-2.0
"""Which instructions the kernels of a target have, and which of them the emulator lacks.

    python -m archkey.conformance.emulation.census cuda_sm100

compiles every kernel for every example problem of its operator. The exit code is 1 if something
is unknown: a new compiler is examined this way before it is used. `--compared FILE`, a document of
`archkey.conformance.emulation.captured`, tells which instructions no launch of a card has shown.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from archkey.conformance.emulation.device import TARGETS
from archkey.conformance.emulation.dialects import Dialect, dialect_of
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.errors import Unsupported
from archkey.plugins import DEFAULT
from archkey.session import Session
from archkey.session import open as open_session

__all__ = ["Seen", "count", "main"]


class Seen(NamedTuple):
    """How often a mnemonic occurs, and whether the emulator has it."""

    times: int
    known: bool


def count(texts: Iterable[str], dialect: Dialect) -> dict[str, Seen]:
    """Of all instructions in `texts`, by mnemonic; of AMD's without their encoding."""
    found: Counter[tuple[str, bool]] = Counter()
    for text in texts:
        found.update(dialect.mnemonics(text))
    return {name: Seen(times, known) for (name, known), times in sorted(found.items())}


def _texts(session: Session, dialect: Dialect) -> Iterator[tuple[str, str]]:
    """(kernel and example, its code) of all that can be compiled for the session's target."""
    for name, operator in session.operators.items():
        kernels = [kernel for kernel in session.kernels(name) if kernel.plugin != DEFAULT]
        for kernel, (label, problem) in itertools.product(kernels, operator.examples.items()):
            try:
                plan = session.plan(problem, kernel=kernel.id)
            except Unsupported:
                continue  # the kernel does not accept this example
            for compiled in plan.compiled:
                yield f"{name} {kernel.id}, {label}", str(compiled.kernel.asm[dialect.key])


def main(target: str, compared: Path | None = None) -> int:
    """Print the table; the number of things that the emulator cannot do.

    compared  a document about launches of a card
    """
    shown = None if compared is None else json.loads(compared.read_text("utf-8"))["instructions"]
    dialect = dialect_of(target)
    found = list(_texts(open_session(target), dialect))
    rows = count((text for _, text in found), dialect)
    for name, (times, known) in rows.items():
        said = "" if known else "  UNKNOWN"
        said += "" if shown is None or name in shown else "  not compared"
        click.echo(f"{times:8d}  {name}{said}")
    missing = [name for name, seen in rows.items() if not seen.known]
    for label, text in found:
        try:
            dialect.check(text)
        except UnknownInstruction as error:
            missing.append(str(error))
            click.echo(f"{label}: {error}")
    said = f"{len(found)} programs, {len(rows)} instructions, {len(missing)} unknown"
    if shown is not None:
        said += f", {sum(name in shown for name in rows)} compared with a card"
    click.echo(f"{target}: {said}")
    return len(missing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--compared", type=Path, help="a document about launches of a card")
    given = parser.parse_args()
    raise SystemExit(bool(main(given.target, given.compared)))

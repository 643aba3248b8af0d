# SPDX-License-Identifier: Apache-2.0
"""Which instructions the kernels of a target have, and which of them the emulator lacks.

    python -m archkey.conformance.emulation.census rocm_gfx950

compiles every kernel for every example problem of its operator. The exit code is 1 if something
is unknown: a new compiler is examined this way before it is used.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click

from archkey.conformance.emulation.device import TARGETS
from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.program import families, load
from archkey.conformance.emulation.text import parse
from archkey.errors import Unsupported
from archkey.plugins import DEFAULT
from archkey.session import Session
from archkey.session import open as open_session

__all__ = ["Seen", "count", "main"]


class Seen(NamedTuple):
    """How often a mnemonic occurs, and whether the emulator has it."""

    times: int
    known: bool


def count(texts: Iterable[str]) -> dict[str, Seen]:
    """Of all instructions in `texts`, by mnemonic without its encoding."""
    found: Counter[tuple[str, bool]] = Counter()
    for text in texts:
        assembly = parse(text)
        known = families(assembly.target)
        found.update((i.name, i.name in known) for i in assembly.instructions)
    return {name: Seen(times, known) for (name, known), times in sorted(found.items())}


def _texts(session: Session) -> Iterator[tuple[str, str]]:
    """(kernel and example, assembly) of all that can be compiled for the session's target."""
    for name, operator in session.operators.items():
        kernels = [kernel for kernel in session.kernels(name) if kernel.plugin != DEFAULT]
        for kernel, (label, problem) in itertools.product(kernels, operator.examples.items()):
            try:
                plan = session.plan(problem, kernel=kernel.id)
            except Unsupported:
                continue  # the kernel does not accept this example
            for compiled in plan.compiled:
                yield f"{name} {kernel.id}, {label}", str(compiled.kernel.asm["amdgcn"])


def main(target: str) -> int:
    """Print the table; the number of things that the emulator cannot do."""
    found = list(_texts(open_session(target)))
    rows = count(text for _, text in found)
    for name, (times, known) in rows.items():
        click.echo(f"{times:8d}  {name}" + ("" if known else "  UNKNOWN"))
    missing = [name for name, seen in rows.items() if not seen.known]
    for label, text in found:
        try:
            load(text)
        except UnknownInstruction as error:
            missing.append(str(error))
            click.echo(f"{label}: {error}")
    click.echo(f"{target}: {len(found)} programs, {len(rows)} instructions, {len(missing)} unknown")
    return len(missing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    raise SystemExit(bool(main(parser.parse_args().target)))

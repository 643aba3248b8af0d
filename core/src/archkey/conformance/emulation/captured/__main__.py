# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import click

from archkey.conformance.emulation.captured.comparing import compare_all, failed, table
from archkey.conformance.emulation.captured.recorder import Bounds
from archkey.conformance.emulation.captured.recording import Fate, Limits, record

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if rounding does not explain a kernel's differences, or it has no launch."""
    given = _parser().parse_args(arguments)
    if given.command == "compare":
        return _compare(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` ends it like Ctrl-C
    fates = record(
        *(given.target, given.path, click.echo),
        operators=tuple(given.operator),
        limits=Limits(given.seconds, given.timeout, given.limit, given.jobs),
        bounds=Bounds(
            *(int(given.megabytes * (1 << 20)), int(given.each * (1 << 20))),
            *(Bounds().memory, given.workgroups),
        ),
        emulated=given.emulated,
    )
    for kernel, fate in fates.items():
        click.echo(_told(kernel, fate))
    size = given.path.stat().st_size / (1 << 20)
    total = sum(sum(fate.bodies.values()) for fate in fates.values())
    click.echo(f"{total} launches in {given.path}, {size:.1f} MiB")
    return int(any(fate.tried and not sum(fate.bodies.values()) for fate in fates.values()))


def _compare(given: argparse.Namespace) -> int:
    document = compare_all(
        *(given.path, given.output, lambda text: click.echo(text, err=True)),
        jobs=given.jobs,
        seconds=given.seconds,
        timeout=given.timeout,
    )
    click.echo(json.dumps(document, indent=1) if given.json else table(document))
    return int(bool(failed(document)) or not document["emulated"]["complete"])


def _told(kernel: str, fate: Fate) -> str:
    launches = sum(fate.bodies.values())
    lines = [f"{kernel}: {launches} launches of {fate.kept} cases; {fate.tried} tried"]
    lines += [f"  {body}: {count}" for body, count in sorted(fate.bodies.items())]
    missing = not launches or 0 in fate.bodies.values()
    if missing and not fate.tried and not fate.reasons:
        lines.append("  no time")
    if missing:
        lines += [f"  {count} x {why}" for why, count in fate.reasons.most_common(6)]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    named: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    parser = argparse.ArgumentParser(prog="archkey.conformance.emulation.captured")
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("record", help="run kernels on a card and keep launches", **named)
    keep.add_argument("target")
    keep.add_argument("path", type=Path, help="the file, written anew")
    keep.add_argument("-o", "--operator", action="append", default=[], help="only this; repeatable")
    keep.add_argument("--limit", type=int, default=Limits().cases, help="cases of a kernel")
    keep.add_argument("--seconds", type=float, default=Limits().seconds, help="in total")
    keep.add_argument("--timeout", type=float, default=Limits().timeout, help="seconds of a case")
    keep.add_argument("--megabytes", type=float, default=Bounds().file >> 20, help="of the file")
    keep.add_argument("--each", type=float, default=Bounds().each >> 20, help="MB of a launch")
    keep.add_argument(
        "--workgroups", type=int, default=Bounds().workgroups, help="of a launch, at most"
    )
    keep.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="compilers")
    keep.add_argument("--emulated", action="store_true", help="without the card, to try it")
    against = commands.add_parser("compare", help="the same launches on the emulator", **named)
    against.add_argument("path", type=Path)
    against.add_argument("--output", type=Path, help="the document; resumed if it is there")
    against.add_argument("--json", action="store_true", help="the document on stdout, no table")
    against.add_argument("--seconds", type=float, default=0.0, help="in total; 0: no limit")
    against.add_argument("--timeout", type=float, default=600.0, help="seconds of a launch")
    against.add_argument("-j", "--jobs", type=int, default=1, help="processes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

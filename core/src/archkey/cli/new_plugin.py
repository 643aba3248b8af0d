# SPDX-License-Identifier: Apache-2.0
"""`archkey new-plugin`: the distribution of a new plugin, ready to be installed."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from archkey.cli.output import emit, json_option
from archkey.plugins import discover
from archkey.scaffold import Plan, plan, render, write

__all__ = ["command"]


@click.command("new-plugin", short_help="Write the distribution of a new plugin.")
@click.argument("name")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="DIR", help="Default: ./archkey-NAME"
)
@json_option
def command(name: str, output: Path | None, as_json: bool) -> None:
    """Write the distribution of a plugin NAME, ready to be installed, into a new folder.

    NAME is TARGET, or TARGET.VARIANT for kernels beside a plugin that is there already. A target
    that archkey has never heard of, PLATFORM_ARCH, gets a probe, too. The plugin has one kernel of
    its own and lists the bodies that architectures share; it passes the exam as it is written.

    \b
    archkey new-plugin acme_x1                        # hardware that archkey has never heard of
    archkey new-plugin rocm_gfx1201                   # known, and without a plugin
    archkey new-plugin cuda_sm90.acme --output mine   # other kernels for Hopper
    """
    wanted = plan(name, discover())
    folder = output or Path(wanted.distribution)
    files = render(wanted)
    write(files, folder)
    steps = _steps(wanted, folder)
    if as_json:
        emit(
            {
                "name": wanted.name,
                "distribution": wanted.distribution,
                "package": wanted.package,
                "folder": str(folder.resolve()),
                "files": sorted(files),
                "next": [step for step, _ in steps],
            }
        )
    else:
        _show(wanted, folder, sorted(files), steps)


def _steps(wanted: Plan, folder: Path) -> list[tuple[str, str]]:
    """Commands, and what each is for."""
    place = folder if folder.is_absolute() else f"./{folder}"  # else pip takes it for a name
    return [
        (f"pip install -e {shlex.quote(f'{place}[exam]')}", "where archkey is installed"),
        (f"archkey explain rmsnorm --target {wanted.target.key}", "which kernel, and why"),
        (f"archkey check {wanted.name}", "the exam"),
    ]


def _show(wanted: Plan, folder: Path, files: list[str], steps: list[tuple[str, str]]) -> None:
    click.echo(f"{wanted.distribution}, plugin {wanted.name}, in {folder}:\n")
    for file in files:
        click.echo(f"  {file}")
    click.echo("\nNext:")
    for step, purpose in steps:
        click.echo(f"  {step}  # {purpose}")
    click.echo("\nREADME.md says what goes where. The licence is yours to choose.")

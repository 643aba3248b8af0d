# SPDX-License-Identifier: Apache-2.0
"""The command line: `archkey COMMAND`.

One module a command, named like it and imported when it is asked for, so that `archkey probe`
loads neither rich nor the sessions. Results go to stdout, progress and logs to stderr; with
`--json` stdout holds one JSON document and nothing else. Only `demo`, `bench`, `tune` and `prepare`
import torch.

    exit 0    done
    exit 1    a check failed: a row of `demo` did not pass, `explain` found no kernel, a row of
              `bench` is over its limit, `quant explain` found a contradiction, `prepare` could not
              prepare a problem, `doctor` found something to do
    exit 2    the request is wrong: usage, an unknown name, a setting that cannot be read
    exit 130  interrupted (Ctrl-C, SIGTERM)
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from typing import Any

import click

from archkey import __version__
from archkey.errors import ArchkeyError, nearest
from archkey.settings import settings

__all__ = ["cli", "main"]

COMMANDS = (
    *("demo", "probe", "plugins", "capabilities", "explain", "coverage", "check", "bench"),
    *("prepare", "tune", "report", "quant", "doctor", "new-plugin"),
)
"""In the order of the help. Each is `command` in the module of its name, "-" written "_"."""


class Failure(click.ClickException):
    """An ArchkeyError as one message on stderr, without a traceback."""

    exit_code = 2


class Commands(click.Group):
    """Imports a command when it is asked for, and turns errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` start with; a misspelt one is answered with the nearest names."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command {name!r}; {nearest(name, COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ArchkeyError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None


class _Log(logging.Handler):
    """Log records on stderr: a line each, and the exception's; all of it at level debug.

    sys.stderr is asked for each time, because a progress bar stands in for it while it runs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print `record`."""
        lines = self.format(record).splitlines()
        if settings().loglevel != "DEBUG":
            lines = lines[:1] + lines[1:][-1:] * bool(record.exc_info)
        click.echo(f"{record.levelname.lower()}: " + "\n".join(lines), file=sys.stderr)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="archkey", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """What this machine's accelerators can do, and which kernel runs on them, and why.

    Works without a GPU and offline. Each command has --help with examples, and --json.

    \b
    archkey demo                                   run all of it on this machine
    archkey explain rmsnorm --target rocm_gfx950   which kernel, and why
    archkey capabilities cuda_sm90 --name fp8      one fact, for a script
    """
    settings()  # a misspelt ARCHKEY_ variable is an error of every command
    log, handler = logging.getLogger("archkey"), _Log()
    log.addHandler(handler)
    ctx.call_on_close(lambda: log.removeHandler(handler))


def main() -> None:
    """The script `archkey`."""
    # As `timeout` and job schedulers end it: like Ctrl-C, so that what was done is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli(prog_name="archkey")

# SPDX-License-Identifier: Apache-2.0
"""A command of many options, whose help lists them under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["Grouped"]


class Grouped(click.Command):
    """`groups`: heading -> names of parameters. Options that are in none come last."""

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]], **options: Any):
        super().__init__(*arguments, **options)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        found = {option.name: option.get_help_record(ctx) for option in options}
        records = {name: record for name, record in found.items() if record}  # not hidden
        for heading, names in self.groups.items():
            with formatter.section(heading):
                formatter.write_dl([records.pop(name) for name in names])
        with formatter.section("Other options"):
            formatter.write_dl(list(records.values()))

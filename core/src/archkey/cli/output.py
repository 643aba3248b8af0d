# SPDX-License-Identifier: Apache-2.0
"""The machine's half of the output: `--json`. The reader's half is `render.py`."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["emit", "json_option"]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else."
)
"""Gives a command the parameter `as_json`."""


def emit(document: Any) -> None:
    """Print `document` as JSON. A number that JSON lacks (inf, nan) is a ValueError."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))

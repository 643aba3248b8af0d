# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's settings of a running server: there is none."""

from __future__ import annotations

from typing import NoReturn


def get_exec() -> NoReturn:
    """Raises ValueError, as SGLang's own does before a server has published its settings."""
    raise ValueError("no server runs in this process")

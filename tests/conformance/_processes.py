# SPDX-License-Identifier: Apache-2.0
"""Which processes outlive the one that started them."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["left_behind"]

PATIENCE = 10.0
"""Seconds for all to end."""


def left_behind(folder: Path) -> list[str]:
    """Processes, other than this one, whose environment names the test's own folder, in the end."""
    deadline = time.monotonic() + PATIENCE
    while (left := _inside(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _inside(folder: Path) -> list[str]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if environ.parent.name != str(os.getpid()) and str(folder) in environ.read_text():
                found.append(environ.parent.name)
        except OSError:
            continue  # it has ended, or is somebody else's
    return found

# SPDX-License-Identifier: Apache-2.0
"""The host's own processor: always there, always the last device."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from archkey.probe.device import Device
from archkey.target import Target

__all__ = ["cpu", "usable_cores"]


def cpu(root: Path) -> Device:
    """The CPU: its name, the logical cores this process may use, and the machine's memory."""
    memory = _field(root / "proc/meminfo", "MemTotal")  # "263842112 kB", where kB means KiB
    return Device(
        target=Target("cpu", ""),
        index=0,
        name=_field(root / "proc/cpuinfo", "model name") or platform.machine() or "cpu",
        source="cpu",
        compute_units=usable_cores(),
        memory_bytes=int(memory.split()[0]) * 1024 if memory else None,
    )


def usable_cores() -> int | None:
    """Cores that this process may use; None where nobody says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _field(path: Path, name: str) -> str | None:
    """The value of the first line 'name : value'; None without the file or the line."""
    try:
        with path.open() as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return None

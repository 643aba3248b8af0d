# SPDX-License-Identifier: Apache-2.0
"""How many processes a launch on an emulator may have. Needs no numpy; `spread` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from archkey.probe.host import usable_cores

__all__ = ["allowed", "processes"]

_PROCESSES: ContextVar[int] = ContextVar("processes", default=0)


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Within it a launch has at most so many processes; 0, as by itself: one a core."""
    token = _PROCESSES.set(count)
    try:
        yield
    finally:
        _PROCESSES.reset(token)


def allowed() -> int:
    """The number of processes, this one included where it is one."""
    return _PROCESSES.get() or usable_cores() or 1

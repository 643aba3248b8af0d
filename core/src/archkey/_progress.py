# SPDX-License-Identifier: Apache-2.0
"""Long work, told on stderr. Needs rich, so import it when something is to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["progress"]


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Long work of `total` steps, told on stderr: `step(name)` says what begins now.

    A bar that leaves nothing behind on a terminal, one line a step elsewhere.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    done = count()
    if not console.is_terminal:
        yield lambda name: console.print(f"[{next(done) + 1}/{total}] {name}", soft_wrap=True)
        return
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda name: bar.update(task, description=name, completed=next(done))

# SPDX-License-Identifier: Apache-2.0
"""Where records lie, and what they say of the kernels of a session. Needs no torch."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from archkey._files import data_path
from archkey.conformance.levels import LADDER, Level
from archkey.conformance.merge import merged
from archkey.conformance.record import Standing, new, read, standing, write
from archkey.conformance.sources import digest
from archkey.errors import RecordError
from archkey.kernel import Kernel
from archkey.plugins import State
from archkey.session import Session

__all__ = ["NAME", "Records", "highest", "keep", "own_path", "records", "standings"]

NAME = "evidence.json"
"""A plugin's record, in its top-level package."""


Records = list[tuple[Path, dict[str, Any]]]
"""Where each lies, and what is in it."""


def own_path(subject: str) -> Path:
    """The user's record of a target or plugin."""
    return data_path("evidence", f"{subject}.json")


def keep(path: Path, target: str, levels: Mapping[str, Any]) -> None:
    """Put `levels` into the record at `path`; its other levels stay.

    So does one that was run before and could not be run now, or could be only without the card: a
    laptop does not undo what a card's owner found of the same code. Where an exam was of some
    operators, all this holds for each of them, and the level's other operators stay.
    """
    with filelock.FileLock(_lock(path)):
        record = read(path) or new(target)
        if record["target"] != target:
            raise RecordError(
                f"{path} is the record of {record['target']}, not of {target}; "
                "choose another file with --output"
            )
        before = record["levels"]
        after = {**before, **{n: merged(before.get(n), found) for n, found in levels.items()}}
        record["levels"] = {name: after[name] for name in _ORDER if name in after}
        write(path, record)


def _lock(path: Path) -> Path:
    """A file of its own, in the temporary folder: a package is no place for it."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"archkey-{os.getuid()}-{name}.lock"


_ORDER = [level.value for level in Level]


def records(session: Session) -> Records:
    """Records on this session's target: those the plugins ship, then the user's own.

    Raises RecordError for one that cannot be understood.
    """
    target = session.device.target.key
    paths: list[Path] = []
    for entry in session.report:
        if entry.state is State.LOADED and entry.found.location:
            paths.append(Path(entry.found.location) / NAME)
            paths.append(own_path(entry.found.name))
    paths.append(own_path(target))
    found = [(path, read(path)) for path in dict.fromkeys(paths)]
    return [(path, record) for path, record in found if record and record["target"] == target]


def standings(session: Session, kernel: Kernel, known: Records) -> dict[Level, Standing]:
    """The best of what the `known` records say of `kernel`, by level."""
    code = digest(kernel, session.operators[kernel.operator])
    best: dict[Level, Standing] = {}
    for _, record in known:
        for level, found in standing(record, kernel.operator, kernel.id, code).items():
            before = best.get(level)
            if before is None or _rank(found) >= _rank(before):
                best[level] = found
    return best


def _rank(found: Standing) -> tuple[bool, bool, str]:
    """What counts goes before what does not, then a card before a CPU, then the later one."""
    return not found.stale, found.device is not None, found.date


def highest(found: Mapping[Level, Standing]) -> Standing | None:
    """The highest level that was passed."""
    passed = [found[level] for level in LADDER if level in found and found[level].holds]
    return passed[-1] if passed else None

# SPDX-License-Identifier: Apache-2.0
"""What was measured, a line of JSON each, written at once: what is interrupted goes on from here.

A line is `{"key": {...}, ...}` with the fields of an `Outcome`. The key names all that the outcome
depends on. Of two lines with one key the later counts. A line that cannot be read, as a kill in the
middle of writing leaves it, is as good as not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archkey._files import data_path
from archkey.bench.tune.search import Outcome
from archkey.errors import RecordError

__all__ = ["Journal", "own_path"]


def own_path(target: str) -> Path:
    """The user's journal of a target."""
    return data_path("tuning", f"{target}.jsonl")


class Journal:
    """Outcomes by key.

    fresh   those from before are not used; they stay in the file
    added   how many were kept by this object; `reused`: how many were asked for and known
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.added = self.reused = 0
        self._known = {} if fresh else _read(path)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _text(key) in self._known

    def get(self, key: Mapping[str, Any]) -> Outcome | None:
        """What is known of `key`."""
        found = self._known.get(_text(key))
        self.reused += found is not None
        return found

    def add(self, key: Mapping[str, Any], outcome: Outcome) -> None:
        """Keep an outcome. RecordError if the file cannot be written."""
        text = json.dumps({"key": dict(key), **outcome.to_json()}, allow_nan=False)
        line = text.encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    # Half a line from a kill must not swallow this one.
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            raise RecordError(
                f"what was measured cannot be kept in {self.path}: {error}; name another file with "
                "--journal"
            ) from error
        self._known[_text(key)] = outcome
        self.added += 1


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _read(path: Path) -> dict[str, Outcome]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RecordError(f"the journal {path} cannot be read: {error}") from error
    found: dict[str, Outcome] = {}
    for line in lines:
        try:
            row = json.loads(line)
            found[_text(row["key"])] = Outcome.from_json(row)
        except (ValueError, KeyError, TypeError):
            continue
    return found

# SPDX-License-Identifier: Apache-2.0
"""The evidence record: what ran, at which level, with which versions, and how it ended.

One JSON file a target or plugin. A plugin ships its own as `evidence.json` in its package; what a
user's own exam finds lies in the user's data folder. Nothing in it is typed in by hand, and
nothing in it counts for code that has changed since: every kernel's digest stands beside it.

    {"format": 1, "target": "rocm_gfx950",
     "levels": {"compiled": {"passed": 9, "failed": 0, "skipped": 17, "complete": true,
                             "date": "2026-11-21", "device": null, "versions": {"triton": "3.6.0"},
                             "sources": {"rmsnorm rocm_gfx950:triton": "46f4..."},
                             "cases": [{"operator": "rmsnorm", ...}]}}}

An exam of some operators puts these in the place of what was recorded of them. What is said of a
level (`complete`, `date`, `device`, `versions`) then stands for them apart, in the level's `parts`:

    "parts": {"rmsnorm": {"complete": true, "date": "2026-11-25", "device": null, "versions": ...}}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archkey._files import replace
from archkey.conformance.levels import Level, Outcome
from archkey.errors import RecordError

__all__ = [
    "FORMAT",
    "Standing",
    "block",
    "facts",
    "level_of",
    "new",
    "operator_of",
    "read",
    "standing",
    "write",
]

FORMAT = 1


def new(target: str) -> dict[str, Any]:
    """A record without any level."""
    return {"format": FORMAT, "target": target, "levels": {}}


def block(
    outcomes: Iterable[Outcome],
    *,
    complete: bool,
    date: str,
    device: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    sources: Mapping[str, str],
    parts: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """One level of a record.

    complete  False if the exam was interrupted
    parts     of an exam of some operators, whether each of them is complete
    """
    said = {"complete": complete, "date": date, "device": device, "versions": dict(versions)}
    return level_of(
        said,
        parts={operator: {**said, "complete": done} for operator, done in (parts or {}).items()},
        sources=sources,
        cases=[row.to_json() for row in outcomes],
    )


def level_of(
    said: Mapping[str, Any],
    *,
    sources: Mapping[str, str],
    cases: Iterable[Mapping[str, Any]],
    parts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A level of these rows, which are counted; `said` and each of `parts` as of `facts`."""
    rows = sorted(cases, key=lambda row: (row["operator"], row["kernel"], row["case"]))
    counts = Counter(row["outcome"] for row in rows)
    return {
        **{name: counts[name] for name in ("passed", "failed", "skipped")},
        **said,
        **({"parts": dict(parts)} if parts else {}),
        "sources": dict(sources),
        "cases": rows,
    }


_FACTS = ("complete", "date", "device", "versions")


def facts(level: Mapping[str, Any], operator: str = "") -> dict[str, Any]:
    """What `level` says of the exam of `operator`: keys complete, date, device, versions."""
    said = level.get("parts", {}).get(operator, level)
    return {key: said[key] for key in _FACTS}


def operator_of(source: str) -> str:
    """The operator in a key of `sources`, "operator kernel"."""
    return source.partition(" ")[0]


def read(path: Path) -> dict[str, Any] | None:
    """The record at `path`, None if there is none. RecordError for what is no record of ours."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    try:
        found = json.loads(text)
        number = found["format"]
        levels = {level.value for level in Level} & set(found["levels"])
        for level in levels:
            for row in found["levels"][level]["cases"]:
                Outcome.from_json(level, row)
            for operator in found["levels"][level].get("parts", {}):
                facts(found["levels"][level], operator)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is no evidence record ({type(error).__name__}: {error}); "
            "delete it and run `archkey check` again"
        ) from error
    if number != FORMAT:
        raise RecordError(
            f"{path} is a record of format {number}, this archkey reads {FORMAT}; "
            "run `archkey check` again with this version"
        )
    return found  # type: ignore[no-any-return]


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` as a whole or not at all, a case a line, so that a change can be read."""
    levels = []
    for name, level in record["levels"].items():
        head = {key: value for key, value in level.items() if key != "cases"}
        rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in level["cases"])
        text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        levels.append(f' "{name}": {text},\n "cases": [\n{rows}\n ]}}')
    body = ",\n".join(levels)
    target = json.dumps(record["target"])
    whole = f'{{"format": {FORMAT}, "target": {target}, "levels": {{\n{body}\n}}}}\n'
    try:
        replace(path, whole)
    except OSError as error:
        raise RecordError(f"the record cannot be written to {path}: {error}") from error


@dataclass(frozen=True)
class Standing:
    """How far a kernel has come at one level.

    worst  the outcome that failed, or came closest to it
    stale  why the record does not count any more; "" if it does
    """

    level: Level
    passed: int
    failed: int
    skipped: int
    complete: bool
    stale: str
    worst: Outcome | None
    date: str
    versions: Mapping[str, str]
    device: Mapping[str, Any] | None

    @property
    def holds(self) -> bool:
        """At least one case passed, none failed, none is missing, and the code is the same."""
        return self.passed > 0 and not self.failed and self.complete and not self.stale


def standing(
    record: Mapping[str, Any], operator: str, kernel: str, digest: str
) -> dict[Level, Standing]:
    """What `record` says of one kernel whose code has `digest`, by level."""
    found: dict[Level, Standing] = {}
    for level in Level:
        level_block = record["levels"].get(level.value)
        if level_block is None:
            continue
        rows = [
            Outcome.from_json(level.value, row)
            for row in level_block["cases"]
            if (row["operator"], row["kernel"]) == (operator, kernel)
        ]
        if not rows:
            continue
        counts = Counter(row.outcome for row in rows)
        recorded = level_block["sources"].get(f"{operator} {kernel}")
        said = facts(level_block, operator)
        found[level] = Standing(
            level=level,
            passed=counts["passed"],
            failed=counts["failed"],
            skipped=counts["skipped"],
            complete=said["complete"],
            stale="" if recorded == digest else "its code has changed since",
            worst=max(rows, key=_badness),
            date=said["date"],
            versions=said["versions"],
            device=said["device"],
        )
    return found


def _badness(outcome: Outcome) -> tuple[bool, float]:
    """Failures first, then the share of what is allowed that the error takes."""
    share = (outcome.error or 0.0) / outcome.tolerance if outcome.tolerance else 0.0
    return outcome.outcome == "failed", share

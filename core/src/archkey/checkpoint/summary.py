# SPDX-License-Identifier: Apache-2.0
"""A plan as one document: what was read, a row for each kind of module, what speaks against it.

`archkey quant explain` prints it; with --json, as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from archkey.checkpoint.checking import Report, check
from archkey.checkpoint.names import collapse, words_of
from archkey.checkpoint.patterns import Matcher, Pattern
from archkey.checkpoint.planning import Entry, Fusion, Plan
from archkey.checkpoint.scheme import UNQUANTIZED
from archkey.checkpoint.support import decide
from archkey.errors import ArgumentValueError

if TYPE_CHECKING:
    from archkey.checkpoint.files import Header
    from archkey.session import Session

__all__ = ["contradicts", "summarise"]

# Patterns for these are no mistake when no module of the plan matches: linear modules of the
# decoder are planned, and lists name all that is not converted.
_NOT_PLANNED = ("visual", "vision", "embed", "norm", "conv1d", "projector", "A_log", "dt_bias")


def summarise(
    plan: Plan,
    sessions: Sequence[Session],
    headers: Mapping[str, Header] | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    """The document: JSON types only.

    sessions  of the targets to judge
    headers   of the files to compare with, for a plan of one rank
    pattern   only rows of modules whose name this glob matches; counts stay those of the model
    """
    found = plan.quantization
    fusion = plan.fused()
    entries = [entry for entry in fusion.entries if _wanted(entry, pattern)]
    if pattern and not entries:
        raise ArgumentValueError(f"pattern {pattern!r} matches none of {len(plan)} modules")
    counts = _counts(plan)
    return {
        "producer": found.producer,
        "dtype": found.dtype,
        "tp": plan.tp,
        "modules": len(plan),
        "default": {"text": str(found.default), **found.default.to_json()},
        "activations": str(found.default.activation),
        "kv_cache": found.kv_cache,
        "patterns": [
            {
                "pattern": named.text,
                "kind": named.kind,
                "scheme": str(scheme),
                "modules": counts[named],
            }
            for named, scheme in _patterns(plan)
        ],
        "warnings": [*_warnings(plan, counts)],
        "rows": [_row(rows, sessions) for rows in _kinds(entries)],
        "contradictions": [*_conflicts(fusion)],
        "files": None if headers is None else _files(check(plan, headers), len(headers)),
    }


def contradicts(document: Mapping[str, Any]) -> bool:
    """Whether something in the document speaks against itself or against the files."""
    files = document["files"]
    return bool(document["contradictions"] or (files and files["disagreements"]))


def _conflicts(fusion: Fusion) -> Iterable[str]:
    """Why products cannot be one: the first of those that differ in their place alone."""
    alike: dict[str, list[str]] = {}
    for name, why in fusion.conflicts.items():
        alike.setdefault(why.replace(name.rpartition(".")[0], ""), []).append(name)
    for first, *others in alike.values():
        listed = ", ".join(collapse(others))
        yield fusion.conflicts[first] + (f" Likewise: {listed}." if others else "")


def _wanted(entry: Entry, pattern: str | None) -> bool:
    names = (entry.name, *entry.shards)
    return pattern is None or any(fnmatchcase(name, pattern) for name in names)


def _patterns(plan: Plan) -> Iterable[tuple[Pattern, object]]:
    """Each pattern once, with what it gives its modules."""
    found = plan.quantization
    excluded: dict[Pattern, object] = dict.fromkeys(found.exclude, UNQUANTIZED)
    return (excluded | {p: s for p, s in reversed(found.overrides) if p not in excluded}).items()


def _counts(plan: Plan) -> Counter[Pattern]:
    """How many modules each pattern decided; of those it decided none for, how many it matches."""
    counts = Counter(e.resolution.pattern for e in plan if e.resolution.pattern is not None)
    rest = Matcher(pattern for pattern in plan.quantization.patterns if not counts[pattern])
    counts.update(pattern for entry in plan for pattern in rest.find_all(entry.name))
    return counts


def _warnings(plan: Plan, counts: Mapping[Pattern, int]) -> Iterable[str]:
    for field in plan.quantization.unread:
        yield f"field {field!r} of the description is not known here and was not read"
    idle = [
        pattern.text
        for pattern in plan.quantization.patterns
        if not counts[pattern] and not any(word in pattern.text for word in _NOT_PLANNED)
    ]
    for line in collapse(idle):
        yield f"pattern {line!r} matches no module"


def _kinds(entries: Iterable[Entry]) -> Iterable[list[Entry]]:
    """Modules that differ in their numbers alone, together, in order of first appearance."""
    kinds: dict[Any, list[Entry]] = {}
    for entry in entries:
        shape = (entry.share.rows, entry.share.columns)
        resolution = entry.resolution
        key = (words_of(entry.name), shape, resolution.scheme, resolution.rule)
        kinds.setdefault(key, []).append(entry)
    return kinds.values()


def _row(entries: Sequence[Entry], sessions: Sequence[Session]) -> dict[str, Any]:
    first = entries[0]
    resolution = first.resolution
    patterns = {entry.resolution.pattern.text for entry in entries if entry.resolution.pattern}
    prefix = len(first.name)
    return {
        "modules": [*collapse(entry.name for entry in entries)],
        "count": len(entries),
        "fused": [shard.rpartition(".")[2] for shard in first.shards],
        "shape": [first.share.rows, first.share.columns],
        "cut": first.layer.cut,
        "scheme": {"text": str(resolution.scheme), **resolution.scheme.to_json()},
        "rule": resolution.rule,
        "patterns": [*collapse(sorted(patterns))],
        "tensors": [
            {
                "name": tensor.name[prefix:].removeprefix("."),
                "shape": [*tensor.shape],
                "dtype": tensor.dtype,
            }
            for tensor in first.tensors
        ],
        "targets": {
            session.device.target.key: decide(
                session, resolution.scheme, first.share.rows, first.share.columns
            ).to_json()
            for session in sessions
        },
    }


def _files(report: Report, count: int) -> dict[str, Any]:
    return {
        "tensors": count,
        "disagreements": [found.to_json() for found in report.disagreements],
        "lines": [*report.lines],
        "absent": [*collapse(report.absent)],
        "exclude": [*report.exclude],
        "remedy": report.remedy,
    }

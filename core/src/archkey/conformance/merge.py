# SPDX-License-Identifier: Apache-2.0
"""What becomes of a level of a record when an exam ends: which of old and new counts, by operator.

A level falls into pieces: one for each operator that was examined apart, on either side, and one
for all the rest. Old and new are compared piece by piece, and joined again from what counts more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from archkey.conformance.record import facts, level_of, operator_of

__all__ = ["merged"]

_REST = ""
"""The piece of the operators that were not examined apart, and of the capabilities."""

Piece = Mapping[str, Any]


def merged(before: Piece | None, new: Piece) -> dict[str, Any]:
    """A level after `new`, where `before` was recorded: see `archkey.conformance.evidence.keep`.

    An exam of some operators (`new` has parts) is about these alone. A whole one is about all, and
    forgets what it does not know any more; it keeps as a part what was found apart and counts more.
    """
    if before is None:
        return dict(new)
    asked, apart = new.get("parts", {}), before.get("parts", {})
    names = {*asked, *apart}
    old, fresh = _pieces(before, names), _pieces(new, names)
    known = {operator_of(key) for key in new["sources"]}
    taken = {
        name
        for name in asked or fresh
        if _counts_more(fresh[name], old[name]) or name not in {*known, _REST}
    }
    if asked and not old[_REST]["cases"]:
        taken.add(_REST)  # nothing is left of what the level's own date was about
    chosen = {name: fresh[name] if name in taken else old[name] for name in old}
    parts = {
        name: facts(chosen[name])
        for name in sorted(names & {operator_of(key) for key in _sources(chosen)})
        # It has facts of its own if it had them on its side, or the rest is of the other side.
        if name in (asked if name in taken else apart) or (name in taken) != (_REST in taken)
    }
    found = _sources(chosen)
    order = {**before["sources"], **new["sources"]}
    return level_of(
        facts(chosen[_REST]),
        parts=parts,
        sources={key: found[key] for key in order if key in found},
        cases=[row for piece in chosen.values() for row in piece["cases"]],
    )


def _pieces(level: Piece, apart: Collection[str]) -> dict[str, Piece]:
    """The rest and every operator of `apart`, each as a level of its own."""

    def piece(name: str) -> Piece:
        def mine(operator: str) -> bool:
            return operator == name if name else operator not in apart

        return level_of(
            facts(level, name),
            sources={key: code for key, code in level["sources"].items() if mine(operator_of(key))},
            cases=[row for row in level["cases"] if mine(row["operator"])],
        )

    return {name: piece(name) for name in (_REST, *apart)}


def _sources(pieces: Mapping[str, Piece]) -> dict[str, str]:
    return {key: code for piece in pieces.values() for key, code in piece["sources"].items()}


def _counts_more(new: Piece, before: Piece) -> bool:
    """Whether a piece goes in the place of what is recorded of it."""
    if not _ran(new) or not _ran(before):
        return not _ran(before)
    lost = before["device"] is not None and new["device"] is None
    return not lost or new["sources"] != before["sources"]


def _ran(level: Piece) -> bool:
    return bool(level["passed"] or level["failed"])

# SPDX-License-Identifier: Apache-2.0
"""Visible-device variables: lists of indices and UUID prefixes, read left to right."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["choose"]


def choose(
    variable: str, value: str | None, names: Sequence[str], numbered: int | None = None
) -> tuple[list[int], str]:
    """Positions in `names` that `value` selects, in its order, and a remark ("" if none).

    Only the first `numbered` names (default: all) have an index; the rest are reached by UUID.
    The list ends at the first entry that names nothing, names two devices or repeats one: so "",
    "-1" and "NoDevFiles" hide everything. None selects all that have an index.
    (CUDA programming guide, "CUDA environment variables"; ROCm, "GPU isolation techniques".)
    """
    numbered = len(names) if numbered is None else numbered
    if value is None:
        return list(range(numbered)), ""
    chosen: list[int] = []
    for entry in (part.strip() for part in value.split(",")):
        position = _position(entry, names, numbered)
        if position is None or position in chosen:
            rest = "; it and what follows are ignored" if chosen else ", so all are hidden"
            return chosen, f"{variable}={value!r}: {entry!r} names no further device{rest}"
        chosen.append(position)
    return chosen, ""


def _position(entry: str, names: Sequence[str], numbered: int) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < numbered else None
    word = entry.lower()
    if not word.startswith(("gpu-", "mig-")):
        return None
    found = [i for i, name in enumerate(names) if name.lower().startswith(word)]
    return found[0] if len(found) == 1 else None

# SPDX-License-Identifier: Apache-2.0
"""Reading a description's fields: what is missing, of a wrong type or unknown is said by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from archkey.errors import CheckpointError, nearest

__all__ = ["names", "number", "one_of", "pair", "refuse", "table", "unread"]


def refuse(where: str, found: object, expected: str) -> NoReturn:
    """CheckpointError: what stands at `where`, and what this version reads there."""
    raise CheckpointError(f"{where}: found {found!r:.200}; expected {expected}")


def one_of(where: str, found: object, known: Iterable[str]) -> str:
    """`found` if it is one of `known`; CheckpointError with the nearest ones if not."""
    choices = tuple(known)
    if isinstance(found, str) and found in choices:
        return found
    close = nearest(str(found), choices)
    tail = f" ({close})" if close.startswith("did") else ""
    refuse(where, found, f"one of {', '.join(choices)}{tail}")


def table(where: str, found: object) -> Mapping[str, Any]:
    """`found` as a table; None is an empty one."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        refuse(where, found, "a table of fields")
    return found


def names(where: str, found: object) -> tuple[str, ...]:
    """`found` as a list of strings; None is an empty one."""
    if found is None:
        return ()
    if isinstance(found, str) or not isinstance(found, Iterable):
        refuse(where, found, "a list of names or patterns")
    listed = tuple(found)
    for entry in listed:
        if not isinstance(entry, str):
            refuse(where, entry, "a name or pattern, as text")
    return listed


def number(where: str, found: object) -> int:
    """`found` as a positive integer."""
    if isinstance(found, bool) or not isinstance(found, int) or found <= 0:
        refuse(where, found, "a positive integer")
    return found


def pair(where: str, found: object) -> tuple[int, int]:
    """`found` as two positive integers, rows and columns."""
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        refuse(where, found, "[rows, columns]")
    return number(where, found[0]), number(where, found[1])


def unread(description: Mapping[str, Any], known: Iterable[str]) -> tuple[str, ...]:
    """Fields that hold something and are not `known`."""
    empty: tuple[object, ...] = (None, False, "", [], {})
    skipped = set(known)
    return tuple(k for k, v in description.items() if k not in skipped and v not in empty)

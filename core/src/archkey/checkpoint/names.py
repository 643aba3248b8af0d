# SPDX-License-Identifier: Apache-2.0
"""Names of modules for people: numbers that run are written once, `model.layers.{3-60}.mlp`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["collapse", "words_of"]

Numbers = tuple[int, ...]


def words_of(name: str) -> tuple[str, ...]:
    """The components of `name` that are no numbers: what modules of one kind share."""
    return tuple(part for part in name.split(".") if not part.isdecimal())


def collapse(names: Iterable[str]) -> tuple[str, ...]:
    """`names` in as few lines as their numbers allow, in order of first appearance.

    A line stands for each combination of its numbers: names that are no such product are split.
    """
    shapes: dict[tuple[str, ...], set[Numbers]] = {}
    for name in dict.fromkeys(names):
        parts = name.split(".")
        words = tuple("" if part.isdecimal() else part for part in parts)
        numbers = tuple(int(part) for part in parts if part.isdecimal())
        shapes.setdefault(words, set()).add(numbers)
    return tuple(
        _written(words, columns) for words, found in shapes.items() for columns in _products(found)
    )


def _products(found: set[Numbers]) -> list[list[list[int]]]:
    """`found` as products of one list of numbers a place."""
    if found == {()}:
        return [[]]
    rests: dict[int, set[Numbers]] = {}
    for first, *rest in found:
        rests.setdefault(first, set()).add(tuple(rest))
    alike: dict[frozenset[Numbers], list[int]] = {}
    for first in sorted(rests):
        alike.setdefault(frozenset(rests[first]), []).append(first)
    return [[firsts, *columns] for rest, firsts in alike.items() for columns in _products({*rest})]


def _written(words: tuple[str, ...], columns: list[list[int]]) -> str:
    numbers = iter(columns)
    return ".".join(word or _range(next(numbers)) for word in words)


def _range(numbers: list[int]) -> str:
    """`5`, `{0-3}`, or `{0-2,4,6-8}` of ascending numbers."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs) + "}"

# SPDX-License-Identifier: Apache-2.0
"""What a search came to: the new table, and what changed, for people and for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from archkey.bench.tune.search import Choice
from archkey.errors import RecordError
from archkey.explain import measured_text
from archkey.tables import numbers
from archkey.tuning import Measured, Table

__all__ = ["difference", "document", "revised"]


def revised(
    table: Table, choices: Sequence[Choice], card: str, date: str, versions: Mapping[str, str]
) -> Table:
    """`table` with the chosen values. A row that was timed says where, kept or not.

    RecordError if one of these rows is not any more what was measured.
    """
    rows = list(table.rows)
    for choice in choices:
        if not choice.after:
            continue
        number, row = choice.group.number, choice.group.row
        if number > len(rows) or replace(rows[number - 1], measured=row.measured) != row:
            raise RecordError(
                f"row {number} of the table was changed while it was measured; nothing was "
                "written, and the same command goes on with what it is now"
            )
        measured = Measured(card, date, versions, choice.after)
        rows[number - 1] = replace(row, values=choice.values, measured=measured)
    return replace(table, rows=tuple(rows))


def difference(choices: Sequence[Choice]) -> Iterator[str]:
    """What changes, line by line: `-` what the table had, `+` what it gets."""
    for choice in choices:
        row = choice.group.row
        when = " and ".join(map(str, row.when)) or "every problem"
        yield f"  row {choice.group.number}, for {when}: {choice.why}"
        if not choice.changed:
            continue
        new, old = numbers(choice.values), numbers(row.values)
        fields = [name for name in old if old[name] != new[name]]
        yield f"- {_fields(old, fields)}  ({measured_text(row)})"
        yield f"+ {_fields(new, fields)}  ({_worst(choice)})"


def _worst(choice: Choice) -> str:
    """How far from the best candidate the worst call is, now and before."""
    if choice.worst is None:
        return "the old ones have no times"
    before, after = choice.worst
    return f"at worst {after:.2f} x the best candidate's time, before {before:.2f} x"


def _fields(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return " ".join(f"{name}={values[name]}" for name in names)


def document(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """A JSON object a row, with all that was measured for it."""
    return [
        {
            "row": choice.group.number,
            "when": [str(condition) for condition in choice.group.row.when],
            "before": numbers(choice.group.row.values),
            "after": numbers(choice.values),
            "changed": choice.changed,
            "gain": choice.gain,
            "why": choice.why,
            "us": {
                name: {"before": choice.before.get(name), "after": after}
                for name, after in choice.after.items()
            },
            "candidates": [
                {"sample": name, "values": numbers(values), **outcome.to_json()}
                for (name, values), outcome in choice.outcomes.items()
            ],
        }
        for choice in choices
    ]

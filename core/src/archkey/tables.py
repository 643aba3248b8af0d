# SPDX-License-Identifier: Apache-2.0
"""Tuning tables as files: what `archkey tune` can write, and a plugin reads when it is loaded.

    {"format": 1, "tables": {"rmsnorm": {"values": "RmsNormTuning", "rows": [
        {"when": [["width", "at most", 1024]],
         "values": {"tile": 1024, "num_warps": 4, "block": 16384},
         "measured": {"card": "NVIDIA H200", "date": "2026-11-20", "versions": {...}, "us": {...}}},
        {"values": {...}, "measured": "not measured: 16 to 32 elements a thread"}]}}}

A row has the fields of `archkey.tuning.Row`, and those that say nothing are left out. A condition
is `[field, relation, value]`, with the reason as a fourth if it has one; a list stands for a tuple.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archkey._files import replace
from archkey.conditions import Condition
from archkey.errors import PluginError, RecordError, nearest
from archkey.requirements import Requirement
from archkey.tuning import Measured, Row, Source, Table

__all__ = ["FORMAT", "again", "numbers", "read", "save", "to_json"]

FORMAT = 1

_WIDTH = 100


def read(path: Path, *kinds: type[Any]) -> dict[str, Table]:
    """The tables in the file at `path`, by name. Imports nothing.

    kinds  the dataclasses of the values, which the file knows by name

    PluginError names the file, the table and the row of what cannot be read.
    """
    known = {kind.__name__: kind for kind in kinds}
    document = _document(path)
    return {name: _table(document, Source(path, name), known) for name in document["tables"]}


def again(table: Table) -> Table:
    """`table` as its file has it now; the same if it is from no file."""
    if table.source is None:
        return table
    kind = type(table.rows[0].values)
    return _table(_document(table.source.path), table.source, {kind.__name__: kind})


def save(path: Path, name: str, table: Table) -> None:
    """Put `table` into the file at `path` under `name`; the file's other tables stay.

    A file that is not there begins as a copy of the one the table was read from, if there is one.
    Written as a whole or not at all. RecordError if it cannot be written.
    """
    document: dict[str, Any] = {"format": FORMAT, "tables": {}}
    if path.exists():
        document = _document(path)
    elif table.source is not None:
        document = _document(table.source.path)
    document["tables"][name] = to_json(table)
    try:
        replace(path, _dump(document) + "\n")
    except OSError as error:
        raise RecordError(f"the tuning table cannot be written to {path}: {error}") from error


def to_json(table: Table) -> dict[str, Any]:
    """The table as the file has it."""
    return {
        "values": type(table.rows[0].values).__name__,
        "rows": [_row_to_json(row) for row in table.rows],
    }


def numbers(values: Any) -> dict[str, Any]:
    """The fields of a row's values, by name; of what is no dataclass, the one called "value"."""
    if not dataclasses.is_dataclass(values):
        return {"value": values}
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


def _document(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        number, _ = found["format"], found["tables"].items()
    except OSError as error:
        raise PluginError(f"the tuning tables at {path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(f"{path} holds no tuning tables ({said})") from error
    if number != FORMAT:
        raise PluginError(f"{path} is of format {number}, this archkey reads {FORMAT}; upgrade it")
    return found


# ---- from the file


def _table(document: Mapping[str, Any], source: Source, known: Mapping[str, type[Any]]) -> Table:
    rows: list[Row] = []
    try:
        table = document["tables"][source.name]
        kind = table["values"]
        if kind not in known:
            raise ValueError(f"values {kind!r}; {nearest(kind, known)}")
        for row in table["rows"]:
            rows.append(_row(row, known[kind]))
        return Table(tuple(rows), source)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = f"{source.path}, table {source.name!r}, after row {len(rows)}"
        raise PluginError(f"{where}: {type(error).__name__}: {error}") from error


def _row(row: Mapping[str, Any], kind: type[Any]) -> Row:
    parts = {field.name for field in dataclasses.fields(Row)}
    if unknown := sorted(set(row) - parts):
        raise ValueError(f"a row has no {unknown[0]!r}; {nearest(unknown[0], parts)}")
    values = {name: _frozen(value) for name, value in row["values"].items()}
    measured = row.get("measured", Row.measured)
    return Row(
        values=kind(**values),
        when=tuple(Condition(*map(_frozen, condition)) for condition in row.get("when", ())),
        requires=tuple(Requirement(**rule) for rule in row.get("requires", ())),
        measured=measured if isinstance(measured, str) else Measured(**measured),
        spills=row.get("spills", 0),
    )


def _frozen(value: Any) -> Any:
    """JSON has lists where our data has tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# ---- to the file


def _row_to_json(row: Row) -> dict[str, Any]:
    measured = row.measured
    said: dict[str, Any] = {
        "when": [_condition(condition) for condition in row.when],
        "requires": [_rule(rule) for rule in row.requires],
        "values": numbers(row.values),
        "spills": row.spills,
        "measured": measured if isinstance(measured, str) else _provenance(measured),
    }
    return {name: value for name, value in said.items() if value not in ([], 0)}


def _condition(condition: Condition) -> list[Any]:
    said = [condition.field, condition.relation, condition.value]
    return [*said, condition.why] if condition.why else said


def _rule(rule: Requirement) -> dict[str, str]:
    said = dataclasses.asdict(rule)
    return {name: value for name, value in said.items() if value or name == "package"}


def _provenance(measured: Measured) -> dict[str, Any]:
    us = {name: round(time, 2) for name, time in measured.us.items()}
    said = {"card": measured.card, "date": measured.date, "versions": dict(measured.versions)}
    return {**said, "us": us} if us else said


def _dump(value: Any, indent: str = "", taken: int = 0) -> str:
    """JSON on one line where it fits, else one entry a line: a changed number is a changed line.

    taken  columns before it
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if taken + len(line) < _WIDTH or not isinstance(value, dict | list | tuple):
        return line
    inner, keys = indent + " ", [""] * len(value)
    if isinstance(value, dict):
        keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value]
        value = list(value.values())
    entries = (
        inner + key + _dump(item, inner, len(inner + key))
        for key, item in zip(keys, value, strict=True)
    )
    start, end = ("{", "}") if any(keys) else ("[", "]")
    return f"{start}\n" + ",\n".join(entries) + f"\n{indent}{end}"

# SPDX-License-Identifier: Apache-2.0
"""Exams of some operators in one record: each operator keeps what was found of it, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from archkey.conformance import evidence
from archkey.conformance.levels import Item, Level, Outcome
from archkey.conformance.merge import merged
from archkey.conformance.record import block, read, standing

KERNEL, CARD = "cuda_sm90:triton", {"name": "H200"}


def level(
    rows: Mapping[str, str],
    *,
    apart: bool = False,
    cut: tuple[str, ...] = (),
    day: int = 1,
    device: Any = None,
    code: str = "code",
) -> dict[str, Any]:
    """rows: by operator, the outcome of each of its cases: "p", "f" or "s"."""
    said = {"p": "passed", "f": "failed", "s": "skipped"}
    return block(
        [
            Outcome(Item("accuracy", name, KERNEL, f"{number}"), said[letter])
            for name, letters in rows.items()
            for number, letter in enumerate(letters)
        ],
        complete=not cut,
        date=f"2026-01-0{day}",
        device=device,
        versions={"torch": f"2.{day}"},
        sources={f"{name} {KERNEL}": code for name in rows if name != "capabilities"},
        parts={name: name not in cut for name in rows} if apart else None,
    )


def rows(found: Mapping[str, Any]) -> dict[str, str]:
    """The inverse of `level`."""
    letters: dict[str, str] = {}
    for row in found["cases"]:
        letters[row["operator"]] = letters.get(row["operator"], "") + row["outcome"][0]
    return letters


def days(found: Mapping[str, Any]) -> dict[str, int]:
    """Whose facts are of which day; those of the level itself under ""."""
    dates = {"": found["date"], **{n: part["date"] for n, part in found.get("parts", {}).items()}}
    return {name: int(date[-1]) for name, date in dates.items()}


WHOLE = {"a": "pp", "b": "pf", "c": "s", "capabilities": "p"}


def test_an_operator_is_renewed_and_the_others_stay() -> None:
    found = merged(level(WHOLE, device=CARD), level({"b": "ppp"}, apart=True, day=2, device=CARD))
    assert rows(found) == {**WHOLE, "b": "ppp"}
    assert (found["passed"], found["failed"], found["skipped"]) == (6, 0, 1)
    assert days(found) == {"": 1, "b": 2}
    assert found["parts"]["b"] == {
        "complete": True,
        "date": "2026-01-02",
        "device": CARD,
        "versions": {"torch": "2.2"},
    }


def test_its_sources_are_replaced_in_their_place() -> None:
    new = level({"a": "p"}, apart=True, code="changed")
    new["sources"]["a cuda_sm90:wgmma"] = "a second kernel"
    before = level(WHOLE)
    before["sources"]["a cuda_sm90:old"] = "one that is gone"
    assert merged(before, new)["sources"] == {
        f"a {KERNEL}": "changed",
        f"b {KERNEL}": "code",
        f"c {KERNEL}": "code",
        "a cuda_sm90:wgmma": "a second kernel",
    }
    assert list(merged(before, new)["sources"])[:3] == [f"{name} {KERNEL}" for name in "abc"]


def test_a_standing_is_that_of_the_part() -> None:
    """Its date, versions and device; and that it was cut off is about no other operator."""
    cut = level({"b": "p"}, apart=True, cut=("b",), day=2, device=CARD)
    record = {"levels": {"accuracy": merged(level(WHOLE), cut)}}
    a, b = (standing(record, name, KERNEL, "code")[Level.ACCURACY] for name in ("a", "b"))
    assert (a.date, a.versions, a.device) == ("2026-01-01", {"torch": "2.1"}, None)
    assert (b.date, b.versions, b.device) == ("2026-01-02", {"torch": "2.2"}, CARD)
    assert a.holds
    assert b.passed and not b.complete and not b.holds


def test_a_level_without_a_block_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    for day, name in enumerate("ba", 1):
        evidence.keep(path, "cuda_sm90", {"accuracy": level({name: "p"}, apart=True, day=day)})
    record = read(path)
    assert record is not None
    found = record["levels"]["accuracy"]
    assert rows(found) == {"a": "p", "b": "p"}
    assert days(found) == {"": 2, "a": 2, "b": 1}
    assert list(found["parts"]) == ["a", "b"]
    assert record["format"] == 1, "who knows no parts reads the rows as before"


@pytest.mark.parametrize(
    ("new", "taken"),
    [
        (level({"a": "s"}, apart=True, day=2, device=CARD), False),
        (level({"a": "pp"}, apart=True, day=2), False),
        (level({"a": "pp"}, apart=True, day=2, device=CARD), True),
        (level({"a": "pp"}, apart=True, day=2, code="changed"), True),
        (level({"a": "f"}, apart=True, day=2, device=CARD), True),
    ],
)
@pytest.mark.parametrize("before_apart", [False, True])
def test_what_counts_more_stays(new: dict[str, Any], taken: bool, before_apart: bool) -> None:
    """Of one operator as of a level: not skipped for run, nor a laptop's for a card's."""
    before = level({"a": "ppp", "b": "p"}, device=None if before_apart else CARD)
    if before_apart:
        before = merged(before, level({"a": "ppp"}, apart=True, device=CARD))
    found = merged(before, new)
    assert (found != before) is taken
    assert rows(found) == {"a": rows(new)["a"] if taken else "ppp", "b": "p"}


def test_each_operator_is_judged_by_itself() -> None:
    """Of two that a laptop examined, the one that has changed since the card did is taken."""
    new = level({"a": "p", "b": "p"}, apart=True, day=2)
    new["sources"][f"b {KERNEL}"] = "changed"
    found = merged(level(WHOLE, device=CARD), new)
    assert rows(found) == {**WHOLE, "b": "p"}
    assert days(found) == {"": 1, "b": 2}


def test_what_was_not_begun_stays_and_is_no_part() -> None:
    """`a` was cut off, `b` never asked; of `c`, which had not run, it is said that it is cut."""
    new = level({"a": "p", "b": "", "c": ""}, apart=True, cut=("a", "b", "c"), day=2)
    found = merged(level(WHOLE), new)
    assert rows(found) == {"a": "p", "b": "pf", "capabilities": "p"}
    assert days(found) == {"": 1, "a": 2, "c": 2}
    assert found["complete"]
    assert not found["parts"]["a"]["complete"] and not found["parts"]["c"]["complete"]


def test_a_whole_exam_has_no_parts() -> None:
    apart = merged(level(WHOLE), level({"a": "f", "b": "f"}, apart=True, day=2))
    assert merged(apart, level(WHOLE, day=3)) == level(WHOLE, day=3)


def test_a_whole_exam_that_could_not_run_an_operator_keeps_its_part() -> None:
    """`c` was never run but apart; cut off before `a`, the exam leaves that, too."""
    apart = merged(level(WHOLE), level({"a": "f", "c": "p"}, apart=True, day=2))
    found = merged(apart, level({**WHOLE, "a": "", "b": "p"}, cut=("a",), day=3))
    assert rows(found) == {"a": "f", "b": "p", "c": "p", "capabilities": "p"}
    assert days(found) == {"": 3, "a": 2, "c": 2}
    assert not found["complete"] and found["parts"]["a"]["complete"]


def test_a_whole_exam_keeps_the_part_of_a_card() -> None:
    before = merged(level(WHOLE), level({"a": "ppp"}, apart=True, day=2, device=CARD))
    found = merged(before, level(WHOLE, day=3))
    assert rows(found) == {**WHOLE, "a": "ppp"}
    assert days(found) == {"": 3, "a": 2}
    assert merged(found, level(WHOLE, day=3)) == found, "kept again after the next level"

    changed = merged(before, level(WHOLE, day=3, code="changed"))
    assert rows(changed) == WHOLE
    assert "parts" not in changed


def test_a_whole_exam_of_a_laptop_renews_the_part_that_was_a_laptops() -> None:
    """The rest is a card's of the same code, and stays."""
    before = merged(level(WHOLE, device=CARD), level({"a": "f"}, apart=True, day=2, code="changed"))
    new = level({**WHOLE, "a": "p"}, day=3)
    new["sources"][f"a {KERNEL}"] = "changed"
    found = merged(before, new)
    assert rows(found) == {**WHOLE, "a": "p"}
    assert days(found) == {"": 1, "a": 3}
    assert found["device"] == CARD
    assert found["parts"]["a"]["device"] is None


def test_a_whole_exam_forgets_an_operator_that_is_gone() -> None:
    before = merged(level(WHOLE), level({"gone": "p"}, apart=True, device=CARD))
    found = merged(before, level(WHOLE, day=2))
    assert rows(found) == WHOLE
    assert "parts" not in found
    assert f"gone {KERNEL}" not in found["sources"]

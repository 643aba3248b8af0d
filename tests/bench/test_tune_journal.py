# SPDX-License-Identifier: Apache-2.0
"""The journal of `archkey tune`: what was written is found again, whatever happened after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from archkey.bench.results import Timing
from archkey.bench.tune.journal import Journal
from archkey.bench.tune.search import Outcome
from archkey.errors import RecordError

ENTRIES = [
    (
        {"sample": "one", "values": {"tile": 1}},
        Outcome("timed", timing=Timing(1, 1, 2, 9, "graph")),
    ),
    ({"sample": "one", "values": {"tile": 2}}, Outcome("wrong", "out: 1 > 0")),
    ({"sample": "zwölf", "values": {"tile": 2}}, Outcome("failed", "Error: a\nlong\rone")),
]


def filled(path: Path) -> Journal:
    journal = Journal(path)
    for key, outcome in ENTRIES:
        journal.add(key, outcome)
    return journal


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    assert filled(path).added == 3
    journal = Journal(path)
    assert [journal.get(key) for key, _ in ENTRIES] == [outcome for _, outcome in ENTRIES]
    assert (journal.added, journal.reused) == (0, 3)
    assert journal.get({"values": {"tile": 1}, "sample": "one"}) == ENTRIES[0][1], "any order"
    assert journal.get({"sample": "two", "values": {"tile": 1}}) is None


def test_a_kill_at_any_byte_loses_at_most_the_line_it_hit(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    whole = path.read_bytes()
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    new = ({"sample": "new"}, Outcome("failed", "x"))
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        # A line that lacks nothing but its end counts as well.
        complete = sum(size >= end for end in ends)
        journal = Journal(path)
        found = [journal.get(key) for key, _ in ENTRIES]
        assert found == [o for _, o in ENTRIES[:complete]] + [None] * (3 - complete), size
        journal.add(*new)
        again = Journal(path)
        assert again.get(new[0]) == new[1], size
        assert [again.get(key) for key, _ in ENTRIES] == found, size


def test_the_later_of_two_counts_and_fresh_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    key, later = ENTRIES[0][0], Outcome("failed", "later")
    fresh = Journal(path, fresh=True)
    assert fresh.get(key) is None
    fresh.add(key, later)
    assert Journal(path).get(key) == later
    assert Journal(path).get(ENTRIES[1][0]) == ENTRIES[1][1], "the others stay in the file"


def test_lines_of_something_else_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('[]\n{"key": {"a": 1}, "status": "timed", "reason": ""}\n7\n\n')
    assert Journal(path).get({"a": 1}) is None, "timed without a time"


def test_a_journal_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "file" / "journal.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="name another file with --journal"):
        journal.add(*ENTRIES[0])
    with pytest.raises(RecordError, match="cannot be read"):
        Journal(journal.path)

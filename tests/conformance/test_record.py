# SPDX-License-Identifier: Apache-2.0
"""Evidence: written whole, read with care, and believed only for the code it is about."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import archkey
from archkey.conformance import evidence, record
from archkey.conformance.levels import Item, Level, Outcome
from archkey.conformance.record import block, new, read, standing, write
from archkey.conformance.sources import digest
from archkey.errors import RecordError

KEY = ("rmsnorm", "cuda_sm90:triton")


def outcome(result: str, case: str = "a", error: float | None = 1e-3, **more: Any) -> Outcome:
    return Outcome(Item("device", *KEY, case), result, error, 4e-3, **more)


def level(*outcomes: Outcome, complete: bool = True, code: str = "code") -> dict[str, Any]:
    return block(
        outcomes,
        complete=complete,
        date="2026-01-02",
        device={"name": "Toy"},
        versions={"triton": "3.6.0"},
        sources={" ".join(KEY): code},
    )


def document(**levels: Any) -> dict[str, Any]:
    return {**new("cuda_sm90"), "levels": levels}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "evidence.json"
    rows = [outcome("passed"), outcome("failed", "b", float("inf"), reason='a "quoted"\nline')]
    written = document(device=level(*rows), compiled=level(outcome("skipped", error=None)))
    write(path, written)
    assert read(path) == json.loads(path.read_text()) == json.loads(json.dumps(written))
    assert [Outcome.from_json("device", r) for r in written["levels"]["device"]["cases"]] == rows
    assert [p.name for p in path.parent.iterdir()] == ["evidence.json"]


def test_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "evidence.json") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no evidence record"),
        ('{"format": 1}', "is no evidence record"),
        ("[1, 2]", "is no evidence record"),
        ('{"format": 1, "target": "x", "levels": {"device": {"cases": [3]}}}', "no evidence"),
        (
            '{"format": 1, "target": "x", "levels": {"device": {"cases": [], "parts": {"a": {}}}}}',
            "no evidence record .KeyError: 'complete'",
        ),
        ('{"format": 7, "target": "x", "levels": {}}', "format 7, this archkey reads 1"),
    ],
)
def test_what_is_no_record_of_ours_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=told) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "archkey check" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        write(tmp_path / "file" / "evidence.json", document())


def test_keeping_a_level_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    evidence.keep(path, "cuda_sm90", {"device": level(outcome("passed"))})
    evidence.keep(path, "cuda_sm90", {"contract": level(outcome("failed"))})
    found = read(path)
    assert found is not None
    assert list(found["levels"]) == ["contract", "device"]
    with pytest.raises(RecordError, match="is the record of cuda_sm90, not of cpu"):
        evidence.keep(path, "cpu", {})


def test_what_could_not_run_now_does_not_undo_what_was_run(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    idle = level(outcome("skipped", error=None))
    evidence.keep(path, "cuda_sm90", {"device": idle})
    evidence.keep(path, "cuda_sm90", {"device": level(outcome("passed"))})
    evidence.keep(path, "cuda_sm90", {"device": idle})
    found = read(path)
    assert found is not None
    assert found["levels"]["device"]["passed"] == 1
    evidence.keep(path, "cuda_sm90", {"device": level(outcome("failed"))})
    found = read(path)
    assert found is not None
    assert found["levels"]["device"]["failed"] == 1


def test_two_exams_may_end_at_once(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    rows = [outcome("passed", f"case {n}") for n in range(500)]
    threads = [
        threading.Thread(target=evidence.keep, args=(path, "cuda_sm90", {name: level(*rows)}))
        for name in ("contract", "compiled", "interpreted", "device")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(path)
    assert found is not None
    assert len(found["levels"]) == 4


@pytest.mark.parametrize(
    ("rows", "complete", "code", "holds"),
    [
        ((outcome("passed"),), True, "code", True),
        ((outcome("passed"), outcome("skipped", "b")), True, "code", True),
        ((outcome("skipped"),), True, "code", False),
        ((outcome("passed"), outcome("failed", "b")), True, "code", False),
        ((outcome("passed"),), False, "code", False),
        ((outcome("passed"),), True, "other code", False),
    ],
)
def test_a_level_holds_if_something_passed_and_nothing_speaks_against_it(
    rows: tuple[Outcome, ...], complete: bool, code: str, holds: bool
) -> None:
    found = standing(document(device=level(*rows, complete=complete, code=code)), *KEY, "code")
    assert found[Level.DEVICE].holds is holds
    assert bool(evidence.highest(found)) is holds


def test_the_worst_case_is_the_closest_to_its_limit() -> None:
    rows = [outcome("passed", "near", 3e-3), outcome("passed", "far", 1e-5)]
    found = standing(document(device=level(*rows)), *KEY, "code")[Level.DEVICE]
    assert found.worst is not None
    assert found.worst.item.case == "near"


def test_the_highest_level_is_the_last_that_holds() -> None:
    good, bad = level(outcome("passed")), level(outcome("failed"))
    found = standing(document(contract=good, compiled=good, device=bad), *KEY, "code")
    best = evidence.highest(found)
    assert best is not None
    assert best.level is Level.COMPILED


def test_accuracy_is_no_step_of_the_ladder() -> None:
    """It says how well, not where: it neither raises the level nor, failed, lowers it."""
    good, bad = level(outcome("passed")), level(outcome("failed"))
    for accuracy in (good, bad):
        found = standing(document(compiled=good, accuracy=accuracy), *KEY, "code")
        best = evidence.highest(found)
        assert best is not None
        assert best.level is Level.COMPILED
        assert found[Level.ACCURACY].holds is (accuracy is good)
    assert evidence.highest(standing(document(accuracy=good), *KEY, "code")) is None


def test_a_laptop_does_not_undo_a_cards_accuracy(tmp_path: Path) -> None:
    """Not of the same code; what has changed is another matter."""
    path = tmp_path / "evidence.json"
    card, away = level(outcome("passed")) | {"device": {"name": "H200"}}, {"device": None}
    evidence.keep(path, "cuda_sm90", {"accuracy": card})
    evidence.keep(path, "cuda_sm90", {"accuracy": level(outcome("passed")) | away})
    found = read(path)
    assert found is not None
    assert found["levels"]["accuracy"]["device"] == {"name": "H200"}
    evidence.keep(path, "cuda_sm90", {"accuracy": level(outcome("passed"), code="changed") | away})
    found = read(path)
    assert found is not None
    assert not found["levels"]["accuracy"].get("device")


def test_another_kernel_has_no_standing() -> None:
    assert standing(document(device=level(outcome("passed"))), "rmsnorm", "x:y", "code") == {}


def test_a_users_record_counts_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: Any
) -> None:
    environ(ARCHKEY_DATA_DIR=str(tmp_path))
    session = archkey.open("cuda_sm90")
    kernel = session.kernels("rmsnorm")[0]
    code = digest(kernel, session.operators["rmsnorm"])
    path = evidence.own_path("cuda_sm90")
    assert path.is_relative_to(tmp_path)
    evidence.keep(path, "cuda_sm90", {"device": level(outcome("passed"), code=code)})
    found = evidence.standings(session, kernel, evidence.records(session))
    assert found[Level.DEVICE].holds

    monkeypatch.setattr(evidence, "digest", lambda *_: "changed")
    found = evidence.standings(session, kernel, evidence.records(session))
    assert not found[Level.DEVICE].holds
    assert found[Level.DEVICE].stale == "its code has changed since"


def test_the_record_of_another_target_is_not_read(tmp_path: Path, environ: Any) -> None:
    environ(ARCHKEY_DATA_DIR=str(tmp_path))
    write(evidence.own_path("cuda_sm90"), {**new("rocm_gfx942"), "levels": {}})
    paths = [path for path, _ in evidence.records(archkey.open("cuda_sm90"))]
    assert evidence.own_path("cuda_sm90") not in paths


def test_counts_are_those_of_the_cases() -> None:
    made = record.block(
        [outcome("passed"), outcome("passed", "b"), outcome("skipped", "c")],
        complete=True,
        date="2026-01-02",
        device=None,
        versions={},
        sources={},
    )
    assert (made["passed"], made["failed"], made["skipped"]) == (2, 0, 1)

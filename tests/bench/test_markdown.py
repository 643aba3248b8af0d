# SPDX-License-Identifier: Apache-2.0
"""The table of the README: every cell comes from the document, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench._documents import document, one, timed, timing, untimed, workload
from tests.packaging import readme_coverage, readme_performance

from archkey.bench.markdown import performance
from archkey.bench.results import OURS, STATUSES
from archkey.errors import RecordError


def cells(text: str) -> list[list[str]]:
    """The rows of the table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_says_ours_its_bound_and_the_best_peer() -> None:
    found = document(
        workload(
            timed(OURS, 25.0, kernel="cuda_sm90:triton", of_bound=0.734),
            timed("flashinfer:fa3", 50.0),
            timed("fla", 51.0),
            untimed("vllm", "wrong"),
        )
    )
    (row,) = cells(performance(found))
    assert row == [
        *("`rmsnorm`", "DeepSeek-V3 TP1, t64", "triton", "25.0", "73 %"),
        *("FlashInfer fa3", "50.0", "2.00×"),
    ]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([timed(OURS, 1234.5, kernel="cpu:torch", degraded=True)], ["torch*", "1,234", "50 %"]),
        ([timed(OURS, 9.0, kernel="cuda_sm90.acme:wide")], ["cuda_sm90.acme:wide", "9.00", "50 %"]),
        ([timed(OURS, 9.0, kernel="a:b", of_bound=None)], ["a:b", "9.00", "–"]),
        ([untimed(OURS, "wrong")], ["**wrong**", "–", "–"]),
        ([untimed(OURS, "failed")], ["**failed**", "–", "–"]),
        ([], ["not measured", "–", "–"]),
    ],
)
def test_ours_where_there_is_no_peer(entries: list[dict[str, Any]], expected: list[str]) -> None:
    text = performance(document(workload(*entries)))
    (row,) = cells(text)
    assert row[2:] == [*expected, "none", "–", "–"]
    assert ("last resort" in text) == (expected[0] == "torch*")


def test_a_peer_beside_ours_without_a_time_has_no_ratio() -> None:
    found = document(workload(untimed(OURS, "wrong"), timed("fla", timing(9, method="events"))))
    text = performance(found)
    (row,) = cells(text)
    assert row[5:] == ["fla (events)", "9.00", "–"] and "launched one by one" in text


def test_only_the_quick_ones_unless_all_are_asked_for() -> None:
    rows = (timed(OURS, 9.0),)
    found = document(workload(*rows, name="a"), workload(*rows, name="b", quick=False))
    assert [row[1] for row in cells(performance(found))] == ["DeepSeek-V3 TP1, a"]
    assert len(cells(performance(found, quick=False))) == 2
    assert "again: `archkey bench --quick`" in performance(found)
    assert "No workload of the short run" in performance(document())


def test_where_the_numbers_come_from_is_said() -> None:
    text = performance(one())
    assert text.startswith("**NVIDIA H200** (`cuda_sm90`)\n")
    for said in (
        "- 2026-11-21, archkey 0.1.0, torch 2.11.0+cu130, triton 3.6.0, driver 580.159.04",
        "- peers: FlashInfer (flashinfer-python 0.7.2.post1)",
        "copy 4.28 TB/s, bfloat16 777 TFLOP/s",
        "- medians of 30 samples",
    ):
        assert said in text
    assert "cut off" not in text and "cut off" in performance({**one(), "complete": False})
    peers = [{"name": "fla", "state": "not installed", "versions": {}}]
    assert "peers: none was installed" in performance({**one(), "peers": peers})


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([OURS, "fla", "x:y"]), st.sampled_from(STATUSES))))
def test_whatever_became_of_them_the_table_is_whole(found: list[tuple[str, str]]) -> None:
    rows = [timed(n, 3.0) if s == "timed" else untimed(n, s) for n, s in dict(found).items()]
    text = performance(document(workload(*rows, title="a | b", bound_us=None)))
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9} and len(lines) == 3


def results(root: Path, target: str, name: str, found: dict[str, Any]) -> None:
    folder = root / "plugins" / target / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found))


def test_the_readme_says_plainly_that_there_is_nothing(tmp_path: Path) -> None:
    assert readme_performance.block(tmp_path) == f"{readme_performance.NONE}\n"


def test_the_readme_has_the_newest_of_each_card(tmp_path: Path) -> None:
    b200 = one()
    b200["machine"]["device"].update(name="NVIDIA B200", target="cuda_sm100")
    results(tmp_path, "cuda_sm90", "a", {**one(12.0), "started": "2026-11-22T00:00:00Z"})
    results(tmp_path, "cuda_sm90", "b", one(13.0))
    results(tmp_path, "cuda_sm100", "a", b200)
    text = readme_performance.block(tmp_path)
    assert [line for line in text.splitlines() if line.startswith("**")] == [
        "**NVIDIA B200** (`cuda_sm100`)",
        "**NVIDIA H200** (`cuda_sm90`)",
    ]
    assert [row[3] for row in cells(text) if row[0] == "`rmsnorm`"] == ["100", "12.0"]


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    results(tmp_path, "cuda_sm90", "a", {"format": 1})
    with pytest.raises(RecordError, match="a.json"):
        readme_performance.block(tmp_path)


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="performance"):
        readme_coverage.split("# archkey", readme_performance.BEGIN, readme_performance.END)

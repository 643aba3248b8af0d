# SPDX-License-Identifier: Apache-2.0
"""A bench run on the CPU: who gets a time, what becomes of the others, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.bench import _small

from archkey._process import Ended
from archkey.bench import results, run
from archkey.bench.asked import Asked, guests, kernels
from archkey.bench.asker import Asker, Terms
from archkey.bench.document import new
from archkey.bench.measure import Bench
from archkey.bench.peers import PEERS as SHIPPED
from archkey.bench.workload import workloads_of
from archkey.errors import ArchkeyError
from archkey.locate import find_device
from archkey.ops import OPERATORS
from archkey.session import open as open_session

TERMS = Terms("cpu", samples=5, seconds=0.05, seed=3)


@pytest.fixture
def bench(small: None) -> Bench:
    return Bench(find_device("cpu"), seed=3, samples=5, seconds=0.05)


def test_ours_is_judged_and_timed(bench: Bench) -> None:
    entry = bench.entry("rmsnorm", "small-tp1-t7", "archkey")
    assert (entry.status, entry.kernel) == ("timed", "cpu:torch")
    assert entry.error is not None and 0 < entry.error <= 4e-3
    timing = entry.timing
    assert timing is not None and timing.method == "host"
    assert 0 < timing.low <= timing.us <= timing.high and 3 <= timing.samples <= 5


def test_an_operator_in_place_is_judged_on_its_first_call(bench: Bench) -> None:
    for entrant in ("archkey", "made-up"):
        entry = bench.entry("fused_add_rmsnorm", "small-tp2-t5", entrant)
        assert entry.status == "timed", entry


@pytest.mark.parametrize(
    ("route", "status", "reason"),
    [
        ("right", "timed", ""),
        ("coarse", "timed", ""),
        ("wrong", "wrong", "out is off by"),
        ("nameless", "wrong", "none is off"),
        ("refusing", "not served", "64 tokens at most"),
        ("raising", "failed", "illegal memory access"),
    ],
)
def test_what_is_not_right_gets_no_time(bench: Bench, route: str, status: str, reason: str) -> None:
    entry = bench.entry("rmsnorm", "small-tp1-t7", f"made-up:{route}")
    assert entry.status == status and reason in entry.reason
    assert (entry.timing is not None) == (status == "timed")


def test_a_kernel_of_ours_is_held_to_the_exam_and_a_peer_to_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coarse peer is 1 % off: right for a peer, wrong for us."""
    assert bench.entry("rmsnorm", "small-tp1-t7", "made-up:coarse").status == "timed"
    coarse = lambda session, operator, inputs: _small.coarse(inputs)  # noqa: E731 - a stand-in
    monkeypatch.setattr("archkey.bench.measure._bind_ours", coarse)
    entry = bench.entry("rmsnorm", "small-tp1-t7", "archkey")
    assert entry.status == "wrong" and entry.timing is None


def test_another_kernel_by_name(bench: Bench) -> None:
    entry = bench.entry("rmsnorm", "small-tp1-t7", "archkey:torch")
    assert (entry.status, entry.kernel) == ("timed", "cpu:torch")


def test_head_says_cost_problem_and_decision(bench: Bench) -> None:
    head = bench.head("rmsnorm", "small-tp1-t64")
    assert head["bytes"] == 2 * 64 * 256 * 2 + 256 * 2
    assert head["problem"].startswith("RmsNormProblem(") and "256" in head["problem"]
    assert head["decision"]["chosen"] == "cpu:torch" and "cpu:torch" in head["explained"]


def test_a_whole_run(asker: Asker) -> None:
    document = new(TERMS, {})
    chosen = _small.WORKLOADS
    steps = list(run.run(document, asker, chosen, {"rmsnorm": ["torch"]}, Asked()))
    assert len(steps) == run.steps(chosen, {"rmsnorm": ["torch"]}, Asked())
    assert document["complete"]
    found = {(w["name"], e.entrant): e for w, e in results.entries(document)}
    assert len(found) == 3 * (2 + len(_small._ROUTES) + 2) + 2
    # One that kills its process or hangs costs itself and nothing else.
    assert "SIGABRT" in found["small-tp1-t7", "made-up:dying"].reason
    assert "no end after 1 s" in found["small-tp1-t7", "made-up:hanging"].reason
    assert found["small-tp1-t64", "made-up:right"].status == "timed"
    absent, broken = (found["small-tp1-t7", name] for name in ("absent", "broken"))
    assert absent.status == "not installed" and "pip install no-such-package" in absent.reason
    assert broken.status == "failed" and "ModuleNotFoundError" in broken.reason
    states = {row["name"]: row["state"] for row in document["peers"]}
    assert states == {"made-up": "installed", "absent": "not installed", "broken": "broken"}
    for row in document["ceilings"]:
        assert row["start"] > 0 and row["end"] > 0
    copy = next(row["start"] for row in document["ceilings"] if row["name"] == "copy")
    for workload, entry in results.entries(document):
        assert workload["bound_us"] == pytest.approx(workload["bytes"] / copy * 1e6)
        if entry.timing:
            assert entry.gbs == pytest.approx(workload["bytes"] / entry.timing.us / 1e3)
            assert entry.of_bound == pytest.approx(workload["bound_us"] / entry.timing.us)
            assert entry.tflops is None, "no matrix product in it"


def test_an_interrupted_run_keeps_what_it_has(asker: Asker, tmp_path: Path) -> None:
    document, path = new(TERMS, {}), tmp_path / "run.json"
    asked = Asked(["made-up:right"])
    for name in run.run(document, asker, _small.WORKLOADS[:1], {}, asked):
        results.write(path, document)
        if name.endswith("made-up:right"):
            break
    found = results.read(path)
    assert not found["complete"]
    assert [entry.entrant for _, entry in results.entries(found)] == ["archkey"]


class Overheard:
    """An asker that has no answers, and keeps where it was asked of which entrant."""

    def __init__(self) -> None:
        self.peers_too: dict[str, bool] = {}

    def ask(self, what: str, *, peers_too: bool = False, **question: Any) -> dict[str, Any]:
        if what == "entry":
            self.peers_too[question["entrant"]] = peers_too
        raise Ended("no answer")


def test_a_kernel_of_ours_that_imports_a_library_is_measured_where_peers_are() -> None:
    asker, (workload, *_) = Overheard(), workloads_of(OPERATORS["sparse_mla_decode"])
    session = open_session("cuda_sm90")
    names = ["cuda_sm90:flash_mla", "torch"]
    more = kernels(session, names, [workload.operator])
    apart = guests(session, more)
    list(run.run(new(TERMS, {}), asker, [workload], more, Asked(()), apart))  # type: ignore[arg-type]
    ours = {"archkey": False, "archkey:cuda_sm90:flash_mla": True, "archkey:torch": False}
    assert asker.peers_too == ours


def test_a_question_that_is_wrong_is_an_error(asker: Asker) -> None:
    with pytest.raises(ArchkeyError, match="no workload of rmsnorm .*nearest|no-such"):
        asker.ask("entry", operator="rmsnorm", workload="no-such", entrant="archkey")
    assert asker.ask("standing", peer="made-up")["standing"]["state"] == "installed"


def test_the_process_is_started_again(asker: Asker) -> None:
    question = {"operator": "rmsnorm", "workload": "small-tp1-t7"}
    with pytest.raises(Ended, match="SIGABRT"):
        asker.ask("entry", **question, entrant="made-up:dying")
    assert asker.ask("entry", **question, entrant="archkey")["entry"]["status"] == "timed"


def test_checks_of_a_peer_use_small_inputs(bench: Bench) -> None:
    rows = list(bench.check("made-up:right", "rmsnorm"))
    assert {row["status"] for row in rows} == {"passed"}
    rows = list(bench.check("made-up:wrong", "rmsnorm"))
    assert "wrong" in {row["status"] for row in rows}


def test_entries_survive_json(bench: Bench, tmp_path: Path) -> None:
    document: dict[str, Any] = {**new(TERMS, {}), "workloads": []}
    found = [bench.entry("rmsnorm", "small-tp1-t7", e) for e in ("archkey", "made-up:wrong")]
    head = bench.head("rmsnorm", "small-tp1-t7")
    document["workloads"] = [{**head, "entries": [entry.to_json() for entry in found]}]
    results.write(tmp_path / "x.json", document)
    read = results.read(tmp_path / "x.json")
    assert [entry for _, entry in results.entries(read)] == found


@pytest.mark.parametrize(
    ("asked", "has"),
    [
        (Asked(), True),
        (Asked(["made-up"]), True),
        (Asked(["made-up:right"]), True),
        (Asked(["made-up:wrong"]), False),
        (Asked(()), False),
        (Asked(without=["made-up"]), False),
        (Asked(["made-up"], ["made-up:right"]), False),
        (Asked(without=["made-up:wrong"]), True),
    ],
    ids=repr,
)
def test_who_was_asked(asked: Asked, has: bool) -> None:
    assert asked.has("made-up", "made-up:right") is has


@pytest.mark.parametrize("asked", [Asked(), Asked(("made-up",), ("absent",)), Asked(())], ids=repr)
def test_a_document_in_memory_is_what_will_be_read(asked: Asked, tmp_path: Path) -> None:
    document = new(TERMS, asked.to_json())
    results.write(tmp_path / "x.json", document)
    assert results.read(tmp_path / "x.json") == document


def test_names_of_entrants_are_unique() -> None:
    names = [(r.operator, p.entrant(r)) for p in SHIPPED for r in p.routes]
    assert len(names) == len(set(names))
    for name in {peer.name for peer in SHIPPED}:
        assert name != results.OURS and ":" not in name

# SPDX-License-Identifier: Apache-2.0
"""`archkey check`: what it asks, prints, writes, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.conformance._processes import left_behind
from tests.core._fakes import World, hook, kernels

from archkey import locate
from archkey.cli import cli
from archkey.conformance import exam, pool, record, worker
from archkey.conformance.contract import FUNCTION
from archkey.conformance.examine import CAPABILITIES
from archkey.conformance.levels import ALL, Item, Level, Outcome
from archkey.conformance.worker import open_for
from archkey.errors import PluginError, UnknownName
from archkey.ops import OPERATORS
from archkey.probe import Device, Probe
from archkey.target import Target

FAST = ("--operator", "merge_attn_states", "--examples", "2", "--jobs", "1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, environ: Any) -> Path:
    environ(ARCHKEY_DATA_DIR=str(tmp_path))
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments], prog_name="archkey")


def answered(target: str, level: Level, items: Any, terms: Any) -> Any:
    """Stands in for the pool: all pass at once."""
    for item in items:
        yield Outcome(item, "passed")


def test_the_document(own_folder: Path) -> None:
    result = check("cpu", "--json", "--level", "contract", "--level", "device", *FAST)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["target"] == "cpu"
    assert list(document["levels"]) == ["contract", "device"]
    for level in document["levels"].values():
        counts = [sum(r["outcome"] == key for r in level["cases"]) for key in COUNTS]
        assert counts == [level[key] for key in COUNTS]
        assert level["versions"]["torch"]
    device = document["levels"]["device"]["cases"]
    names = {"operator", "kernel", "case", "outcome", "error", "tolerance", "reason"}
    assert all(names <= set(row) for row in device)
    assert all(0 <= row["error"] <= row["tolerance"] for row in device if row["error"] is not None)
    kept = record.read(own_folder / "evidence" / "cpu.json")
    assert kept == document, "what is printed is the record"
    for level in document["levels"].values():
        assert list(level["parts"]) == ["merge_attn_states"]
        assert list(level["sources"]) == ["merge_attn_states cpu:torch"]


COUNTS = ("passed", "failed", "skipped")


def test_accuracy_is_shown_and_kept_with_its_statistics(own_folder: Path) -> None:
    """Where it ran, the worst of each count in a table, all of them in the document."""
    options = ("--level", "accuracy", "--operator", "dequantize_sparse_kv", "--jobs", "1")
    result = check("cpu", *options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "dequantize_sparse_kv cpu:torch, on: device" in shown
    assert "noise of out" in shown
    assert "bias of out" in shown
    document = json.loads(check("cpu", "--json", *options).stdout)
    rows = document["levels"]["accuracy"]["cases"]
    assert rows
    for row in rows:
        assert row["details"]["ran on"] == "device"
        counts = {(one["name"], one["over"]) for one in row["details"]["statistics"]}
        assert {("noise", "row"), ("bias", "window"), ("bias", "columns")} <= counts
        assert all(one["value"] <= one["limit"] for one in row["details"]["statistics"])


def test_accuracy_runs_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card all sizes; without one what an interpreter has time for, and torch more."""
    cpu, _ = exam.questions(exam.find("cpu"), Level.ACCURACY, ["mla_decode"])
    items, rows = exam.questions(exam.find("cuda_sm90"), Level.ACCURACY, ["mla_decode"])
    full, _ = exam.questions(exam.find("cuda_sm90"), Level.ACCURACY, ["mla_decode"], full=True)
    assert {item.kernel for item in items} == {"cuda_sm90:triton"}
    assert {item.case for item in items} < {item.case for item in cpu}
    assert {item.case for item in cpu} < {item.case for item in full}
    reasons = {row.item.kernel: row.reason for row in rows}
    assert reasons["cpu:torch"] == "the torch reference itself: see `archkey check cpu`"
    assert worker.interprets("cuda_sm90", Level.ACCURACY)
    assert not worker.interprets("cpu", Level.ACCURACY)

    card = Device(Target.parse("cuda_sm90"), 0, "H200", "nvml")
    monkeypatch.setattr(locate, "probe", lambda pretend: Probe((card,), ()))
    assert not worker.interprets("cuda_sm90", Level.ACCURACY)
    assert worker.device_of("cuda_sm90", Level.ACCURACY) is card
    assert pool._on_card("cuda_sm90", Level.ACCURACY)
    _, rows = exam.questions(exam.find("cuda_sm90"), Level.ACCURACY, ["kda_gate"])
    assert {row.reason for row in rows} == {"kda_gate has no cases of accuracy"}


def test_a_whole_exam_is_recorded(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "answers", answered)
    result = check("rocm_gfx950", "--level", "contract")
    assert result.exit_code == 0, result.output
    path = own_folder / "evidence" / "rocm_gfx950.json"
    found = record.read(path)
    assert found is not None
    assert found["levels"]["contract"]["complete"]
    assert found["levels"]["contract"]["passed"] > 100
    assert found["levels"]["contract"]["sources"]["rmsnorm rocm_gfx950:triton"]
    assert str(path) in "".join(result.stdout.split("\n"))

    elsewhere = own_folder / "mine.json"
    assert check("rocm_gfx950", "--level", "contract", "--output", str(elsewhere)).exit_code == 0
    assert record.read(elsewhere) is not None


def test_an_exam_of_some_operators_renews_their_rows_alone(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All their kernels and what the public function promises; the capabilities stay."""
    monkeypatch.setattr(pool, "answers", answered)
    path = own_folder / "mine.json"
    options = ("cuda_sm90", "--level", "contract", "--output", str(path))
    assert check(*options).exit_code == 0
    whole = record.read(path)
    assert whole is not None
    assert "parts" not in whole["levels"]["contract"]

    def fails(target: str, level: Level, items: Any, terms: Any) -> Any:
        yield from (Outcome(item, "failed", reason="now") for item in items)

    monkeypatch.setattr(pool, "answers", fails)
    result = check(*options, "-o", "rmsnorm", "-o", "mla_decode", "-o", "rmsnorm")
    assert result.exit_code == 1
    assert "mine.json" in "".join(result.stdout.split())
    found = record.read(path)
    assert found is not None
    before, after = whole["levels"]["contract"], found["levels"]["contract"]
    assert set(after["parts"]) == {"rmsnorm", "mla_decode"}
    assert len(after["cases"]) == len(before["cases"])
    for old, new in zip(before["cases"], after["cases"], strict=True):
        mine = new["operator"] in after["parts"] and old["outcome"] != "skipped"
        assert new == (old | {"outcome": "failed", "reason": "now"} if mine else old)
    failed = {row["kernel"] for row in after["cases"] if row["outcome"] == "failed"}
    assert failed >= {FUNCTION, "cuda_sm90:wgmma", "cuda_sm90:triton", "cpu:torch"}
    assert after["failed"] == sum(row["outcome"] == "failed" for row in after["cases"])
    assert after["passed"] == before["passed"] - after["failed"]
    assert any(row["operator"] == CAPABILITIES for row in after["cases"])
    assert after["sources"] == before["sources"]


def test_cut_off_it_leaves_complete_what_had_all_its_answers(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "answers", answered)
    assert check("cpu", "--level", "device").exit_code == 0
    names = ("kda_gate", "rmsnorm", "mla_decode")

    def cut(target: str, level: Level, items: Any, terms: Any) -> Any:
        """All of rmsnorm, one of kda_gate, none of mla_decode."""
        yield from (Outcome(item, "passed") for item in items if item.operator == "rmsnorm")
        yield next(Outcome(item, "passed") for item in items if item.operator == "kda_gate")
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "answers", cut)
    result = check("cpu", "--level", "device", *(part for name in names for part in ("-o", name)))
    assert result.exit_code == 130
    assert result.stdout.count("cut off") == 1
    found = record.read(own_folder / "evidence" / "cpu.json")
    assert found is not None
    level = found["levels"]["device"]
    assert level["complete"]
    parts = {name: part["complete"] for name, part in level["parts"].items()}
    assert parts == {"kda_gate": False, "rmsnorm": True}
    assert sum(row["operator"] == "kda_gate" for row in level["cases"]) == 1
    assert sum(row["operator"] == "mla_decode" for row in level["cases"]) > 1


def test_a_failure_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(target: str, level: Level, items: Any, terms: Any) -> Any:
        yield from (Outcome(item, "failed", 0.5, 4e-3, reason="off by one") for item in items[:1])
        yield from (Outcome(item, "passed") for item in items[1:])

    monkeypatch.setattr(pool, "answers", fails)
    result = check("cpu", "--level", "contract", "--operator", "rmsnorm")
    assert result.exit_code == 1
    assert "5.0e-01 > 4.0e-03 off by one" in " ".join(result.stdout.split())


def test_a_row_that_was_fenced_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fenced(target: str, level: Level, items: Any, terms: Any) -> Any:
        said = "row 1, 8 warps, for every problem, needs triton!=3.6.0; found triton 3.6.0; crash"
        yield from (Outcome(item, "passed", details={"fenced": [said]}) for item in items)

    monkeypatch.setattr(pool, "answers", fenced)
    result = check("rocm_gfx950", "--level", "compiled", "--operator", "rmsnorm", "--jobs", "1")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    line = "- compiled: rmsnorm rocm_gfx950:triton, fenced off: row 1, 8 warps, for every problem"
    assert said.count(line) == 1, "of several examples one line"


def test_a_level_that_was_asked_for_and_not_run_is_not_passed() -> None:
    result = check("rocm_gfx950", "--level", "device", "--operator", "rmsnorm")
    assert result.exit_code == 1
    assert "level device was not run: no rocm_gfx950 on this machine" in result.stderr
    assert "0 passed, 0 failed" in result.stdout


def test_an_unreadable_record_is_said_before_the_work(own_folder: Path) -> None:
    path = own_folder / "evidence" / "cpu.json"
    path.parent.mkdir()
    path.write_text('{"format": 99, "levels": {}}')
    result = check("cpu")
    assert result.exit_code == 2
    assert "format 99" in result.stderr
    assert path.read_text() == '{"format": 99, "levels": {}}'


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cuda_sm9",), "did you mean"),
        (("cuda_sm90.nobody",), "unknown plugin 'cuda_sm90.nobody'; did you mean"),
        (("cuda_sm120",), "no plugin for cuda_sm120 is installed"),
        (("cpu", "--level", "emulate"), "did you mean 'emulated'"),
        (("cpu", "--operator", "rmsnorn"), "did you mean 'rmsnorm'"),
    ],
)
def test_bad_requests(arguments: tuple[str, ...], told: str) -> None:
    result = check(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr.replace("\n", " ")


def test_a_plugin_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.install("acme_x1", hook("return []", "archkey_capabilities"))
    with pytest.raises(PluginError, match="plugin acme_x1 has no kernels"):
        exam.find("acme_x1")


def test_a_broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.install("cpu.acme", "raise OSError('no driver')")
    with pytest.raises(PluginError, match=r"plugin cpu.acme is broken: OSError: no driver"):
        exam.find("cpu.acme")


def machine(simulated: bool) -> Probe:
    """One with an acme_x1 whose tensors are in host memory, or with a program for it."""
    card = Device(Target.parse("acme_x1"), 0, "X1", "acme", torch_type="cpu", simulated=simulated)
    return Probe((card, Device(Target("cpu", ""), 0, "host", "cpu")), ())


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulator_is_no_device(
    simulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on it is evidence of level emulated, and of that level alone."""
    world = World(tmp_path, monkeypatch)
    world.install("acme_x1", kernels('"rmsnorm", "torch", "archkey.reference.plugin:build"'))
    monkeypatch.setattr(locate, "probe", lambda pretend: machine(simulated))
    subject = exam.find("acme_x1")
    asked = {}
    for level in (Level.EMULATED, Level.DEVICE):
        items, rows = exam.questions(subject, level, ["rmsnorm"])
        asked[level] = bool(items)
        assert items or "on this machine" in rows[0].reason
        assert (open_for("acme_x1", level).device.source == "acme") is bool(items)
    assert asked == {Level.EMULATED: simulated, Level.DEVICE: not simulated}


def test_an_operator_whose_cases_are_broken_fails_alone() -> None:
    subject = exam.find("cpu")
    operator = replace(OPERATORS["rmsnorm"], cases="tests.no_such_module")
    subject.session.operators["rmsnorm"] = operator
    items, rows = exam.questions(subject, Level.DEVICE, ["rmsnorm", "kda_gate"])
    assert {item.operator for item in items} == {"kda_gate"}
    (row,) = rows
    assert row.outcome == "failed"
    assert "cases of rmsnorm (tests.no_such_module) cannot be loaded" in row.reason


def test_what_cannot_be_run_has_a_reason() -> None:
    subject = exam.find("cuda_sm100")
    items, rows = exam.questions(subject, Level.DEVICE)
    assert not items
    assert {row.reason for row in rows} == {"no cuda_sm100 on this machine"}
    assert {row.outcome for row in rows} == {"skipped"}
    assert {row.item.case for row in rows} == {ALL}
    _, rows = exam.questions(subject, Level.INTERPRETED)
    reasons = {row.item.kernel: row.reason for row in rows}
    assert reasons == {"cpu:torch": "the torch reference itself: see `archkey check cpu`"}


def test_every_kernel_of_the_target_is_asked_at_every_level() -> None:
    subject = exam.find("cuda_sm90")
    for level in Level:
        items, rows = exam.questions(subject, level)
        asked = {(i.operator, i.kernel) for i in [*items, *(row.item for row in rows)]}
        for name in subject.session.operators:
            for kernel in subject.session.kernels(name):
                assert (name, kernel.id) in asked


def test_a_worker_that_cannot_start_is_an_answer(environ: Any) -> None:
    worker = pool.Worker("cuda_sm9000", Level.DEVICE, pool.Terms(1, 60.0, 1, 0))
    outcome = worker.ask(Item("device", "rmsnorm", "cpu:torch", "x"))
    worker.close()
    assert outcome.outcome == "failed"
    assert "exit code 1" in outcome.reason
    assert "cuda_sm9000" in outcome.reason


def test_an_unknown_case_is_a_failure() -> None:
    worker = pool.Worker("cpu", Level.DEVICE, pool.Terms(1, 60.0, 1, 0))
    outcome = worker.ask(Item("device", "rmsnorm", "cpu:torch", "no such case"))
    worker.close()
    assert outcome.outcome == "failed"
    assert UnknownName.__name__ in outcome.reason


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_exam_keeps_what_was_done(own_folder: Path, how: signal.Signals) -> None:
    """The record has what was answered, marked as incomplete; nobody is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "archkey", "check", "cpu", "--level", "device", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[5/"):
            break
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    found = record.read(own_folder / "evidence" / "cpu.json")
    assert found is not None
    level = found["levels"]["device"]
    assert not level["complete"]
    assert level["passed"] >= 4
    assert not left_behind(own_folder)


def test_pytest_runs_the_same_exam(tmp_path: Path) -> None:
    options = ("--archkey", "cpu", "--archkey-operator", "merge_attn_states")
    levels = ("--archkey-level", "contract", "--archkey-level", "emulated")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("--pyargs", "archkey.conformance", *options, *levels),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "15 passed, 1 skipped" in done.stdout

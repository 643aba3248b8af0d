# SPDX-License-Identifier: Apache-2.0
"""Launches that are kept and run again: the emulator stands in for the card here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.emulation.ptx_machine import text

from archkey.conformance.emulation.captured import recording, rounding
from archkey.conformance.emulation.captured.__main__ import main
from archkey.conformance.emulation.captured.archive import Archive, Launch
from archkey.conformance.emulation.captured.comparing import compare_all
from archkey.conformance.emulation.captured.recorder import Bounds, Keeper
from archkey.conformance.emulation.captured.replay import OUTSIDE, Difference, compare
from archkey.conformance.emulation.counters import counting
from archkey.conformance.emulation.device import emulated
from archkey.conformance.emulation.ptx.launcher import launcher
from archkey.conformance.levels import Item
from archkey.errors import RecordError

TWICE = (
    *("add.s64 %rd10, %rd0, %rd9;", "add.s64 %rd11, %rd1, %rd9;"),
    *("ld.global.b32 %r50, [%rd10];", "add.f32 %r51, %r50, %r50;"),
    "st.global.b32 [%rd11], %r51;",
)


ABOUT = {"target": "cuda_sm90", "device": {}, "date": "", "versions": {}, "sources": {}}


def _compiled() -> Any:
    return SimpleNamespace(
        program=SimpleNamespace(
            signature={"x": "*fp32", "out": "*fp32"}, body=SimpleNamespace(__name__="twice")
        ),
        kernel=SimpleNamespace(asm={"ptx": text(TWICE, 2)}, metadata=SimpleNamespace()),
        shared_memory_bytes=0,
    )


def _keeper(path: Path, bounds: Bounds = Bounds()) -> Keeper:  # noqa: B008
    keeper = Keeper(Archive.create(path, ABOUT), bounds)
    keeper.begin("twice cuda_sm90:triton", "128 elements")
    return keeper


def _launch(keeper: Keeper, x: torch.Tensor, out: torch.Tensor, grid: int = 1) -> None:
    compiled = _compiled()
    keeper.launching(launcher(compiled), compiled)((grid, 1, 1), x, out)


def _read(path: Path) -> list[Launch]:
    archive = Archive(path)
    return [archive.launch(kept.at) for kept in archive.read()[1]]


def test_the_same_launch_again(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    x, out = torch.randn(130)[1:129], torch.zeros(128)
    with counting() as counters:
        _launch(keeper, x, out)
    assert torch.equal(out, 2 * x)
    assert (counters.loaded, counters.stored) == (512, 512)
    assert counters.instructions["global"] == 8
    assert keeper.kept == ["twice"]
    (one,) = _read(tmp_path / "kept")
    assert one.arguments["x"][1:] == (4, torch.float32, (128,), (1,))
    assert torch.equal(one.after[one.arguments["out"].storage].view(torch.float32), out)
    assert one.after[0] is one.before[0]
    assert compare(one) == [Difference("out", "float32", 128, 0, 0.0, 0.0, 0.0)]


def test_a_card_that_wrote_something_else(tmp_path: Path) -> None:
    _launch(_keeper(tmp_path / "kept"), torch.ones(128), torch.zeros(128))
    (one,) = _read(tmp_path / "kept")
    one.after[1].view(torch.float32)[5] = 3.0
    (other,) = compare(one)
    assert (other.argument, other.elements, other.differing) == ("out", 128, 1)
    assert other.row == pytest.approx(1 / 3)
    assert other.last == 2.0**22  # of 3
    assert not other.explained
    one.after[1].view(torch.float32)[5] = 2.0 + 2.0**-22
    (other,) = compare(one)
    assert (other.last, other.explained) == (1.0, True)
    one.after[1].view(torch.float32)[5] = math.nan
    assert [other.share for other in compare(one)] == [math.inf]


def test_a_byte_outside_of_every_tensor(tmp_path: Path) -> None:
    _launch(_keeper(tmp_path / "kept"), torch.ones(128), torch.zeros(256)[:128])
    (one,) = _read(tmp_path / "kept")
    one.after[1][600] = 1
    out, outside = compare(one)
    assert (out.argument, out.differing) == ("out", 0)
    assert (outside.argument, outside.differing, outside.explained) == (OUTSIDE, 1, False)


def test_integers_are_equal(tmp_path: Path) -> None:
    _launch(_keeper(tmp_path / "kept"), torch.ones(128), torch.zeros(128).view(torch.int32))
    (one,) = _read(tmp_path / "kept")
    one.after[1][4] += 1
    assert [(d.dtype, d.differing, d.explained) for d in compare(one)] == [("int32", 1, False)]


MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 {{"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("add.f32 %r1, %r2, %r3;", "f32"),
        (MMA.format("bf16"), "bf16"),
        (MMA.format("tf32") + MMA.format("f16"), "tf32"),
        ("wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {", "e4m3"),
        (MMA.format("bf16") + MMA.format("e4m3"), "e4m3"),
    ],
)
def test_the_coarsest_rounding_of_a_program(text: str, name: str) -> None:
    assert rounding.rounding_of(text).name == name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_last_place(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 1.5, 2.0, 3.0, 1e-3, 1000.0, 0.0], dtype=dtype)
    following = values.view({4: torch.int32, 2: torch.int16}[dtype.itemsize]) + 1
    unit = following.view(dtype).double() - values.double()
    unit[-1] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert torch.equal(rounding.last_place(values.double(), dtype), unit)


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (Bounds(workgroups=0), "1 workgroups"),
        (Bounds(memory=1000), "0 MiB of tensors"),
        (Bounds(each=100), "KiB in the file"),
        (Bounds(file=100), "the file is full"),
    ],
)
def test_what_is_not_kept_says_why(tmp_path: Path, bounds: Bounds, why: str) -> None:
    keeper = _keeper(tmp_path / "kept", bounds)
    out = torch.zeros(128)
    _launch(keeper, torch.ones(128), out)
    assert bool((out == 2).all())  # it ran all the same
    assert not keeper.kept
    assert keeper.left["twice"].endswith(why)
    assert not _read(tmp_path / "kept")


def test_a_program_is_kept_once_a_case(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    for _ in range(2):
        _launch(keeper, torch.ones(128), torch.zeros(128))
    keeper.begin("twice cuda_sm90:triton", "others")
    _launch(keeper, torch.ones(128), torch.zeros(128))
    assert [one.case for one in _read(tmp_path / "kept")] == ["128 elements", "others"]


def test_a_tensor_without_elements_is_kept(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")

    def nothing(grid: tuple[int, int, int], *arguments: Any) -> None:
        pass

    run = keeper.launching(nothing, _compiled())
    run((1, 1, 1), torch.ones(8)[4:4], torch.empty(0))
    (one,) = _read(tmp_path / "kept")
    assert [len(storage) for storage in one.before] == [32, 0]
    assert [place.offset for place in one.arguments.values()] == [0, 0]


def test_a_launch_that_fails_leaves_what_was_kept(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    _launch(keeper, torch.ones(128), torch.zeros(128))

    def broken(grid: tuple[int, int, int], *arguments: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    keeper.begin("twice cuda_sm90:triton", "others")
    with pytest.raises(RuntimeError, match="illegal"):
        keeper.launching(broken, _compiled())((1, 1, 1), torch.ones(128), torch.zeros(128))
    assert [one.case for one in _read(tmp_path / "kept")] == ["128 elements"]


def test_a_sudden_end_costs_the_last_entry_alone(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    _launch(keeper, torch.ones(128), torch.zeros(128))
    whole = (tmp_path / "kept").read_bytes()
    keeper.begin("twice cuda_sm90:triton", "others")
    _launch(keeper, torch.ones(128), torch.zeros(128))
    (tmp_path / "kept").write_bytes((tmp_path / "kept").read_bytes()[:-3])
    assert len(_read(tmp_path / "kept")) == 1
    archive = Archive(tmp_path / "kept")
    archive.mend()
    assert (tmp_path / "kept").read_bytes() == whole
    again = Keeper(archive, Bounds())
    again.begin("twice cuda_sm90:triton", "others")
    _launch(again, torch.ones(128), torch.zeros(128))
    archive.finish({"kernels": {}})
    about, launches, end = Archive(tmp_path / "kept").read()
    assert (about["target"], len(launches), end["kernels"]) == ("cuda_sm90", 2, {})


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("something else, of some length")
    with pytest.raises(RecordError, match="no launches of this format"):
        Archive(tmp_path / "kept").read()


def test_kernels_take_turns_and_cases_come_from_all_over() -> None:
    items = [Item("emulated", "one", k, str(case)) for k in "ab" for case in range(5)]
    order = recording.spread(items)
    assert [(item.kernel, item.case) for item in order[:4]] == [
        *(("a", "0"), ("b", "0"), ("a", "4"), ("b", "4"))
    ]
    assert sorted(order) == sorted(items)


def test_cases_of_the_exam_in_a_process_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept"
    asked = ["record", "cuda_sm90", str(path), "--emulated", "--limit", "1"]
    asked += ["--seconds", "120", "-o", "merge_attn_states", "-o", "rmsnorm"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "rmsnorm cuda_sm90:triton: 1 launches of 1 cases" in said
    assert "rmsnorm cpu:torch: 0 launches" in said
    about, launches, end = Archive(path).read()
    assert about["device"]["simulated"]
    assert "rmsnorm cuda_sm90:triton" in about["sources"]
    assert len(launches) == 2
    assert end["kernels"]["rmsnorm cuda_sm90:triton"]["bodies"] == {"rmsnorm_body": 1}
    output = tmp_path / "compared.json"
    assert main(["compare", str(path), "--output", str(output)]) == 0
    assert "rmsnorm cuda_sm90:triton" in capsys.readouterr().out
    document = json.loads(output.read_text())
    row = document["kernels"]["rmsnorm cuda_sm90:triton"]
    assert (row["launches"], row["differing"], row["explained"]) == (1, 0, True)
    assert row["elements"]
    assert "ld.global.v4.b32" in document["instructions"]
    torch_row = document["kernels"]["rmsnorm cpu:torch"]
    assert torch_row["explained"] is None
    assert "no Triton body" in torch_row["reasons"][0]
    assert main(["compare", str(path), "--output", str(output), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["launches"] == document["launches"]
    assert not said.err  # all was known


def test_time_that_is_over_is_a_kernel_without_launches(tmp_path: Path) -> None:
    said: list[str] = []
    limits = recording.Limits(seconds=0.0)
    fates = recording.record(
        *("cuda_sm90", tmp_path / "kept", said.append),
        operators=("rmsnorm",),
        limits=limits,
        emulated=True,
    )
    assert fates["rmsnorm cuda_sm90:triton"].tried == 0
    assert Archive(tmp_path / "kept").read()[2]["kernels"]["rmsnorm cuda_sm90:triton"]["kept"] == 0


class Recorder:
    """Instead of the process: all cases pass, but those of `dies` by number of the question."""

    asked: list[str] = []
    dies: tuple[int, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        self.gone = False

    def ask(self, question: dict[str, str], timeout: float) -> Any:
        self.asked.append(question["case"])
        if len(self.asked) in self.dies:
            self.gone = True
            raise recording.Ended("its process ended by SIGSEGV")
        yield {"begin": "x"}
        said = {"outcome": "passed", "reason": "", "stuck": False}
        yield {**said, "kept": ["rmsnorm_body"], "left": {}}

    def close(self) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    made = type("Made", (Recorder,), {"asked": []})
    monkeypatch.setattr(recording, "Process", made)
    return made


def test_a_process_that_dies_costs_a_case(tmp_path: Path, recorder: type[Recorder]) -> None:
    recorder.dies = (1,)
    fates = recording.record(
        *("cuda_sm90", tmp_path / "kept", str),
        operators=("rmsnorm",),
        limits=recording.Limits(cases=2),
        emulated=True,
    )
    fate = fates["rmsnorm cuda_sm90:triton"]
    assert (fate.tried, fate.kept) == (3, 2)
    assert fate.reasons == {"failed: its process ended by SIGSEGV": 1}


def test_room_is_left_for_kernels_without_a_launch() -> None:
    fates = [recording.Fate() for _ in range(3)]
    assert recording._room(fates, fates[0], 900) == 900 - 2 * 200
    fates[1].kept = 1
    assert recording._room(fates, fates[0], 900) == 700
    assert recording._room(fates, fates[1], 900) == 500
    fates[0].kept = fates[2].kept = 1
    assert recording._room(fates, fates[1], 900) == 900


def test_a_launch_that_would_take_the_room_of_others(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    keeper.begin("twice cuda_sm90:triton", "128 elements", room=100)
    _launch(keeper, torch.ones(128), torch.zeros(128))
    assert keeper.left == {"twice": "the file is full"}


def test_a_card_waits_for_no_compiler(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "device_of", lambda target, level: emulated(target))
    fates = recording.record(
        *("cuda_sm90", tmp_path / "kept", str),
        operators=("rmsnorm",),
        limits=recording.Limits(cases=2, jobs=1),
    )
    assert fates["rmsnorm cuda_sm90:triton"].kept == len(recorder.asked) == 2


def test_without_the_card_nothing_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cuda_sm90 on this machine"):
        main(["record", "cuda_sm90", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_a_comparison_that_runs_out_of_time_goes_on_the_next_time(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "kept")
    for case in ("128 elements", "others"):
        keeper.begin("twice cuda_sm90:triton", case)
        _launch(keeper, torch.ones(128), torch.zeros(128))
    said: list[str] = []
    for count in (1, 2):
        found = compare_all(tmp_path / "kept", tmp_path / "out", said.append, seconds=0.01)
        assert len(found["launches"]) == count
        assert found["emulated"]["complete"] == (count == 2)
    assert [line[:5] for line in said] == ["[1/2]", "[2/2]"]

# SPDX-License-Identifier: Apache-2.0
"""The probe replays recorded machines: what the drivers answered, and the devices that follow.

A file in `probes/` holds `environ`, the answers of NVML by function name, the files of sysfs, the
expected devices (facts that are None or "" are left out) and parts of the expected notes; with an
AMD GPU perhaps the answers of amdsmi, by PCI address and function name.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from tests.core._amdsmi import FakeSmi

from archkey.errors import TargetError
from archkey.probe import Device, Probe, probe, vendors
from archkey.target import Target

MACHINES = {path.stem: path for path in sorted(Path(__file__).with_name("probes").glob("*.json"))}


class RecordedNvml:
    """pynvml's functions, answering from a recording. A handle is the recorded GPU itself."""

    NVMLError = pynvml.NVMLError

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.running = False

    def nvmlInit(self) -> None:
        self._answer(self.answers["nvmlInit"])
        self.running = True

    def nvmlShutdown(self) -> None:
        self.running = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.answers["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        gpu = self.answers["devices"][index]
        return self._answer(gpu) if "error" in gpu else gpu

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Any, slot: int) -> Any:
        if slot >= len(gpu["mig"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu["mig"][slot]

    def __getattr__(self, function: str) -> Any:
        return lambda handle=self.answers: self._answer(handle[function])

    @staticmethod
    def _answer(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "error" in value:
            raise getattr(pynvml, value["error"])()
        return SimpleNamespace(**value)


@pytest.fixture(autouse=True)
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hides the vendors installed here; the returned function installs functions of this file."""

    def _install(*functions: str) -> None:
        found = [EntryPoint(f, f"{__name__}:{f}", vendors.GROUP) for f in functions]
        monkeypatch.setattr(vendors, "entry_points", lambda group: found)

    _install()
    return _install


def replay(name: str, tmp_path: Path, **changes: Any) -> tuple[Probe, dict[str, Any]]:
    """The probe's result on a recorded machine, and the recording."""
    record = json.loads(MACHINES[name].read_text()) | changes
    for path, text in record["files"].items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    api = RecordedNvml(record["nvml"])
    smi = FakeSmi(record["amdsmi"]) if record.get("amdsmi") else None
    result = probe(record["environ"], root=tmp_path, nvml_api=api, amdsmi_api=smi)
    assert not api.running, "NVML was left initialised"
    return result, record


def facts(device: Device) -> dict[str, Any]:
    derived = ("torch_type", "simulated")  # alike in every recorded machine of a target
    facts = {name: value for name, value in device.to_json().items() if name not in derived}
    return {name: value for name, value in facts.items() if value not in (None, "")}


@pytest.mark.parametrize("name", MACHINES)
def test_recorded_machine(name: str, tmp_path: Path) -> None:
    result, record = replay(name, tmp_path)
    expected = record["expected"]
    assert [facts(device) for device in result.devices[:-1]] == expected["devices"]
    assert len(result.notes) == len(expected["notes"])
    for note, part in zip(result.notes, expected["notes"], strict=True):
        assert part in str(note)
    assert result.devices[-1].target == Target.parse("cpu")
    assert record["source"]


def first_target(name: str, tmp_path: Path) -> Target:
    return replay(name, tmp_path)[0].devices[0].target


def test_b300_is_served_by_sm100_and_rtx5090_is_not(tmp_path: Path) -> None:
    sm100 = Target.parse("cuda_sm100")
    assert sm100.serves(first_target("b300", tmp_path))
    assert not sm100.serves(first_target("rtx5090", tmp_path))


def test_one_target_many_cards(tmp_path: Path) -> None:
    """MI300X, MI308X and MI325X are one target; their compute units and memory are not."""
    cards = [replay(name, tmp_path)[0].devices[0] for name in ("mi300x", "mi308x", "mi325x")]
    assert {card.target.key for card in cards} == {"rocm_gfx942"}
    assert [card.compute_units for card in cards] == [304, 80, 304]
    assert len({card.memory_bytes for card in cards}) == 2


def test_cpu_from_proc(tmp_path: Path) -> None:
    cpu = replay("no_gpu", tmp_path)[0].devices[-1]
    assert (cpu.name, cpu.memory_bytes) == ("AMD EPYC 9654 96-Core Processor", 263842112 * 1024)
    assert cpu.compute_units is not None and cpu.compute_units >= 1


def test_both_vendors_in_one_machine(tmp_path: Path) -> None:
    h100 = json.loads(MACHINES["h100_sxm"].read_text())
    result, _ = replay("mi355x", tmp_path, nvml=h100["nvml"])
    keys = [device.target.key for device in result.devices]
    assert keys == ["cuda_sm90", "rocm_gfx950", "cpu"]
    assert [device.index for device in result.devices] == [0, 0, 0]


class TestOrdinal:
    """GPU_DEVICE_ORDINAL hides devices from HIP too (ROCm, "GPU isolation techniques")."""

    @pytest.mark.parametrize(("value", "count"), [("1", 1), ("0,2", 1), ("", 0)])
    def test_a_note_says_so(self, value: str, count: int, tmp_path: Path) -> None:
        environ = {"GPU_DEVICE_ORDINAL": value}
        result, _ = replay("four_mi300x", tmp_path, environ=environ)
        found = [note for note in result.notes if "GPU_DEVICE_ORDINAL" in note.text]
        assert len(found) == count
        assert all(note.source == "kfd" and repr(value) in note.text for note in found)
        assert [device.index for device in result.devices[:-1]] == [0, 1, 2, 3]

    def test_without_amd_gpus_nothing_is_said(self, tmp_path: Path) -> None:
        result, _ = replay("no_gpu", tmp_path, environ={"GPU_DEVICE_ORDINAL": "1"})
        assert not [note for note in result.notes if "GPU_DEVICE_ORDINAL" in note.text]


class TestPretend:
    def test_from_environ(self, tmp_path: Path) -> None:
        result, _ = replay("h100_sxm", tmp_path, environ={"ARCHKEY_TARGET": "gfx950"})
        first, cpu = result.devices
        assert first == Device(Target("rocm", "gfx950"), 0, "rocm_gfx950", "pretend")
        assert cpu.source == "cpu"
        assert "rocm_gfx950" in str(result.notes[0])

    def test_parameter_comes_first(self) -> None:
        result = probe({"ARCHKEY_TARGET": "gfx950"}, pretend="sm_100a")
        assert str(result.devices[0].target) == "cuda_sm100a"

    def test_cpu_hides_the_gpus(self, tmp_path: Path) -> None:
        result, _ = replay("h100_sxm", tmp_path, environ={"ARCHKEY_TARGET": "cpu"})
        assert [device.source for device in result.devices] == ["cpu"]

    def test_unknown_target(self) -> None:
        with pytest.raises(TargetError, match="cuda_sm90"):
            probe({"ARCHKEY_TARGET": "cuda_sm9"})


def acme_probe() -> list[Device]:
    return [Device(Target.parse("acme_x1"), 0, "Acme X1", "whatever", compute_units=64)]


def broken_probe() -> list[Device]:
    raise RuntimeError("firmware is asleep")


def nonsense_probe() -> list[Any]:
    return [*acme_probe(), {"target": "acme_x1"}]


not_callable_probe = 7


class TestVendors:
    def test_found(self, install: Any, tmp_path: Path) -> None:
        install("acme_probe")
        result, _ = replay("h100_sxm", tmp_path)
        keys = [device.target.key for device in result.devices]
        assert keys == ["cuda_sm90", "acme_x1", "cpu"]
        assert result.devices[1].source == "acme_probe"

    @pytest.mark.parametrize(
        ("bad", "text"),
        [
            ("broken_probe", "RuntimeError: firmware is asleep"),
            ("nonsense_probe", "expected archkey.probe.Device"),
            ("not_callable_probe", "TypeError"),
            ("missing_probe", "AttributeError"),
        ],
    )
    def test_a_bad_one_is_a_note(self, bad: str, text: str, install: Any, tmp_path: Path) -> None:
        install(bad, "acme_probe")
        result, _ = replay("h100_sxm", tmp_path)
        keys = [device.target.key for device in result.devices]
        assert keys == ["cuda_sm90", "acme_x1", "cpu"]
        assert [str(note) for note in result.notes if note.source == bad and text in note.text]


def test_this_machine_without_torch() -> None:
    code = "import sys, archkey.probe as p; p.probe(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_gpus_it_is_quick(tmp_path: Path) -> None:
    """Best of five within 10 ms; the first call of a process also imports ctypes."""

    def seconds() -> float:
        start = time.perf_counter()
        probe({}, root=tmp_path)
        return time.perf_counter() - start

    if probe({}, root=tmp_path).devices[0].target.key != "cpu":
        pytest.skip("this machine has GPUs")
    assert min(seconds() for _ in range(5)) < 0.010


def test_recording_this_machine_replays(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "archkey.probe", "--record"]
    record = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    result, _ = replay("no_gpu", tmp_path, **record)
    assert record["source"]
    # Vendors' probes are not recorded.
    expected = [
        d for d in record["expected"]["devices"] if d["source"] in {"nvml", "kfd", "kfd+amdsmi"}
    ]
    assert [facts(device) for device in result.devices[:-1]] == expected

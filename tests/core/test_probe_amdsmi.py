# SPDX-License-Identifier: Apache-2.0
"""What amdsmi adds to the GPUs of sysfs: recorded machines with gaps, a library that fills them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.core._amdsmi import (
    ASIC,
    COMPUTE,
    DRIVER,
    MEMORY,
    NO_PERMISSION,
    NOT_SUPPORTED,
    NPS,
    PROBES,
    FakeSmi,
    answers,
    bare,
    error,
    without,
)

from archkey.probe import Device, Probe, kfd, probe, vendors
from archkey.probe import amdsmi as room

CARDS = ("0000:42:00.0", "0000:43:00.0", "0000:44:00.0", "0000:4a:00.0")  # of four_mi300x


@pytest.fixture(autouse=True)
def no_vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendors, "entry_points", lambda group: [])


def ask(root: Path, smi: Any, **environ: str) -> tuple[list[Device], list[str]]:
    """The AMD GPUs, and the notes about amdsmi. The library is as open as it was."""
    was_running = smi.running
    result: Probe = probe(environ, root=root, amdsmi_api=smi)
    assert smi.running == was_running
    gpus = [device for device in result.devices if device.target.platform == "rocm"]
    return gpus, [note.text for note in result.notes if note.source == "amdsmi"]


def test_every_gap_is_filled(tmp_path: Path) -> None:
    root = bare("mi300x", tmp_path, without("unique_id"))
    (gpu,), notes = ask(root, FakeSmi({"0000:47:00.0": answers()}))
    assert (gpu.name, gpu.source) == ("AMD Instinct MI399X", "kfd+amdsmi")
    assert (gpu.partition, gpu.driver) == ("SPX/NPS1", "6.8.0-45-generic")
    assert (gpu.memory_bytes, gpu.uuid) == (206141652992, "GPU-3cbe002bd3b6313d")
    assert gpu.compute_units == 304
    assert notes == []


def test_memory_as_rocm_6_0_names_it(tmp_path: Path) -> None:
    root = bare("mi300x", tmp_path, without())
    (gpu,), _ = ask(root, FakeSmi({"0000:47:00.0": answers(**{MEMORY: {"vram_size_mb": 64}})}))
    assert gpu.memory_bytes == 64 * 2**20


def test_sysfs_is_not_overruled(tmp_path: Path) -> None:
    record = json.loads((PROBES / "mi300x.json").read_text())
    for path, text in record["files"].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    complete = FakeSmi({"0000:47:00.0": answers(**{COMPUTE: "CPX"})})
    gpus, _ = ask(tmp_path, complete)
    assert complete.inits == 0 and gpus[0].source == "kfd", "nothing was open: nobody is asked"
    (tmp_path / "sys/module/amdgpu/version").unlink()
    (gpu,), _ = ask(tmp_path, complete)
    facts = gpu.to_json()
    changed = {name for name, value in gpus[0].to_json().items() if facts[name] != value}
    assert changed == {"driver", "source"}


@pytest.mark.parametrize("functions", ["own", "none"])
def test_two_cards_in_cpx(functions: str, tmp_path: Path) -> None:
    """Sixteen devices on two cards; amdsmi numbers partitions by function, or not at all."""

    def second_card(path: str, text: str) -> str:
        return re.sub(r"location_id (\d+)", lambda m: f"location_id {int(m[1]) + 0x4000}", text)

    bare("mi300x_cpx_nps4", tmp_path)
    for node in sorted((tmp_path / "sys/class/kfd/kfd/topology/nodes").iterdir()):
        if node.name == "0":
            continue
        copy = node.with_name(str(int(node.name) + 8))
        for file in (path for path in node.rglob("*") if path.is_file()):
            target = copy / file.relative_to(node)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(second_card(str(file), file.read_text()))
    parts: dict[str, Any] = {}
    for card, version in (("0000:47:00", "6.1"), ("0000:87:00", "6.2")):
        first = answers(**{COMPUTE: "CPX", NPS: "NPS4", DRIVER: {"driver_version": version}})
        parts[f"{card}.0"] = first
        if functions == "own":
            rest = answers(**{COMPUTE: error(NOT_SUPPORTED), NPS: error(NOT_SUPPORTED)})
            parts |= {f"{card}.{number}": rest for number in range(1, 8)}
    gpus, notes = ask(tmp_path, FakeSmi(parts))
    assert [gpu.partition for gpu in gpus] == ["CPX/NPS4"] * 16
    assert [gpu.driver for gpu in gpus] == ["6.1"] * 8 + ["6.2"] * 8
    # These are of a partition, where amdsmi speaks of the card.
    assert {gpu.memory_bytes for gpu in gpus} == {25753026560}
    assert len({gpu.uuid for gpu in gpus[:8]}) == 8
    assert notes == [], "partitions are not strange GPUs"


def test_a_part_does_not_get_the_memory_of_its_card(tmp_path: Path) -> None:
    root = bare("mi300x_cpx_nps4", tmp_path, without("unique_id"))
    card = answers(**{COMPUTE: "CPX", NPS: "NPS4"})
    gpus, _ = ask(root, FakeSmi({"0000:47:00.0": card}))
    assert {(gpu.memory_bytes, gpu.uuid) for gpu in gpus} == {(None, None)}
    assert {(gpu.name, gpu.partition) for gpu in gpus} == {("AMD Instinct MI399X", "CPX/NPS4")}


def test_kernel_with_the_partition_in_the_function(tmp_path: Path) -> None:
    """Older kernels add the partition to the lowest bits of location_id."""

    def low_bits(path: str, text: str) -> str:
        def move(match: re.Match[str]) -> str:
            where = int(match[1])
            return f"location_id {where & 0xFFFFFFF | where >> 28}"

        return re.sub(r"location_id (\d+)", move, text)

    root = bare("mi300x_cpx_nps4", tmp_path, low_bits)
    parts = {f"0000:47:00.{i}": answers(**{DRIVER: {"driver_version": f"6.{i}"}}) for i in range(8)}
    gpus, notes = ask(root, FakeSmi(parts))
    assert [gpu.driver for gpu in gpus] == [f"6.{i}" for i in range(8)]
    assert notes == []


class TestWhatGoesWrong:
    def test_init(self, tmp_path: Path) -> None:
        root = bare("four_mi300x", tmp_path)
        gpus, notes = ask(root, FakeSmi({card: answers() for card in CARDS}, init_error=34))
        assert [gpu.source for gpu in gpus] == ["kfd"] * 4
        error_text = "AmdSmiLibraryException: Error code: 34 | AMDSMI_STATUS"
        assert notes == [f"it does not answer: {error_text}"]

    def test_a_function_missing_in_an_old_release(self, tmp_path: Path) -> None:
        root = bare("four_mi300x", tmp_path)
        old = {key: value for key, value in answers().items() if key != NPS}
        gpus, notes = ask(root, FakeSmi(dict.fromkeys(CARDS, old)))
        assert [gpu.partition for gpu in gpus] == ["SPX"] * 4
        assert [gpu.driver for gpu in gpus] == ["6.8.0-45-generic"] * 4
        assert notes == [f"{NPS} is not in this release of amdsmi"]

    def test_a_release_with_other_names(self, tmp_path: Path) -> None:
        """ROCm 5.6 says amdsmi_get_device_handles."""
        old = ModuleType("amdsmi")
        old.__dict__.update(amdsmi_init=lambda: None, running=False)
        gpus, notes = ask(bare("four_mi300x", tmp_path), old)
        assert len(gpus) == 4
        assert len(notes) == 1 and "amdsmi_get_processor_handles" in notes[0]

    @pytest.mark.parametrize("failing", [1, 3])
    def test_a_query_of_some_gpus(self, failing: int, tmp_path: Path) -> None:
        root = bare("four_mi300x", tmp_path)
        bad = answers(**{DRIVER: error(NO_PERMISSION)})
        smi = FakeSmi({card: bad if i < failing else answers() for i, card in enumerate(CARDS)})
        gpus, notes = ask(root, smi)
        drivers = [None] * failing + ["6.8.0-45-generic"] * (4 - failing)
        assert [gpu.driver for gpu in gpus] == drivers
        assert {gpu.partition for gpu in gpus} == {"SPX/NPS1"} and len(notes) == 1
        assert notes[0].startswith(f"{DRIVER} fails at {CARDS[0]}: AmdSmiLibraryException: Error")
        assert notes[0].endswith(" (and 2 more)") == (failing == 3)

    def test_what_a_gpu_does_not_have_is_no_error(self, tmp_path: Path) -> None:
        radeon = answers(**{COMPUTE: error(NOT_SUPPORTED), NPS: "N/A"})
        (gpu,), notes = ask(bare("rx7900xtx", tmp_path), FakeSmi({"0000:03:00.0": radeon}))
        assert (gpu.name, gpu.partition) == ("Radeon RX 7900 XTX", "")
        assert notes == []

    @pytest.mark.parametrize("name", ["", "N/A", "0x74ff"])
    def test_a_name_that_is_none(self, name: str, tmp_path: Path) -> None:
        root = bare("mi300x", tmp_path, without())
        nameless = answers(**{ASIC: {"market_name": name, "asic_serial": "N/A"}})
        (gpu,), notes = ask(root, FakeSmi({"0000:47:00.0": nameless}))
        assert gpu.name == "AMD GPU 0x74ff"
        assert notes == []

    @pytest.mark.parametrize("serial", ["", "0x0", "4376936076086227261"])
    def test_a_serial_number_that_is_none(self, serial: str, tmp_path: Path) -> None:
        """The last is decimal, which amdsmi takes for hexadecimal without DRM."""
        root = bare("mi300x", tmp_path, without("unique_id"))
        odd = answers(**{ASIC: {"market_name": "AMD Instinct MI399X", "asic_serial": serial}})
        (gpu,), _ = ask(root, FakeSmi({"0000:47:00.0": odd}))
        assert (gpu.name, gpu.uuid) == ("AMD Instinct MI399X", None)

    def test_two_fields_of_one_answer_are_one_failure(self, tmp_path: Path) -> None:
        root = bare("mi300x", tmp_path, without("unique_id"))
        _, notes = ask(root, FakeSmi({"0000:47:00.0": answers(**{ASIC: error(NO_PERMISSION)})}))
        assert len(notes) == 1 and notes[0].endswith("AMDSMI_STATUS")

    def test_another_shape(self, tmp_path: Path) -> None:
        changed = FakeSmi({card: answers(**{DRIVER: {"version": "7.0"}}) for card in CARDS})
        gpus, notes = ask(bare("four_mi300x", tmp_path), changed)
        assert [gpu.partition for gpu in gpus] == ["SPX/NPS1"] * 4
        assert notes == [f"{DRIVER} fails at {CARDS[0]}: KeyError: 'driver_version' (and 3 more)"]


class TestWhoIsListed:
    def test_a_gpu_that_kfd_hides(self, tmp_path: Path) -> None:
        root = bare("mi300x", tmp_path)
        both = FakeSmi({"0000:46:00.0": answers(), "0000:47:00.0": answers()})
        gpus, notes = ask(root, both)
        assert len(gpus) == 1
        assert notes == ["left out, because KFD shows no node for it: 0000:46:00.0"]

    def test_a_gpu_that_a_variable_hides(self, tmp_path: Path) -> None:
        root = bare("four_mi300x", tmp_path)
        smi = FakeSmi(
            {c: answers(**{DRIVER: {"driver_version": f"6.{i}"}}) for i, c in enumerate(CARDS)}
        )
        gpus, notes = ask(root, smi, ROCR_VISIBLE_DEVICES="2,0")
        assert [(gpu.index, gpu.driver) for gpu in gpus] == [(0, "6.2"), (1, "6.0")]
        assert notes == []

    @pytest.mark.parametrize("first", [{}, {CARDS[0]: {}}], ids=["absent", "silent"])
    def test_a_gpu_that_amdsmi_does_not_list(self, first: Any, tmp_path: Path) -> None:
        root = bare("four_mi300x", tmp_path)
        gpus, notes = ask(root, FakeSmi(first | {card: answers() for card in CARDS[1:]}))
        assert [gpu.source for gpu in gpus] == ["kfd"] + ["kfd+amdsmi"] * 3
        assert notes == [f"it does not list {CARDS[0]}"]

    def test_the_serial_number_does_not_choose(self, tmp_path: Path) -> None:
        """ROCr compares with the id that KFD states, and here it states none."""
        root = bare("mi300x", tmp_path, without("unique_id"))
        smi = FakeSmi({"0000:47:00.0": answers()})
        gpus, _ = ask(root, smi, ROCR_VISIBLE_DEVICES="GPU-3cbe002bd3b6313d")
        assert gpus == []


class TestTheModule:
    """Without a replacement, the module amdsmi itself."""

    def complete(self, root: Path) -> tuple[list[Device], list[str]]:
        gpus, _ = kfd.find(root)
        return room.complete(gpus, [gpu.address for gpu in gpus])

    def test_it_is_the_installed_one(self, tmp_path: Path, monkeypatch: Any) -> None:
        installed = FakeSmi({"0000:47:00.0": answers()})
        monkeypatch.setitem(sys.modules, "amdsmi", installed)
        (gpu,), _ = self.complete(bare("mi300x", tmp_path))
        assert gpu.source == "kfd+amdsmi"
        assert not installed.running

    def test_whoever_has_it_open_keeps_it(self, tmp_path: Path) -> None:
        theirs = FakeSmi({"0000:47:00.0": answers()})
        theirs.amdsmi_init()
        (gpu,), _ = ask(bare("mi300x", tmp_path), theirs)
        assert (gpu.source, theirs.running, theirs.inits) == ("kfd+amdsmi", True, 1)

    def test_not_installed_changes_nothing(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
        monkeypatch.setattr(sys, "path", [])
        root = bare("four_mi300x", tmp_path)
        devices, notes = self.complete(root)
        assert devices == [gpu.device for gpu in kfd.find(root)[0]]
        assert notes == []

    @pytest.mark.parametrize("code", ["raise KeyError('libamd_smi.so')", "import no_such_module"])
    def test_a_broken_one(
        self, code: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What is missing is printed by the wrapper, but not into a command's output."""
        package = tmp_path / "site/amdsmi.py"
        package.parent.mkdir()
        package.write_text(f"print('Unable to find libamd_smi.so')\n{code}\n")
        monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
        monkeypatch.syspath_prepend(str(package.parent))
        devices, notes = self.complete(bare("mi300x", tmp_path))
        assert [device.source for device in devices] == ["kfd"]
        assert len(notes) == 1 and re.search("libamd_smi.so|no_such_module", notes[0])
        assert capsys.readouterr().out == ""

    def test_a_machine_without_amd_gpus_never_imports_it(self, tmp_path: Path) -> None:
        if kfd.find(Path("/"))[0]:
            pytest.skip("this machine has AMD GPUs")
        (tmp_path / "amdsmi.py").write_text("raise SystemExit('imported')\n")
        code = "import archkey.probe as p; p.probe()"
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environ)

    def test_another_file_system_is_not_asked_about_here(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        here = FakeSmi({"0000:47:00.0": answers()})
        monkeypatch.setitem(sys.modules, "amdsmi", here)
        result = probe({}, root=bare("mi300x", tmp_path))
        assert result.devices[-2].source == "kfd" and here.inits == 0

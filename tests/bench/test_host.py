# SPDX-License-Identifier: Apache-2.0
"""Costs of the host: every way leads to the kernel, and no rival is silently absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from archkey.bench import host, host_rivals, host_row, host_scale
from archkey.bench.host_row import Row
from archkey.cli import cli

SGLANG = """
from dataclasses import dataclass
from enum import Enum
from importlib import import_module

DeviceType = Enum("DeviceType", "CUDA HIP MUSA NPU CPU")
KernelBackend = Enum("KernelBackend", "TORCH TORCH_COMPILE TRITON JIT AOT")
SPECS = []

@dataclass(frozen=True)
class PlatformInfo:
    device: DeviceType
    @classmethod
    def detect(cls):
        return cls(DeviceType.CPU)

@dataclass(frozen=True)
class CapabilityRequirement:
    device: DeviceType

@dataclass(frozen=True)
class KernelSpec:
    op: str
    backend: KernelBackend
    target: str
    capabilities: frozenset

def register_kernel(spec):
    SPECS.append(spec)

def select_kernel(op, backend=None):
    here = CapabilityRequirement(PlatformInfo.detect().device)
    (found,) = (s for s in SPECS if s.op == op and here in s.capabilities)
    return found

def get_kernel(op, backend=None):
    module, _, name = select_kernel(op).target.partition(":")
    return getattr(import_module(module), name)
"""
TOKENSPEED = {
    "platform": """
from dataclasses import dataclass
@dataclass(frozen=True)
class ArchVersion:
    major: int
    minor: int
@dataclass(frozen=True)
class PlatformInfo:
    vendor: str
    arch_version: ArchVersion
    device_name: str
    device_count: int
    total_memory: int
    memory_bandwidth: float
    sm_count: int
    max_threads_per_sm: int
    max_shared_memory_per_sm: int
class Platform:
    @classmethod
    def override(cls, platform):
        cls.instance = platform
""",
    "registry": """
KERNELS = {}
def register_kernel(family, mode, *, name, solution, signatures, traits, priority):
    def decorator(function):
        for signature in signatures:
            KERNELS[family, mode, signature, *sorted(traits)] = function
        return function
    return decorator
""",
    "selection": """
from tokenspeed_kernel.registry import KERNELS
def select_kernel(family, mode, format_signature, *, traits=None):
    return KERNELS[(family, mode, format_signature, *sorted(traits))]
""",
    "signature": """
def dense_tensor_format(dtype):
    return "dense", dtype
def format_signature(**roles):
    return tuple(sorted(roles.items()))
""",
}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is what is called, not how long it takes."""

    def best(call: Callable[[], object], repeats: int, number: int = 0) -> float:
        return host_row.best(call, 1, 3)

    for module in (host, host_scale):
        monkeypatch.setattr(module, "best", best)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this process and new ones import from."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def package(folder: Path, name: str, modules: dict[str, str]) -> None:
    (folder / name).mkdir()
    init = "raise ImportError('the engine around it is not installed')"
    for module, code in {"__init__": init, **modules}.items():
        (folder / name / f"{module}.py").write_text(code)


def rows_of(name: str) -> list[Row]:
    (rival,) = (r for r in host_rivals.RIVALS if r.name == name)
    return list(host_rivals._rows_of(rival, 1, lambda: 4.0))


def test_every_way_leads_to_the_kernel(run_python: Callable[..., str]) -> None:
    """In a process of its own, since torch keeps an operator's function."""
    shown = run_python(
        """
import torch
from archkey.bench import host_scale
seen = []
def record(*args, x=None, weight=None, eps=None, out=None):
    seen.append(args or (x, weight, eps, out))
host_scale.do_nothing = record
x, weight, out = (torch.randn(4) for _ in range(3))
with torch.inference_mode():
    for what, call, note in host_scale._ways(x, weight, out):
        seen.clear()
        call()
        if "pluggy" in what:  # its implementation is written out
            continue
        (given,) = seen
        print(what, all(a is b for a, b in zip(given, (x, weight))), given[2:] == (1e-6, out))
"""
    )
    assert [line.split()[-2:] for line in shown.splitlines()] == [["True", "True"]] * 3


def test_what_others_cost_is_told_beside_ours() -> None:
    found = list(host_scale.rows(1, lambda: 4.0))
    assert [row.what for row in found] == [
        "for scale: a dict lookup on a ready key",
        "for scale: a pluggy hook, one implementation",
        "for scale: torch.library, Library.define and impl",
        "for scale: torch.library, custom_op",
        "for scale: torch.empty_like",
    ]
    for row in found[:-1]:
        assert row.value is not None and row.ratio == pytest.approx(row.value / 4)
        assert row.limit is None and row.passed and row.note
    assert list(host_scale.rows(1, lambda: 0.0))[0].ratio is None  # lost in the noise


def test_measuring_leaves_the_mode_of_the_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = host_scale.rows(1, lambda: 4.0)
    assert next(rows) and not torch.is_inference_mode_enabled()
    monkeypatch.setattr(host_rivals, "_there", lambda package: False)
    for row in host._calls(1):
        assert not torch.is_inference_mode_enabled(), row


@pytest.mark.parametrize("name", [rival.name for rival in host_rivals.RIVALS])
def test_a_rival_that_is_not_installed_is_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_rivals, "_there", lambda package: False)
    (row,) = rows_of(name)
    assert row.value is None and row.passed and row.ratio is None
    assert name in row.what and row.note.startswith("not installed: ")


def test_sglang_is_measured_without_the_engine_around_it(elsewhere: Path) -> None:
    package(elsewhere, "sglang", {"kernels": SGLANG})
    get, select = rows_of("sglang")
    assert get.value is not None and get.ratio == pytest.approx(get.value / 4)
    assert select.value is not None and select.ratio is None  # chooses, calls nothing


def test_tokenspeed_is_measured_without_its_kernels(elsewhere: Path) -> None:
    package(elsewhere, "tokenspeed_kernel", TOKENSPEED)
    ready, made = rows_of("tokenspeed-kernel")
    assert ready.what != made.what
    assert all(row.ratio == pytest.approx(row.value / 4) for row in (ready, made) if row.value)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('no msgspec')", "cannot be measured: ImportError: no msgspec"),
        ("import os; os._exit(7)", "cannot be measured: exit 7"),
        ("import os; print('{'); os._exit(0)", "cannot be measured: "),
    ],
)
def test_a_rival_that_breaks_costs_its_row_only(elsewhere: Path, code: str, told: str) -> None:
    package(elsewhere, "sglang", {"kernels": code})
    (row,) = rows_of("sglang")
    assert row.value is None and row.passed and row.note.startswith(told)


def test_a_rival_that_hangs_is_given_up(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(elsewhere, "sglang", {"kernels": "import time; time.sleep(60)"})
    monkeypatch.setattr(host_rivals, "TIMEOUT", 0.5)
    (row,) = rows_of("sglang")
    assert row.value is None and "timed out" in row.note


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The command's rows, instead of measured ones."""
    found = [
        Row("import archkey", 10.0, "ms", 60.0),
        Row("for scale: import torch", 1500.0, "ms", ratio=150.0),
        Row("for scale: sglang", None, "us", note="not installed: pip install sglang"),
    ]

    def measure(repeats: int) -> Iterator[Row]:
        yield from found

    monkeypatch.setattr(host, "measure", measure)
    return found


def run(*args: str) -> Any:
    return CliRunner().invoke(cli, ["bench", "--host", *args], catch_exceptions=False)


def test_the_table_shows_ratio_note_and_what_is_missing(measured: list[Row]) -> None:
    result = run()
    assert result.exit_code == 0
    lines = {line.strip().partition("  ")[0]: line for line in result.output.splitlines()}
    assert lines["import archkey"].split()[-5:] == ["10.00", "ms", "60", "ms", "ok"]
    assert lines["for scale: import torch"].split()[-1] == "150.00"
    assert lines["for scale: sglang"].split()[-1] == "-"
    assert "not installed: pip install sglang" in result.output


def test_json_has_every_field(measured: list[Row]) -> None:
    rows = json.loads(run("--json").output)
    assert [row["what"] for row in rows] == [row.what for row in measured]
    assert rows[1]["ratio"] == 150.0 and rows[2]["value"] is None
    assert rows[2]["note"] and all(row["passed"] for row in rows)


def test_over_a_limit_is_exit_one(measured: list[Row]) -> None:
    measured[0] = replace(measured[0], value=61.0)
    assert run().exit_code == 1 and "over" in run().output

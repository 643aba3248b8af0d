# SPDX-License-Identifier: Apache-2.0
"""What the exam of a card compiles before the card has to wait: here the emulator is a card."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conformance._processes import left_behind
from tests.core._fakes import World, kernels

from archkey.conformance import exam, pool
from archkey.conformance.levels import RANDOM, Item, Level
from archkey.conformance.pool import Terms
from archkey.conformance.sources import _imported, _path
from archkey.conformance.worker import open_for

TARGET, UNITS = "rocm_gfx942", 77

CARD = f"""
    from archkey.conformance.emulation.device import Emulated
    from archkey.target import Target


    def find():
        target = Target.parse("{TARGET}")
        yield Emulated(target, 0, "card", "", compute_units={UNITS}, torch_type="cpu")
"""

KERNEL = """
    import os
    import torch
    import triton
    import triton.language as tl
    from archkey.launch import Program


    @triton.jit
    def rows_body(x, weight, out, x_stride, out_stride, eps, bias, N: tl.constexpr,
                  UNITS: tl.constexpr):
        tl.static_assert(UNITS > 0)
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, triton.next_power_of_2(N))
        inside = columns < N
        values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(values * values) / N + eps)
        factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + bias
        tl.store(out + row * out_stride + columns, values * scale * factor, mask=inside)


    def build(problem, build):
        with open(os.environ["BUILT"], "a") as log:
            print(problem, file=log)
        launch = build.compile(Program(
            rows_body,
            {**dict.fromkeys(("x", "weight", "out"), "*bf16"),
             **dict.fromkeys(("x_stride", "out_stride"), "i64"),
             **dict.fromkeys(("eps", "bias"), "fp32")},
            {"N": problem.width, "UNITS": build.device.compute_units or 0},
        ))

        def run(x, weight, eps, bias, cast, out):
            if x.numel():
                flat = x.flatten(0, -2)
                launch((len(flat), 1, 1), x, weight, out, x.stride(-2), out.stride(-2), eps, bias)

        return run


    def crash(problem, given):
        if given.device.source == "pretend":
            os.abort()
        return build(problem, given)


    def full(problem, given):
        launch, seen = build(problem, given), os.environ["BUILT"] + f".{problem.width}"

        def run(*arguments):
            if not os.path.exists(seen):
                open(seen, "w").close()
                raise torch.OutOfMemoryError("others have it all")
            launch(*arguments)

        return run
"""

PLAIN = (
    '(is_("heads", 1), is_("cast_before_weight", False), is_("dtype", "bfloat16"), '
    'is_("out_dtype", "bfloat16"), is_("weight_dtype", "bfloat16"))'
)


class Bench:
    """A machine with the card and a kernel for it, for this process and those that it starts."""

    def __init__(self, root: Path, world: World) -> None:
        self.root, self.world = root, world
        self.cache, self.log = root / "cache", root / "log"

    def install(self, name: str) -> None:
        """The plugin `rocm_gfx942.NAME`, whose kernel is the builder `name`."""
        module = f"kernels_of_{self.world.prefix}{name}"
        (self.root / f"{module}.py").write_text(textwrap.dedent(KERNEL))
        line = f'"rmsnorm", "own", "{module}:{name}", accepts={PLAIN}'
        self.world.install(f"{TARGET}.{name}", kernels(line))
        self.subject = exam.find(f"{TARGET}.{name}")

    def items(self) -> list[Item]:
        """Cases of a few widths, and random ones."""
        asked, _ = exam.questions(self.subject, Level.DEVICE, ["rmsnorm"])
        mine = [item for item in asked if item.kernel.endswith(":own")]
        words = ("rows that fill no tile", "last column: tokens=2, width=111", RANDOM)
        return [item for item in mine if any(word in item.case for word in words)]

    def built(self) -> Counter[str]:
        """How often each Problem was built, by any process."""
        return Counter(self.log.read_text().splitlines())

    def compiled(self) -> dict[str, int]:
        """What the compiler has left on disk, and when."""
        return {str(path): path.stat().st_mtime_ns for path in self.cache.rglob("*.hsaco")}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    before = os.environ.get("PYTHONPATH")
    paths = [str(tmp_path), *([before] if before else [])]
    for name, value in {
        "PYTHONPATH": os.pathsep.join(paths),
        "ARCHKEY_CACHE_DIR": str(tmp_path / "cache"),
        "BUILT": str(tmp_path / "log"),
        "ARCHKEY_DATA_DIR": str(tmp_path / "data"),
    }.items():
        monkeypatch.setenv(name, value)
    _path.cache_clear()
    _imported.cache_clear()
    world = World(tmp_path, monkeypatch)
    (tmp_path / "card_of_acme.py").write_text(textwrap.dedent(CARD))
    info = tmp_path / "card_of_acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: card-of-acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[archkey.probes]\nacme = card_of_acme:find\n")
    importlib.invalidate_caches()
    return Bench(tmp_path, world)


def terms(jobs: int = 2) -> Terms:
    return Terms(jobs=jobs, timeout=120.0, examples=3, seed=0)


def test_the_cards_worker_compiles_nothing_any_more(bench: Bench) -> None:
    bench.install("build")
    items = exam.ahead(bench.subject, Level.DEVICE, bench.items())
    assert items[0].case == RANDOM
    assert set(pool.built(TARGET, Level.DEVICE, items, terms())) == set(items)
    before = bench.compiled()
    assert len(before) > 1
    outcomes = list(pool.answers(TARGET, Level.DEVICE, items, terms()))
    assert {row.outcome for row in outcomes} <= {"passed", "skipped"}, outcomes
    assert sum(row.outcome == "passed" for row in outcomes) > 3
    assert bench.compiled() == before


@pytest.mark.parametrize("sharing", [1, 2])
def test_workers_share_a_card_as_many_as_are_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sharing: int
) -> None:
    started: list[pool.Worker] = []

    class Counted(pool.Worker):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(pool, "Worker", Counted)
    bench.install("build")
    items = [item for item in bench.items() if item.case != RANDOM]
    outcomes = list(pool.answers(TARGET, Level.DEVICE, items, terms()._replace(sharing=sharing)))
    assert {row.item for row in outcomes} == set(items)
    assert {row.outcome for row in outcomes} == {"passed"}, outcomes
    assert len(started) == sharing


@pytest.mark.parametrize("sharing", [1, 2])
def test_what_finds_no_memory_on_a_shared_card_is_asked_again(bench: Bench, sharing: int) -> None:
    bench.install("full")
    items = [item for item in bench.items() if item.case != RANDOM]
    outcomes = list(pool.answers(TARGET, Level.DEVICE, items, terms()._replace(sharing=sharing)))
    assert Counter(row.item for row in outcomes) == Counter(items)
    reasons = [row.reason for row in outcomes if row.outcome == "failed"]
    assert all("others have it all" in reason for reason in reasons)
    assert bool(reasons) == (sharing == 1)


def test_a_problem_is_built_once(bench: Bench) -> None:
    """By the worker that comes to it first."""
    bench.install("build")
    items = [item for item in bench.items() if item.case != RANDOM]
    assert set(pool.built(TARGET, Level.DEVICE, items, terms())) == set(items)
    assert 1 < len(bench.built()) < len(items)
    assert set(bench.built().values()) == {1}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it(bench: Bench, how: signal.Signals) -> None:
    """The exam is incomplete, and nobody is left behind."""
    bench.install("build")
    command = ("-m", "archkey", "check", f"{TARGET}.build", "--level", "device", "--jobs", "2")
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "compiled for device rmsnorm" in line:
            break
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted at device: 0 of" in said
    assert not left_behind(bench.root)
    assert not list(bench.root.glob("data/**/*.json"))


def test_it_pretends_to_be_the_card_that_is_here(bench: Bench) -> None:
    bench.install("build")
    real, ahead = (open_for(TARGET, Level.DEVICE, ahead=ahead).device for ahead in (False, True))
    assert (real.source, ahead.source) == ("acme", "pretend")
    assert real.compute_units == ahead.compute_units == UNITS


def test_a_compiler_that_crashes_changes_no_result(bench: Bench) -> None:
    bench.install("crash")
    items = exam.ahead(bench.subject, Level.DEVICE, bench.items())
    assert set(pool.built(TARGET, Level.DEVICE, items, terms())) == set(items)
    assert not bench.compiled()
    outcomes = list(pool.answers(TARGET, Level.DEVICE, items[:4], terms()))
    assert "passed" in {row.outcome for row in outcomes} <= {"passed", "skipped"}


def test_where_no_process_can_be_started_the_worker_compiles(monkeypatch: Any) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(pool, "Worker", refuse)
    item = Item("device", "rmsnorm", "rocm_gfx942:triton", "eps")
    assert list(pool.built(TARGET, Level.DEVICE, [item], terms())) == []


@pytest.mark.parametrize(
    ("target", "level"),
    [("cpu", Level.DEVICE), (TARGET, Level.EMULATED), (TARGET, Level.COMPILED)],
)
def test_only_a_card_waits_for_the_compiler(target: str, level: Level) -> None:
    subject = exam.find(target)
    items = [Item(level.value, "rmsnorm", kernel.id, "x") for kernel in subject.kernels("rmsnorm")]
    assert exam.ahead(subject, level, items) == []


def test_of_a_card_what_has_a_triton_body_is_compiled() -> None:
    subject = exam.find(TARGET)
    items = [Item("device", "rmsnorm", kernel.id, "x") for kernel in subject.kernels("rmsnorm")]
    assert len(items) > 1
    found = exam.ahead(subject, Level.DEVICE, items)
    assert {item.kernel for item in found} == {f"{TARGET}:triton"}

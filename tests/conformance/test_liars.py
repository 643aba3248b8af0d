# SPDX-License-Identifier: Apache-2.0
"""Kernels that are wrong in one way each: the exam fails them at a case that says in which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archkey.conformance import exam
from archkey.conformance.cases import cases_of
from archkey.conformance.levels import RANDOM, Item, Level, Outcome
from archkey.conformance.pool import Terms, Worker, answers
from archkey.ops import OPERATORS

LIARS = Path(__file__).parent / "liars"
sys.path.insert(0, str(LIARS))

from archkey_liars.plugins import HONEST, LIES, NEVER_ENDS, Lie  # noqa: E402

Examine = Callable[..., list[Outcome]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Lie], None]:
    """Install one liar beside our plugins, for this process and those that it starts."""

    def install(name: str, lie: Lie) -> None:
        info = tmp_path / "archkey_liars-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: archkey-liars\nVersion: 1.0\n")
        entry = f"{lie.target}.{name} = archkey_liars.plugins:{name}"
        (info / "entry_points.txt").write_text(f"[archkey.plugins]\n{entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        before = os.environ.get("PYTHONPATH")
        paths = [str(tmp_path), str(LIARS), *([before] if before else [])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.setenv("ARCHKEY_DATA_DIR", str(tmp_path))

    return install


@pytest.fixture
def examine(install: Callable[[str, Lie], None]) -> Examine:
    """The outcomes at the level of a lie; random problems, which shrink for long, only if asked."""

    def examine(name: str, lie: Lie, *, random: bool = False) -> list[Outcome]:
        install(name, lie)
        operators = [] if lie.liar.facts else [lie.liar.operator]
        level = Level(lie.level)
        subject = exam.find(f"{lie.target}.{name}")
        items, answered = exam.questions(subject, level, operators)
        items = [item for item in items if random or item.case != RANDOM]
        return [*answered, *answers(subject.target, level, items, Terms(1, 60.0, 10, 0))]

    return examine


@pytest.mark.parametrize("name", LIES)
def test_a_liar_fails_at_a_case_that_names_the_lie(name: str, examine: Examine) -> None:
    lie = LIES[name]
    rows = examine(name, lie)
    failed = [row for row in rows if row.outcome == "failed"]
    told = [row for row in failed if lie.case in row.item.case and lie.why in row.reason]
    assert told, {(row.outcome, row.item.case, row.reason[:200]) for row in failed or rows}


def test_random_problems_find_a_liar_too(examine: Examine) -> None:
    """And they say which problem, made as small as it still fails."""
    rows = examine("strides_ignored", LIES["strides_ignored"], random=True)
    (drawn,) = [row for row in rows if row.item.case == RANDOM]
    assert drawn.outcome == "failed"
    assert "lay=" in drawn.reason


@pytest.mark.parametrize("name", HONEST)
def test_the_same_kernel_without_the_lie_passes(name: str, examine: Examine) -> None:
    rows = examine(name, HONEST[name], random=True)
    assert not [row for row in rows if row.outcome == "failed"]
    passed = [row for row in rows if row.outcome == "passed"]
    assert passed, {row.reason for row in rows}


def test_a_kernel_that_never_ends_is_ended(install: Callable[[str, Lie], None]) -> None:
    install("NEVER_ENDS", Lie("cpu", "device", "", NEVER_ENDS))
    case = cases_of(OPERATORS["rmsnorm"])[0]
    worker = Worker("cpu", Level.DEVICE, Terms(jobs=1, timeout=5.0, examples=1, seed=0))
    outcome = worker.ask(Item("device", "rmsnorm", "cpu.NEVER_ENDS:kernel", case.name))
    assert (outcome.outcome, outcome.reason) == ("failed", "no end after 5 s")
    assert worker.gone
    worker.close()


def test_the_command_says_so(install: Callable[[str, Lie], None]) -> None:
    """Exit code 1, the case and the reason."""
    install("accepts_too_much", LIES["accepts_too_much"])
    command = (sys.executable, "-m", "archkey", "check", "cpu.accepts_too_much")
    options = ("--level", "device", "--operator", "rmsnorm", "--examples", "1")
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "failed: device rmsnorm cpu.accepts_too_much:kernel, " in " ".join(done.stdout.split())

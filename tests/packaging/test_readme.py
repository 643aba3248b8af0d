# SPDX-License-Identifier: Apache-2.0
"""What the README shows is true: its Python runs, its operators and paths exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.packaging import readme_coverage, readme_performance

from archkey.ops import OPERATORS

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "plugins/README.md",
    "core/README.md",
    "core/docs/bench.md",
    "core/docs/design.md",
    "core/docs/engine.md",
    "core/docs/fla.md",
    "core/docs/flash_mla.md",
    "core/docs/formats.md",
    "core/docs/levels.md",
    "core/docs/prepare.md",
    "core/docs/requirements.md",
    "core/docs/vendor.md",
    "tests/engine_example/README.md",
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_block_runs(root: Path, run_python: Callable[..., str]) -> None:
    (code,) = blocks((root / "README.md").read_text(), "python")
    shown = run_python(code, TRITON_INTERPRET="0")
    assert "chosen:  rocm_gfx950:triton" in shown


def test_the_example_of_the_formats_prints_what_it_shows(
    root: Path, run_python: Callable[..., str]
) -> None:
    text = (root / "core/docs/formats.md").read_text()
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
    assert run_python(code) == shown


def test_the_examples_of_the_rules_hold(root: Path, run_python: Callable[..., str]) -> None:
    text = (root / "core/docs/requirements.md").read_text()
    parts = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    code = "".join(part for language, part in parts if language == "python")
    shown = next(part for language, part in parts if not language)
    assert run_python(code) == shown


def test_the_operators_listed_are_those_there_are(root: Path) -> None:
    text = (root / "README.md").read_text()
    section = text.partition("## Operators")[2].partition("\nEach ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == set(OPERATORS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(root: Path, document: str) -> None:
    path = root / document
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(root: Path, document: str) -> None:
    targets = set(re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE))
    for command in re.findall(r"`?make (\w+)", (root / document).read_text()):
        assert command in targets, command


def test_the_coverage_table_is_what_the_records_say() -> None:
    """A kernel that changed has lost its evidence: `make evidence` examines it again."""
    _, written, _ = readme_coverage.split(readme_coverage.README.read_text())
    assert written == readme_coverage.table()


def test_the_performance_is_what_the_results_say() -> None:
    """`make performance` writes it from the results that were measured; it measures nothing."""
    text = readme_performance.README.read_text()
    _, written, _ = readme_coverage.split(text, readme_performance.BEGIN, readme_performance.END)
    assert written == readme_performance.block(readme_performance.README.parent)


def test_times_are_the_newest_of_their_operator() -> None:
    old = {"started": "2026-11-20", "workloads": [{"operator": "rmsnorm"}, {"operator": "kda"}]}
    new = {"started": "2026-11-21", "workloads": [{"operator": "rmsnorm"}]}
    found = list(readme_performance._newest([old, new]))
    assert found == [new, {**old, "workloads": [{"operator": "kda"}]}]
    assert list(readme_performance._newest([new, old | {"workloads": new["workloads"]}])) == [new]

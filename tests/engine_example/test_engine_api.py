# SPDX-License-Identifier: Apache-2.0
"""The engine uses what archkey documents for everyone, and asks no device whose it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import archkey

HERE = Path(__file__).parent
SOURCES = sorted(p for p in HERE.glob("*.py") if not p.name.startswith(("_", "test_")))
SESSION = {"capabilities", "operators", "pdl", "prepare", "freeze", *archkey.open("cpu").operators}


def name(path: Path) -> str:
    return path.stem


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def test_there_are_sources() -> None:
    assert {p.stem for p in SOURCES} >= {"engine", "graphs", "model", "pool", "scheduler"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports(path: Path) -> None:
    """`import archkey` and nothing below it; the tests' own names and torch beside it."""
    modules = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(str(node.module))
    ours = {module for module in modules if module.partition(".")[0].startswith("archkey")}
    assert ours <= {"archkey"}
    assert not {m for m in modules if m.partition(".")[0] in ("importlib", "triton")}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_names_of_archkey_and_of_a_session(path: Path) -> None:
    for node in nodes(path):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner == "archkey":
            assert node.attr in archkey.__all__
        elif owner in ("session", "self.session"):
            assert node.attr in SESSION
        elif owner.startswith(("session.", "self.session.")):
            assert not node.attr.startswith("_")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_question_about_hardware(path: Path) -> None:
    code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
    asked = r"\bsm_?\d+|gfx\d+|is_cuda|version\.(cuda|hip)|is_available|get_device_|device\.target"
    assert not re.findall(asked, code)
    assert "torch.cuda" not in code or path.stem == "graphs"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 300

# SPDX-License-Identifier: Apache-2.0
"""`archkey prepare`: what it lists, what it compiles, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.checkpoint import _configs

import archkey
from archkey.cli import cli
from archkey.models import problems_for


@pytest.fixture(autouse=True)
def wide_pipe(environ: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ("prepare", *arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def parsed(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def test_the_list_is_that_of_problems_for() -> None:
    options = ("--tp", "8", "--q-len", "4", "--kv-dtype", "fp8", "--page-size", "16")
    found = parsed("-m", "deepseek-v3", *options, "-t", "rocm_gfx942", "--dry-run")
    session = archkey.open("rocm_gfx942")
    expected = problems_for("deepseek-v3", session, tp=8, q_len=4, kv_dtype="fp8", page_size=16)
    rows = [(row["operator"], row["problem"]) for row in found["problems"]]
    assert rows == [
        (p.operator, {n: v for n, v in p._asdict().items() if n != "operator"}) for p in expected
    ]
    assert found["prepared"] is False and found["target"] == "rocm_gfx942"
    assert all(row["programs"] is None for row in found["problems"])


def test_a_reader_sees_what_differs_and_what_is_degraded() -> None:
    out = run("-m", "kimi-linear-48b", "--tp", "8", "-t", "cuda_sm90", "--list").stdout
    assert "kimi-linear-48b on cuda_sm90" in out
    assert "causal=False return_lse=True" in out
    assert "cuda_sm90:triton" in out
    out = run("-m", "kimi-linear-48b", "--tp", "8", "-t", "cuda_sm89", "--list").stdout
    assert "cpu:torch (degraded: no kernel for this target)" in out
    assert out.rstrip().endswith("degraded; not prepared")


def test_degraded_is_an_exit_code_with_strict_alone() -> None:
    asked = ("-m", "deepseek-v3.2", "-t", "cuda_sm89", "--list")
    run(*asked)
    run(*asked, "--strict", code=1)
    run("-m", "llama-3.3-70b", "-t", "cuda_sm90", "--list", "--strict")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("-m", "deepsek-v3"), "did you mean 'deepseek-v3'"),
        (("-m", "deepseek-v3", "--tp", "7"), "tp=7 does not divide 128 heads"),
        (("-m", "deepseek-v3", "-t", "cuda_sm91"), "names no nvidia architecture"),
        (("-m", "deepseek-v3", "--jobs", "0"), "jobs must be 1 or more"),
    ],
)
def test_a_wrong_request_is_exit_code_2(asked: tuple[str, ...], said: str) -> None:
    result = run(*asked, code=2)
    assert said in result.stderr and not result.stdout


def test_a_folder_is_compiled_once_and_then_loaded(tmp_path: Path) -> None:
    """The command itself, with the real compiler."""
    (tmp_path / "config.json").write_text(json.dumps(_configs.LLAMA_8B))
    command = ("-m", "archkey", "prepare", "-m", str(tmp_path), "-t", "cuda_sm90", "--json")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "ARCHKEY_CACHE_DIR": str(tmp_path / "cache"),
    }

    def prepared() -> tuple[Any, str]:
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    first, told = prepared()
    assert "] compiled rmsnorm_body for rmsnorm" in told, "progress, a line a program"
    again, quiet = prepared()
    assert quiet == "", "nothing is compiled, so nothing is told"
    assert again["seconds"] < first["seconds"]
    for document in (first, again):
        rows = document["problems"]
        assert {row["operator"] for row in rows} == {
            *("rmsnorm", "fused_add_rmsnorm", "unified_attention"),
        }
        assert all(row["programs"] and not row["degraded"] for row in rows)
        assert not any(row["error"] for row in rows)

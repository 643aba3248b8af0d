# SPDX-License-Identifier: Apache-2.0
"""`archkey bench --count`: counted on the emulator, beside the least that a workload needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from archkey.bench.count import counted
from archkey.cli import cli
from archkey.errors import Unsupported


def test_count_and_target_go_together() -> None:
    for given in (["--count"], ["--target", "cuda_sm90"]):
        result = CliRunner().invoke(cli, ["bench", *given])
        assert result.exit_code == 2
        assert "--count and --target go together" in result.output


def test_nobody_counts_for_others() -> None:
    with pytest.raises(Unsupported, match="counted for rocm_gfx942, .*; found cuda_sm120"):
        next(counted("cuda_sm120", [], 1))
    with pytest.raises(Unsupported, match="this process interprets"):
        next(counted("cuda_sm90", [], 1))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda_sm100", "rocm_gfx950"])
def test_a_norm_reads_its_rows_once(target: str) -> None:
    """And the weights once a row, which the least does not: 1.5 in all."""
    command = [sys.executable, "-m", "archkey", "bench", "rmsnorm", "--count", "--json"]
    command += ["--target", target, "-w", "deepseek-v3-tp1-t64-hidden*"]
    environ = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["counts"]["loaded"] == 2 * 64 * 7168 * 2
    assert row["counts"]["stored"] == 64 * 7168 * 2
    assert row["bytes of the least"] == pytest.approx(1.5, abs=0.02)
    assert row["flops of the least"] is None

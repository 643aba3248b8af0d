# SPDX-License-Identifier: Apache-2.0
"""Whole Triton kernels, compiled here for AMD's targets and executed, against torch.

Triton lays out registers, LDS and matrix operands by mathematics of its own, so an instruction
that is understood wrongly shows as a wrong product. See `kernels.py` for the bodies.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TARGETS = ("rocm_gfx942", "rocm_gfx950")


@pytest.mark.parametrize("target", TARGETS)
def test_kernels(target: str) -> None:
    """In a process of its own, since it compiles: see tests/conftest.py."""
    command = (sys.executable, "-m", "tests.emulation.small_kernels", target)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == {"rocm_gfx942": 24, "rocm_gfx950": 30}[target]
    wrong = [row for row in rows if "raised" in row or row["error"] > row["allowed"]]
    assert not wrong

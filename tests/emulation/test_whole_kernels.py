# SPDX-License-Identifier: Apache-2.0
"""Whole Triton kernels, compiled here for AMD's targets and executed, against torch.

Triton lays out registers, LDS and matrix operands by mathematics of its own, so an instruction
that is understood wrongly shows as a wrong product. See `small_kernels.py` for the bodies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from archkey.conformance.emulation.driver import driven
from archkey.errors import Unsupported

TARGETS = ("rocm_gfx942", "rocm_gfx950")
COUNTS = {"small_kernels": (24, 30), "gluon_kernels": (1, 2)}
"""Module -> its kernels on either target."""


def _rows(module: str, target: str) -> list[dict[str, Any]]:
    """What a module prints, in a process of its own, since it compiles: see tests/conftest.py."""
    command = (sys.executable, "-m", f"tests.emulation.{module}", target)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("module", "count"), [("small_kernels", (24, 30)), ("gluon_kernels", (1, 2))]
)
def test_kernels(module: str, count: tuple[int, int], target: str) -> None:
    rows = _rows(module, target)
    assert len(rows) == count[TARGETS.index(target)]
    wrong = [row for row in rows if "raised" in row or row["error"] > row["allowed"]]
    assert not wrong


@pytest.mark.parametrize("target", [*TARGETS, "cuda_sm90"])
def test_launches_as_users_write_them(target: str) -> None:
    """Through Triton's just-in-time compiler and a driver that stands in for the card's."""
    (row,) = _rows("driven_kernels", target)
    assert row == "as torch"


def test_only_what_is_emulated_can_be_driven() -> None:
    with pytest.raises(Unsupported, match="no emulator of cuda_sm120"), driven("cuda_sm120"):
        pass

# SPDX-License-Identifier: Apache-2.0
"""Whole Triton kernels, compiled here for both targets and executed as PTX, against torch.

Triton lays out registers, shared and tensor memory by mathematics of its own, so an instruction
that is understood wrongly shows as a wrong product; that this is so, rule by rule, is tested too.
A blind spot: an order of K that is wrong in both operands alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

TARGETS = ("cuda_sm90", "cuda_sm100")
QUICK = (
    *("softmax", "atomics", "bf16, b as it is", "bf16 16 x 16, 1 warp", "attention 64 x 64"),
    *(
        "two workgroups",
        "pow of float64",
        "descriptors, warps specialised",
        "descriptors of the host",
        "Gluon, boxes in and out",
    ),
)


def _run(module: str, *arguments: str) -> list[dict[str, Any]]:
    """In a process of its own, since it compiles: see tests/conftest.py."""
    command = (sys.executable, "-m", f"tests.emulation.{module}", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(rows: list[dict[str, Any]]) -> None:
    wrong = [r for r in rows if "raised" in r or not r["error"] <= r["allowed"] or not r["same"]]
    assert not wrong


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_in_three_orders(target: str) -> None:
    """Late, eager, and warp by warp: right, and the same bytes."""
    names = (*QUICK, "e2m1 x e2m1") if target == "cuda_sm100" else QUICK
    rows = _run("ptx_kernels", target, *names)
    assert len(rows) == len(names)
    _check(rows)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels_in_three_orders(target: str) -> None:
    rows = _run("ptx_kernels", target)
    assert len(rows) == {"cuda_sm90": 55, "cuda_sm100": 67}[target]
    _check(rows)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_each_rule_matters(target: str) -> None:
    """Broken one at a time, each stops a kernel or makes it wrong."""
    rows = _run("ptx_rules", target)
    assert len(rows) == {"cuda_sm90": 28, "cuda_sm100": 35}[target]
    assert not [row["rule"] for row in rows if row["noticed by"] is None]

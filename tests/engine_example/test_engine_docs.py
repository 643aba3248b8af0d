# SPDX-License-Identifier: Apache-2.0
"""The Python of core/docs/engine.md runs, after freeze, and computes attention."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import archkey
from archkey.errors import FrozenError


@pytest.fixture
def page(root: Path) -> dict[str, Any]:
    """What the code blocks define, one after another."""
    names: dict[str, Any] = {}
    for block in re.findall(
        r"```python\n(.*?)```", (root / "core/docs/engine.md").read_text(), re.S
    ):
        exec(block, names)
    return names


@pytest.mark.parametrize(("table", "window"), [("full", 64), ("window", 7)])
def test_verification_of_the_page(page: dict[str, Any], table: str, window: int) -> None:
    torch.manual_seed(0)
    n, lens, rows = page["n"], page["lens"].tolist(), page["rows"].tolist()
    q, out = torch.randn(3 * n, 4, 16), torch.full((3 * n, 4, 16), torch.nan)
    k, v = (torch.full((17, 16, 2, 16), torch.nan) for _ in "kv")
    want = torch.zeros_like(out)
    for i in range(2):
        slots = page["req_to_token"][rows[i], : lens[i] + n].long()
        keys, values = torch.randn(2, len(slots), 2, 16)
        k.flatten(0, 1)[slots], v.flatten(0, 1)[slots] = keys, values
        logits = torch.einsum("qkgd,jkd->kgqj", q[i * n : (i + 1) * n].view(n, 2, 2, 16), keys) / 4
        far = torch.arange(lens[i], lens[i] + n)[:, None] - torch.arange(len(slots))
        logits = logits.masked_fill((far < 0) | (far >= window), -torch.inf)
        mixed = torch.einsum("kgqj,jkd->qkgd", logits.softmax(-1), values)
        want[i * n : (i + 1) * n] = mixed.flatten(1, 2)
    size = (-1, -1) if table == "full" else (window - 1, 0)
    page["verify"](q, k, v, out, size, table)
    torch.testing.assert_close(out, want)


def test_what_the_page_says_of_the_start(page: dict[str, Any]) -> None:
    session = page["session"]
    assert (page["slow"], page["replayable"]) == ([], False)
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(FrozenError):
        session.rmsnorm(x, weight)
    assert archkey.rmsnorm(x, weight).shape == x.shape  # another session

# SPDX-License-Identifier: Apache-2.0
"""Launches that are kept and run again: the emulator stands in for the card here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.emulation.ptx_machine import text

from archkey.conformance.emulation import captured
from archkey.conformance.emulation.counters import counting
from archkey.conformance.emulation.ptx.launcher import launcher

TWICE = (
    *("add.s64 %rd10, %rd0, %rd9;", "add.s64 %rd11, %rd1, %rd9;"),
    *("ld.global.b32 %r50, [%rd10];", "add.f32 %r51, %r50, %r50;"),
    "st.global.b32 [%rd11], %r51;",
)


def _kept(kept: list[captured.Captured], x: torch.Tensor, out: torch.Tensor) -> None:
    compiled = SimpleNamespace(
        program=SimpleNamespace(signature={"x": "*fp32", "out": "*fp32"}),
        kernel=SimpleNamespace(asm={"ptx": text(TWICE, 2)}, metadata=SimpleNamespace()),
        shared_memory_bytes=0,
    )
    run = captured.recording(compiled, launcher(compiled), lambda: "twice", kept)  # type: ignore[arg-type]
    run((1, 1, 1), x, out)


def test_the_same_launch_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[captured.Captured] = []
    x, out = torch.randn(130)[1:129].clone(), torch.zeros(128)
    with counting() as counters:
        _kept(kept, x, out)
    assert torch.equal(out, 2 * x)
    assert (counters.loaded, counters.stored) == (512, 512)
    assert counters.instructions["global"] == 8
    (one,) = kept
    (same,) = captured.compare(one)
    assert same == ("twice", "out", 0, 128, 0.0)
    path = tmp_path / "kept.pt"
    torch.save([vars(one)], path)
    assert captured._compare(path, 1e-3) == 0


def test_a_card_that_wrote_something_else() -> None:
    kept: list[captured.Captured] = []
    _kept(kept, torch.ones(128), torch.zeros(128))
    kept[0].after[1].view(torch.float32)[5] = 3.0
    (other,) = captured.compare(kept[0])
    assert (other.differing, other.argument) == (1, "out")
    assert other.largest == pytest.approx(1 / 3)


def test_without_the_card_nothing_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cuda_sm90 on this machine"):
        captured._record("cuda_sm90", tmp_path / "x", [], 1)

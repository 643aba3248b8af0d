# SPDX-License-Identifier: Apache-2.0
"""The cases of KDA: each wrong kernel fails where it is named."""

from __future__ import annotations

import pytest
import torch
from tests.conformance import _wrong
from tests.conformance._mistakes_kda import MISTAKES
from tests.conformance._wrong import Wrong

import archkey
from archkey.conformance import judge as judging
from archkey.conformance.case import Case
from archkey.conformance.cases.kda.inputs import ChunkKda, Kda, RecurrentKda
from archkey.conformance.judge import judge


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)


@pytest.mark.parametrize(
    ("operator", "call"), [("chunk_kda", ChunkKda), ("fused_recurrent_kda", RecurrentKda)]
)
@pytest.mark.parametrize("last", [256, 300], ids="of the last {}".format)
def test_a_late_drift_does_not_drown(
    operator: str, call: type[Kda], last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.55 % in the last tokens of 2816: neither the whole nor any row is far enough off."""
    case = Case(operator, "a late drift", "2816 tokens", call((2816,), dims=(64, 64), low=-0.1))

    def drift(o: torch.Tensor) -> torch.Tensor:
        o[:, -last:] *= 1.0055
        return o

    assert judge(archkey.open("cpu"), case).passed
    _wrong.put_in_place(monkeypatch, _wrong.stored(o=drift))
    result = judge(archkey.open("cpu"), case)
    assert not result.passed
    assert result.reason == "o: the worst 256 tokens"
    assert result.error == pytest.approx(0.0057, rel=0.05)
    monkeypatch.setattr(judging, "SEQUENTIAL", {})
    assert judge(archkey.open("cpu"), case).passed, "without windows it would pass"

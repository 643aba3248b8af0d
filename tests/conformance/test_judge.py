# SPDX-License-Identifier: Apache-2.0
"""The judge itself: what it calls passed, failed and skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.core import _fakes

import archkey
from archkey.cli import cli
from archkey.conditions import is_
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS
from archkey.ops import rmsnorm as family


def case_of(operator: str, about: str) -> Case:
    return next(case for case in cases_of(OPERATORS[operator]) if about in case.name)


@pytest.fixture
def not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """rmsnorm is a valid request that no device here can serve."""

    def refuse(session: Any, **inputs: Any) -> None:
        raise archkey.Unsupported("rmsnorm: no such unit here")

    monkeypatch.setattr(family, "rmsnorm", family.public(refuse))


@pytest.mark.usefixtures("not_served")
def test_what_the_device_cannot_serve_is_not_run() -> None:
    result = judge(archkey.open("cpu"), case_of("rmsnorm", ""))
    assert (result.passed, result.skipped) == (False, True)
    assert "no such unit here" in result.reason


@pytest.mark.usefixtures("not_served")
def test_demo_says_so_and_does_not_fail() -> None:
    arguments = ["demo", "--target", "cpu", "--operator", "rmsnorm"]
    result = CliRunner().invoke(cli, arguments, prog_name="archkey")
    assert result.exit_code == 0, result.output
    assert "0 passed, 0 failed, 3 not run" in result.stdout
    assert "not run: rmsnorm, DeepSeek-V3: Unsupported: rmsnorm: no such" in result.stdout


def test_a_kernel_that_is_asked_for_and_refuses_is_not_run() -> None:
    refused = case_of("rmsnorm", "fp32")
    session = _fakes.session(
        _fakes.kernel(accepts=(is_("out_dtype", "bfloat16"),)), device=_fakes.card(source="pretend")
    )
    result = judge(session, refused, kernel="fake:fast")
    assert result.skipped
    assert result.reason == "not accepted: out_dtype = bfloat16; found out_dtype = float32"


def test_a_kernel_that_cannot_be_built_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(problem: Any, build: Any) -> Any:
        raise OSError("no such library")

    monkeypatch.setattr(_fakes, "build", build)
    session = _fakes.session(_fakes.kernel(), device=_fakes.card(source="pretend"))
    result = judge(session, case_of("rmsnorm", ""), kernel="fake:fast")
    assert (result.passed, result.skipped) == (False, False)
    assert "no such library" in result.reason


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_empty_call_passes_and_one_that_does_nothing_does_not(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator may skip the launch where nothing is to be computed, and only there."""

    def lazy(session: Any, x: torch.Tensor, weight: Any, eps: float) -> torch.Tensor:
        return torch.zeros_like(x)

    function = family.public(lazy)
    monkeypatch.setattr(family, "rmsnorm", function)
    case = Case("rmsnorm", "", "", lambda make: {"x": make.randn(tokens, 8), "weight": 1, "eps": 1})
    assert judge(archkey.open("cpu"), case).passed is (tokens == 0)

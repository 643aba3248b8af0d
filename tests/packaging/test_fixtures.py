# SPDX-License-Identifier: Apache-2.0
"""What tests/conftest.py gives every test does what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import archkey
from archkey import session
from archkey._torch import torch as archkeys_torch
from archkey.settings import settings


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e8m0fnu]
)
def test_an_output_that_nobody_wrote_is_nan(dtype: torch.dtype) -> None:
    tensor = archkeys_torch.empty((2, 3), dtype=dtype, device="cpu")
    assert tensor.float().isnan().all()


def test_a_whole_call_writes_what_archkey_allocated() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert archkey.rmsnorm(x, torch.ones(64), 1e-6).isfinite().all()


def test_settings_of_a_test_stay_in_it(environ: Callable[..., None]) -> None:
    first = session.session_of(torch.device("cpu"))
    environ(ARCHKEY_STRICT="1")
    assert settings().strict
    assert session.session_of(torch.device("cpu")) is not first


def test_and_are_gone_afterwards() -> None:
    assert not settings().strict

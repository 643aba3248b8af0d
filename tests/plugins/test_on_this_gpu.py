# SPDX-License-Identifier: Apache-2.0
"""The exam's cases on the GPU of this machine, against the reference in float64: `make gpu`."""

from __future__ import annotations

import pytest
import torch

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import CASES
from archkey.conformance.judge import judge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operator}: {case.label}")
def test_case(case: Case) -> None:
    result = judge(archkey.open("cuda:0"), case)
    assert result.passed, f"{result.kernel}: {result.error} > {result.tolerance} {result.reason}"

# SPDX-License-Identifier: Apache-2.0
"""FlashMLA as a kernel of `cuda_sm90`: the exam's cases, with a stand-in for the library.

The stand-in asserts what the library's own checks do, and answers in its conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.bench import _standins_mla
from tests.bench._standins import installed

import archkey
import archkey.session
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.cases.mla.inputs import Decode
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.spec import describe
from archkey.conformance.judge import judge
from archkey.errors import Unsupported
from archkey.ops import OPERATORS
from archkey.selection import Code

VERSIONS = {"flash_mla": "1.0.0+9241ae3", "vllm": "0.26.0"}
KERNELS = ("flash_mla", "vllm_flash_mla")
OPS = ("mla_decode", "sparse_mla_decode", "sparse_mla_prefill")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[archkey.Session]:
    """Of a Hopper with both distributions."""
    real = archkey.session.installed_versions
    monkeypatch.setattr(
        archkey.session, "installed_versions", lambda names: {**real(names), **VERSIONS}
    )
    with installed({**_standins_mla.FLASH_MLA, **_standins_mla.VLLM_FLASHMLA}):
        yield archkey.open("cuda_sm90")


def edges(operator: str) -> list[Case]:
    return [case for case in cases_of(OPERATORS[operator]) if case.edge and case.again is None]


@pytest.mark.parametrize("operator", OPS)
def test_edges_of_the_exam(session: archkey.Session, operator: str) -> None:
    wrong, served = [], 0
    for case in edges(operator):
        result = judge(session, case, kernel="cuda_sm90:flash_mla", runs=1)
        served += result.passed
        if not (result.passed or result.skipped):
            wrong.append(f"{case.name}: {result.reason} {result.error}")
    assert not wrong
    assert served >= {"mla_decode": 10}.get(operator, 40)


_M = SparseDecode(16, 3, 70, "fp8_model1", q_len=2, width=512)
_P = SparsePrefill(64, 5, 150)
CALLS = (
    *(
        ("sparse_mla_decode", call)
        for call in (
            replace(_M, lists="empty", sink="inf"),
            replace(_M, lists="empty rows", sink="inf", extra_k=33),
            replace(_M, length="row", lists="holes", extra_k=65, extra_length="batch"),
            replace(_M, length="batch", extra_k=64, extra_length="row", sink="inf"),
            replace(_M, heads=65, page=1, blocks=9, q_len=1),
            replace(_M, heads=64, k=64, gap=16, out="bf16"),
            replace(_M, heads=128, k=128, gap=3 * 576, lists="tail", lse="head-major"),
            SparseDecode(128, 2, 64, q_len=3, length="row", lists="holes"),
            SparseDecode(7, 2, 65, length="batch", sink="finite", page=48, blocks=3),
            SparseDecode(16, 2, 40, blocks=2, far="kv_cache"),
        )
    ),
    *(
        ("sparse_mla_prefill", call)
        for call in (
            replace(_P, k=128, length=True, lists="empty rows", sink="inf"),
            replace(_P, heads=70, length=True, lists="holes", sink="inf", out="bf16"),
            replace(_P, form="paged", page=48, blocks=3, lists="tail", lse="head-major"),
            replace(_P, form="paged", page=48, blocks=3, gap=16, width=512, head_dim_v=448),
            replace(_P, heads=128, blocks=2, far="kv"),
        )
    ),
    ("mla_decode", Decode(16, (100, 64, 0), 3, page=64)),
    ("mla_decode", Decode(9, (1, 200), 4, dtype="fp16", page=64, lse="head-major")),
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("operator", "call"), CALLS, ids=lambda x: x if isinstance(x, str) else describe(x))
def test_calls(session: archkey.Session, kernel: str, operator: str, call: Any) -> None:
    case = Case(operator, "", describe(call), call)
    result = judge(session, case, kernel=f"cuda_sm90:{kernel}", runs=2)
    assert result.passed, result

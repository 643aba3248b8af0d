# SPDX-License-Identifier: Apache-2.0
"""FlashMLA as a kernel of `cuda_sm90`: the exam's cases, with a stand-in for the library.

The stand-in asserts what the library's own checks do, and answers in its conventions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tests.bench import _standins_mla
from tests.bench._standins import installed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import archkey
import archkey.session
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.cases.mla.inputs import Decode
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.spec import describe
from archkey.conformance.judge import judge
from archkey.errors import Unsupported
from archkey.integrations import flash_mla as stand_in
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


def label(value: Any) -> str:
    return value if isinstance(value, str) else describe(value)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("operator", "call"), CALLS, ids=label)
def test_calls(session: archkey.Session, kernel: str, operator: str, call: Any) -> None:
    case = Case(operator, "", describe(call), call)
    result = judge(session, case, kernel=f"cuda_sm90:{kernel}", runs=2)
    assert result.passed, result


def test_caches_without_a_block(session: archkey.Session) -> None:
    """The library reads slot 0 for an entry of -1, so there has to be one."""
    q = torch.ones(2, 1, 16, 576, dtype=torch.bfloat16)
    bytes_, lists = torch.empty(0, 64, 656, dtype=torch.uint8), torch.zeros(2, 1, 3).int()
    lengths = torch.zeros(2, dtype=torch.int32)
    scale: dict[str, Any] = {"softmax_scale": 0.1, "return_lse": True}
    with archkey.override(**dict.fromkeys(OPS, "flash_mla")):
        results = [
            session.sparse_mla_decode(q, bytes_, lists, kv_format="fp8_v32", **scale),
            session.sparse_mla_prefill(q[:, 0], q[:0, 0, 0], lists[:, 0], **scale),
            *(
                session.mla_decode(q, q.new_empty(n, 64, 576), lists[:, 0, :m], lengths, **scale)
                for n, m in ((0, 3), (2, 0))
            ),
        ]
    for out, *stats in results:
        assert bool((out == 0).all()) and all(bool((s == -math.inf).all()) for s in stats)


def empty_decode(q: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    batch, q_len, heads, _ = q.shape
    lse = q.new_empty(batch, heads, q_len, dtype=torch.float32)
    return q.new_empty(batch, q_len, heads, 512), lse


def empty_prefill(q: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    stat = q.new_empty(q.shape[:2], dtype=torch.float32)
    return q.new_empty(*q.shape[:2], 512), stat, stat


def test_nothing_waits_for_the_device(
    session: archkey.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values: what asks for one, which a graph's capture forbids, raises here."""
    library = sys.modules["flash_mla"]
    monkeypatch.setattr(library, "flash_mla_with_kvcache", empty_decode)
    monkeypatch.setattr(library, "flash_mla_sparse_fwd", empty_prefill)

    def bound(operator: str, **fields: Any) -> Any:
        problem = session.operators[operator].problem(**fields)
        return session.plan(problem, kernel="flash_mla").run

    bf16 = {"dtype": "bfloat16", "out_dtype": "bfloat16", "heads": 16}
    dense = bound("mla_decode", kv_dtype="bfloat16", **bf16)
    decode = bound("sparse_mla_decode", kv_format="fp8_model1", topk=70, extra_topk=33, **bf16)
    prefill = bound("sparse_mla_prefill", kv_format="bf16", topk=70, **bf16)
    with FakeTensorMode():
        new = partial(torch.empty, dtype=torch.bfloat16)
        ints = partial(torch.empty, dtype=torch.int32)
        sinks, lse = torch.empty(16), torch.empty(6, 16)
        q, out = new(3, 2, 16, 576), new(3, 2, 16, 512)
        cache = new(9, 64, 576)
        dense(q, cache, ints(3, 4), ints(3), None, 2, 256, None, None, 0.1, 512, True, -1, 0, False,
              out, lse)  # fmt: skip
        packed = torch.empty(9, 64, 584, dtype=torch.uint8)
        decode(new(3, 2, 16, 512), packed, ints(3, 2, 70), ints(6), sinks, packed, ints(3, 2, 33),
               ints(3), 0.1, 512, "fp8_model1", False, out, lse)  # fmt: skip
        prefill(new(6, 16, 576), cache, ints(6, 70), ints(6), sinks, 0.1, 512, "bf16", False,
                new(6, 16, 512), lse, lse)  # fmt: skip


def test_ours_come_first_and_an_override_chooses_it(session: archkey.Session) -> None:
    problem = OPERATORS["mla_decode"].examples["DeepSeek-V3 TP1"]
    assert session.decide(problem).chosen.plugin == "cuda_sm90"  # type: ignore[union-attr]
    order = [kernel.name for kernel in session.kernels("mla_decode")]
    assert order[-3:] == ["flash_mla", "vllm_flash_mla", "torch"]
    with archkey.override(mla_decode="flash_mla"):
        assert session.plan(problem).decision.chosen.name == "flash_mla"  # type: ignore[union-attr]


@pytest.mark.parametrize("operator", OPS)
def test_without_the_library_it_is_a_reason_and_no_error(operator: str) -> None:
    session = archkey.open("cuda_sm90")
    problem = next(p for p in OPERATORS[operator].examples.values() if p.heads == 128)
    reasons = {r.kernel: r for r in session.decide(problem).rejected}
    for name, package in zip(KERNELS, VERSIONS, strict=True):
        mine = reasons[f"cuda_sm90:{name}"]
        assert (mine.code, mine.found) == (Code.REQUIREMENT, f"{package} not installed")
    with pytest.raises(Unsupported, match="flash_mla not installed"):
        session.plan(problem, kernel="flash_mla")


def test_another_vllm_is_another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"vllm": "0.27.1", "flash_mla": "1.0.0+9241ae3"}
    monkeypatch.setattr(archkey.session, "installed_versions", lambda names: found)
    session = archkey.open("cuda_sm90")
    problem = OPERATORS["sparse_mla_decode"].examples["GLM-5 TP1"]
    assert session.decide(problem, kernel="flash_mla").chosen
    assert session.decide(problem, kernel="vllm_flash_mla").chosen is None


OLD = {**_standins_mla.INTERFACE, "get_mla_metadata": lambda lengths, heads, kv_heads: None}
OURS = {name: getattr(stand_in, name) for name in _standins_mla.INTERFACE}


@pytest.mark.parametrize(
    ("interface", "why"), [(OLD, "missing 3 required"), (OURS, "stands in the place")]
)
def test_what_is_not_this_interface_is_not_built(
    session: archkey.Session, interface: dict[str, Any], why: str
) -> None:
    """An old release, and archkey's own functions under that name."""
    problem = OPERATORS["sparse_mla_decode"].examples["GLM-5 TP1"]
    with installed({"flash_mla": interface}), pytest.raises(Unsupported) as refused:
        session.plan(problem, kernel="flash_mla")
    (mine,) = [r for r in refused.value.decision.rejected if r.kernel == "cuda_sm90:flash_mla"]
    assert mine.code is Code.BUILD and why in mine.found

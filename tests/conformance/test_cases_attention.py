# SPDX-License-Identifier: Apache-2.0
"""The cases of attention: the reference passes them, and each wrong kernel fails where it is named.

The judge has the reference as truth in float64; a right kernel is the reference in float32.
"""

from __future__ import annotations

import resource
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance._wrong import Wrong, catching, edges, name_of, put_in_place
from tests.conformance._wrong import given as with_arguments
from tests.conformance._wrong_attention import (
    ATTENTION,
    RAGGED,
    REQUESTS,
    TABLES,
    only_decode,
)

import archkey
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases import random_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS
from archkey.session import Session

NAMES = ("ragged_kv_indices_to_page_table", "req_to_token_to_page_table")
FAMILY = ("unified_attention", *NAMES)
WRONG = (
    *(("unified_attention", *row) for row in ATTENTION),
    *((name, *row) for name in NAMES for row in TABLES),
    *((NAMES[0], *row) for row in RAGGED),
    *((NAMES[1], *row) for row in REQUESTS),
)


@pytest.fixture(scope="module")
def checking() -> Session:
    """A session that looks at values, too: the cases are valid calls."""
    session = archkey.open("cpu")
    session.validate = True
    return session


def test_names_are_unique() -> None:
    names = Counter(name_of(case) for case in edges(*FAMILY))
    assert names.most_common(1)[0][1] == 1


@pytest.mark.parametrize("case", edges(*FAMILY), ids=name_of)
def test_the_reference_passes(case: Case, checking: Session) -> None:
    result = judge(checking, case)
    assert result.passed, result


def test_the_reference_passes_with_the_other_fp8() -> None:
    session = archkey.open("rocm_gfx942")
    for case in edges("unified_attention"):
        if "fp8" in case.label:
            result = judge(session, case)
            assert result.passed, result


@pytest.mark.parametrize("operator", FAMILY)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_random_calls_of_the_reference_pass(operator: str, checking: Session, data: Any) -> None:
    result = judge(checking, data.draw(random_of(OPERATORS[operator])))
    assert result.passed, result


def test_far_cases_take_no_memory() -> None:
    session = archkey.open("cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    far = [case for case in edges(*FAMILY) if case.name.startswith("far ")]
    assert len(far) > 30
    for case in far:
        assert judge(session, case).passed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize(
    ("operator", "mistake", "about", "wrong"),
    WRONG,
    ids=[f"{operator}: {mistake} - {about}" for operator, mistake, about, _ in WRONG],
)
def test_a_wrong_kernel_fails_by_name(
    operator: str, mistake: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catching(monkeypatch, operator, wrong, about)


# ---- decode alone, and in a mixed batch


def named(about: str) -> list[Case]:
    cases = [case for case in edges("unified_attention") if case.model == about]
    assert cases
    return cases


def test_decodes_are_the_same_numbers_alone_and_in_a_mixed_batch() -> None:
    session = archkey.open("cpu")
    for alone, mixed in zip(named("decode alone"), named("decode in a mixed batch"), strict=True):
        calls = [case.inputs(Maker()) for case in (alone, mixed)]
        rows, others = (call["q"].shape[0] for call in calls)
        assert rows < others
        for call in calls:
            session.unified_attention(**call)
        for name in ("out", "lse"):
            one, other = (call[name][:rows].float() for call in calls)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_bound_of_queries_changes_no_numbers() -> None:
    plain = [case for case in named("equal results under every bound") if "sinks" not in case.label]
    calls = [case.inputs(Maker()) for case in plain]
    assert len({call["max_seqlen_q"] for call in calls}) > 3
    for call in calls[1:]:
        assert torch.equal(call["q"], calls[0]["q"])
        archkey.unified_attention(**call)
    archkey.unified_attention(**calls[0])
    for call in calls[1:]:
        assert torch.equal(call["out"], calls[0]["out"])


def test_what_is_wrong_of_decodes_alone_is_seen_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_in_place(monkeypatch, only_decode(with_arguments(window_left=-1)))
    session = archkey.open("cpu")
    assert not all(judge(session, case).passed for case in named("decode alone"))
    assert all(judge(session, case).passed for case in named("decode in a mixed batch"))

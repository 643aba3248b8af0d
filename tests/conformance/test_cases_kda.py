# SPDX-License-Identifier: Apache-2.0
"""The cases of KDA: the reference passes them, and each wrong kernel fails where it is named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance import _wrong
from tests.conformance._kda_mistakes import FAMILY, MISTAKES
from tests.conformance._wrong import Wrong, edges, name_of

import archkey
from archkey.conformance.cases import random_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS


def test_names_are_unique() -> None:
    names = Counter(name_of(case) for case in edges(*FAMILY))
    assert names.most_common(1)[0][1] == 1


@pytest.mark.parametrize("operator", FAMILY)
def test_the_reference_passes(operator: str) -> None:
    session = archkey.open("cpu")
    for case in edges(operator):
        result = judge(session, case)
        assert result.passed, result


@pytest.mark.parametrize("operator", FAMILY)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_random_calls_of_the_reference_pass(operator: str, data: Any) -> None:
    result = judge(archkey.open("cpu"), data.draw(random_of(OPERATORS[operator])))
    assert result.passed, result


def test_a_far_case_takes_little_memory() -> None:
    """Its tensors span gigabytes; what is touched is a page for each row."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session = archkey.open("cpu")
    for case in [case for case in edges(*FAMILY) if "past element 2^31" in case.name]:
        assert judge(session, case).passed
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 * 1024  # [KiB]


@pytest.mark.parametrize(
    ("operator", "about", "wrong"),
    [
        pytest.param(op, about, wrong, id=f"{op}-{what}-{about}")
        for op, what, about, wrong in MISTAKES
    ],
)
def test_a_wrong_kernel_fails_by_name(
    monkeypatch: pytest.MonkeyPatch, operator: str, about: str, wrong: Wrong
) -> None:
    assert _wrong.catching(monkeypatch, operator, wrong, about)

# SPDX-License-Identifier: Apache-2.0
"""The cases of all operators: what each must have, and that the reference passes all of them.

The judge has the reference as truth in float64; a right kernel is the reference in float32.
"""

from __future__ import annotations

import resource
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from tests.conformance import _wrong
from tests.conformance._wrong import edges, name_of

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of, random_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS
from archkey.session import Session

EDGES = edges(*OPERATORS)

FP8_UNSAID = ("sparse_mla_decode", "quantize_sparse_kv", "dequantize_sparse_kv")
"""Operators whose calls have FP8 if they say nothing else; the others' labels have its name."""

EXAMPLES = {"rmsnorm_quant": 50}
"""Random calls, since it is five operators in one; of the others 25."""


@pytest.fixture(scope="module")
def session() -> Session:
    """A session that looks at values, too: the cases are valid calls."""
    session = archkey.open("cpu")
    session.validate = True
    return session


@pytest.mark.parametrize("operator", OPERATORS)
def test_names_are_unique(operator: str) -> None:
    names = Counter(case.name for case in cases_of(OPERATORS[operator]))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_models_edges_far_and_random_cases(operator: str) -> None:
    cases = cases_of(OPERATORS[operator])
    assert [case for case in cases if not case.edge]
    assert len([case for case in cases if case.edge]) > 10
    assert [case for case in cases if case.edge and case.model.startswith("far ")]
    assert random_of(OPERATORS[operator]) is not None


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_promise_of_the_same_bits_has_cases(operator: str) -> None:
    """And only where it is made; of every size."""
    promised = "batch_invariant" in OPERATORS[operator].problem._fields
    again = [case for case in cases_of(OPERATORS[operator]) if case.again]
    assert {case.large for case in again} == ({False, True} if promised else set())


def test_a_label_of_an_edge_is_its_fields() -> None:
    """`name=value`, or the name of a flag: as `spec.describe` writes it."""
    assert [case.name for case in EDGES if not case.label.partition("=")[0].isidentifier()] == []


@pytest.mark.parametrize("case", EDGES, ids=name_of)
def test_the_reference_passes(case: Case, session: Session) -> None:
    result = judge(session, case)
    assert result.passed, result


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_reference_passes_with_the_other_fp8(operator: str) -> None:
    session = archkey.open(_wrong.FLAVOURS["e4m3fnuz"])
    for case in edges(operator):
        if operator in FP8_UNSAID or "fp8" in case.name.lower() or "mxfp4" in case.label:
            result = judge(session, case, kernel=_wrong.REFERENCE)
            assert result.passed, result
    if operator == "rmsnorm_quant":  # its codes are not in the inputs
        assert {p.out_dtype for p in session.problems.values()} == {"float8_e4m3fnuz", "uint8"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_random_calls_of_the_reference_pass(operator: str, session: Session) -> None:
    @settings(
        max_examples=EXAMPLES.get(operator, 25),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(random_of(OPERATORS[operator]))
    def check(case: Case) -> None:
        result = judge(session, case)
        assert result.passed, (case.name, result)

    check()


def test_far_cases_take_little_memory() -> None:
    """Their tensors span gigabytes; what lies between their rows is never touched."""
    session = archkey.open("cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in EDGES:
        if case.model.startswith("far "):
            assert judge(session, case).passed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # [KiB]


def test_the_scaffold_of_wrong_kernels_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise any mistake would be seen."""
    _wrong.put_in_place(monkeypatch, _wrong.given())
    session = archkey.open("cpu")
    assert [case.name for case in EDGES[::29] if not judge(session, case).passed] == []

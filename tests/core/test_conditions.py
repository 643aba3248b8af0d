# SPDX-License-Identifier: Apache-2.0
"""Conditions: they never raise when they are asked, and nonsense is refused when written."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archkey.conditions import Condition, at_least, at_most, is_, multiple_of, one_of

FOUND = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.tuples(st.integers())
)


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        (is_("pdl", True), [True], [False, None]),
        (is_("dtype", "bfloat16"), ["bfloat16"], ["bfloat", "float16", None]),
        (one_of("dtype", ["float16", "bfloat16"]), ["float16"], ["float", "float32", None]),
        (at_most("width", 512), [512, 0, -1], [513, None, "1", True]),
        (at_least("bytes", 1024), [1024, 4096], [1023, None, "9999"]),
        (at_most("batch", 0), [0], [1]),
        (multiple_of("width", 16), [0, 16, 512], [8, None, "%16", True]),
    ],
    ids=str,
)
def test_holds(condition: Condition, yes: list[Any], no: list[Any]) -> None:
    assert [v for v in yes if not condition.holds(v)] == []
    assert [v for v in no if condition.holds(v)] == []


@given(found=FOUND, relation=st.sampled_from(["is", "at most", "at least", "multiple of"]))
def test_whatever_is_found_the_answer_is_yes_or_no(found: Any, relation: str) -> None:
    """A condition is asked while a kernel is chosen: one that raises would end the choice."""
    assert type(Condition("width", relation, 16).holds(found)) is bool
    assert type(one_of("width", (1, "a", None)).holds(found)) is bool


@pytest.mark.parametrize(
    ("relation", "value"),
    [
        ("equals", 3),
        ("one of", "bfloat16"),  # would hold for "float" as a part, or for no dtype at all
        ("one of", ["bfloat16"]),  # a list could change later
        ("at most", "512"),
        ("at least", None),
        ("multiple of", 0),
        ("multiple of", True),
    ],
    ids=repr,
)
def test_nonsense_is_refused_when_written(relation: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="relation|takes|multiple"):
        Condition("width", relation, value)


def test_one_of_does_not_take_a_word_apart() -> None:
    with pytest.raises(TypeError, match="dtype: 'one of' takes a tuple, found 'bfloat16'"):
        one_of("dtype", "bfloat16")


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (is_("pdl", True), "pdl = True"),
        (one_of("dtype", ["a", "b"]), "dtype one of {a, b}"),
        (at_most("width", 512), "width <= 512"),
        (at_least("width", 512), "width >= 512"),
        (multiple_of("width", 16), "width a multiple of 16"),
    ],
)
def test_it_reads_as_a_sentence(condition: Condition, text: str) -> None:
    assert str(condition) == text


def test_conditions_are_values() -> None:
    condition = one_of("dtype", ["a"], "because")
    assert condition == pickle.loads(pickle.dumps(condition))
    assert len({condition, one_of("dtype", ("a",), "because")}) == 1

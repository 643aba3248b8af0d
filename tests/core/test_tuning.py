# SPDX-License-Identifier: Apache-2.0
"""Tuning tables: every problem gets a row, the most special one first."""

from __future__ import annotations

import pytest
from packaging.specifiers import InvalidSpecifier
from tests.core._fakes import Toy

from archkey.conditions import at_most, is_
from archkey.tuning import Row, Table


def test_the_first_row_that_fits() -> None:
    table = Table(
        (
            Row(1, (is_("dtype", "float32"), at_most("width", 256))),
            Row(2, (at_most("width", 256),)),
            Row(3),
        )
    )
    widths = [("float32", 256), ("bfloat16", 256), ("float32", 257)]
    assert [table.lookup(Toy(*w), {}).values for w in widths] == [1, 2, 3]


def test_a_row_for_a_range_of_triton() -> None:
    table = Table((Row(1, triton=">=3.7"), Row(2)))
    assert table.lookup(Toy(), {"triton": "3.7.0.dev1"}).values == 1
    assert table.lookup(Toy(), {"triton": "3.6.0"}).values == 2
    assert table.lookup(Toy(), {}).values == 1, "without Triton nothing speaks against the row"


@pytest.mark.parametrize(
    "rows",
    [(), (Row(1, (at_most("width", 1),)),), (Row(1, triton=">=3.7"),)],
    ids=["empty", "condition", "triton"],
)
def test_a_table_ends_with_a_row_for_everything(rows: tuple[Row, ...]) -> None:
    with pytest.raises(ValueError, match="ends with a row that has no condition"):
        Table(rows)


def test_a_table_holds_one_type_of_values() -> None:
    with pytest.raises(ValueError, match="one type of values, not int, str"):
        Table((Row("a", (at_most("width", 1),)), Row(1)))


def test_a_bad_range_is_refused_when_written() -> None:
    with pytest.raises(InvalidSpecifier):
        Row(1, triton="3.7 and up")

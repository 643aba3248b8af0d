# SPDX-License-Identifier: Apache-2.0
"""The page-table builders on the CPU: results, problems and refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.core._attention import TYPE, VALUE, Recorder, request_inputs, table_inputs

from archkey.errors import ArgumentValueError
from archkey.ops.page_table import ragged_kv_indices_to_page_table, req_to_token_to_page_table


@pytest.mark.parametrize("fill_tail", [True, False], ids=["fill", "keep"])
def test_page_tables_are_written_in_place(fill_tail: bool) -> None:
    rest = 0 if fill_tail else 7
    for function, values in (
        (ragged_kv_indices_to_page_table, table_inputs()),
        (req_to_token_to_page_table, request_inputs()),
    ):
        table, swa = function(**values, fill_tail=fill_tail)
        assert table is values["page_table"] and swa is values["swa_page_table"]
        assert table.tolist() == [[2, 5, rest], [1, rest, rest], [7, 7, 7]]
        assert swa.tolist() == [[3, 6, rest], [2, rest, rest], [7, 7, 7]]


def test_page_table_problems() -> None:
    session = Recorder()
    ragged_kv_indices_to_page_table.__wrapped__(session, **table_inputs())
    assert session.problem[:5] == ("int32", "int32", 4, True, True)
    one = table_inputs(swa_page_table=None, full_to_swa=None)
    ragged_kv_indices_to_page_table.__wrapped__(session, **one)
    assert not session.problem.swa
    req_to_token_to_page_table.__wrapped__(session, **request_inputs())
    assert session.problem[:6] == ("int32", "int64", "int32", 4, True, True)


TABLE_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "indices float": ({"kv_indices": torch.zeros(7)}, TYPE, "kv_indices must be int32 or int64"),
    "indices 2-D": ({"kv_indices": torch.zeros(7, 1).int()}, VALUE, "kv_indices must be of shape"),
    "table int64": ({"page_table": torch.zeros(3, 3).long()}, TYPE, "page_table must be int32"),
    "table short": ({"page_table": torch.zeros(1, 3).int()}, VALUE, "[>= 2, columns]"),
    "page 3": ({"page_size": 3}, VALUE, "page_size must be a power of two"),
    "half a window": ({"full_to_swa": None}, VALUE, "full_to_swa must be given"),
    "map int32": ({"full_to_swa": torch.arange(24).int()}, TYPE, "full_to_swa must be int64"),
    "other width": (
        {"swa_page_table": torch.zeros(3, 4).int()},
        VALUE,
        "swa_page_table must be of shape [3, 3]",
    ),
}


@pytest.mark.parametrize(("changes", "error", "text"), TABLE_REFUSALS.values(), ids=TABLE_REFUSALS)
def test_page_table_refusals(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        ragged_kv_indices_to_page_table(**table_inputs(**changes))
    if "kv_indices" not in changes:
        with pytest.raises(error, match=re.escape(text)):
            req_to_token_to_page_table(**request_inputs(**changes))


ragged, requested = ragged_kv_indices_to_page_table, req_to_token_to_page_table
TABLE_VALUES = {
    "indptr": (ragged, table_inputs(kv_indptr=torch.tensor([0, 5, 9])), "kv_indptr"),
    "ragged width": (ragged, table_inputs(page_size=1), "page_table"),
    "pool index": (requested, request_inputs(req_pool_indices=torch.tensor([3, 4])), "rows of"),
    "tokens": (requested, request_inputs(num_draft_tokens=6), "req_to_token"),
    "request width": (requested, request_inputs(page_size=1), "page_table"),
}


@pytest.mark.parametrize(("function", "values", "text"), TABLE_VALUES.values(), ids=TABLE_VALUES)
def test_page_table_values(function: Any, values: dict[str, Any], text: str) -> None:
    function.__wrapped__(Recorder(), **values)
    with pytest.raises(ArgumentValueError, match=text):
        function.__wrapped__(Recorder(validate=True), **values)

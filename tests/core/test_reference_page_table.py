# SPDX-License-Identifier: Apache-2.0
"""The references of the page-table builders against a loop, and in front of attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.core._attention_batch import GARBAGE, make_batch

from archkey.reference import attention as reference


def pages_by_loop(
    slots: list[list[int]],
    table: torch.Tensor,
    page_size: int,
    to_swa: list[int] | None,
    fill: bool,
) -> np.ndarray:
    want = table.numpy().copy()
    for i, row in enumerate(slots):
        for b in range(want.shape[1]):
            if b * page_size < len(row):
                slot = row[b * page_size]
                if slot >= 0 and to_swa is not None:
                    slot = to_swa[slot]
                want[i, b] = max(slot, 0) // page_size
            elif fill:
                want[i, b] = 0
    return want


@pytest.mark.parametrize("fill_tail", [True, False], ids=["fill", "keep"])
@pytest.mark.parametrize("page_size", [1, 4, 16], ids=lambda n: f"page{n}")
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_page_table_builders(page_size: int, fill_tail: bool, index_dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(page_size)
    draft = 3
    lengths = [9, 0, 16, 5]  # with the draft tokens 12, 3, 19, 8
    slots: list[list[int]] = []
    for n in lengths:
        firsts = torch.randperm(64, generator=g)[: -(-(n + draft) // page_size)] * page_size
        row = [int(f) + o for f in firsts for o in range(page_size)][: n + draft]
        slots.append(row)
    slots[2][0] = slots[3][-1] = -1  # padding: Triton and torch floor -1 // 16 differently
    to_swa = torch.randperm(64 * page_size, generator=g)
    to_swa[slots[0][0]] = -1  # evicted
    width = 24
    big = torch.full((6, 2 * width), 77, dtype=torch.int32)
    table, swa = big[:, :width], big[:, width:]

    indices = torch.tensor([s for row in slots for s in row], dtype=index_dtype)
    indptr = torch.tensor([0, *np.cumsum([len(r) for r in slots])], dtype=torch.int32)
    requests = torch.full((9, 40), -7, dtype=torch.int32)[:, :32]
    rows = [5, 0, 8, 2]
    for r, row in zip(rows, slots, strict=True):
        requests[r, : len(row)] = torch.tensor(row, dtype=torch.int32)
    got = [
        reference.ragged_kv_indices_to_page_table(
            indices, indptr, table, swa, to_swa, page_size=page_size, fill_tail=fill_tail
        ),
        reference.req_to_token_to_page_table(
            requests, torch.tensor(rows), torch.tensor(lengths).int(), table, swa, to_swa,
            page_size=page_size, num_draft_tokens=draft, fill_tail=fill_tail,
        ),
    ]  # fmt: skip
    want = pages_by_loop(slots, table, page_size, None, fill_tail)
    want_swa = pages_by_loop(slots, swa, page_size, to_swa.tolist(), fill_tail)
    for full, window in got:
        assert window is not None and full.dtype == window.dtype == torch.int32
        np.testing.assert_array_equal(full.numpy(), want)
        np.testing.assert_array_equal(window.numpy(), want_swa)
    assert (big == 77).all()


def test_page_table_feeds_attention() -> None:
    """Token slots -> page table -> the same attention, with an EAGLE batch of 4 draft tokens."""
    batch = make_batch([(4, 14), (4, 9)], page_size=4)
    table = batch.block_table
    slots = [
        [int(table[i, j // 4]) * 4 + j % 4 for j in range(n)]
        for i, n in enumerate(batch.seqused_k.tolist())
    ]
    indices = torch.tensor([s for row in slots for s in row])
    indptr = torch.tensor([0, 14, 23])
    stale = torch.full((3, 6), GARBAGE, dtype=torch.int32)
    built, none = reference.ragged_kv_indices_to_page_table(indices, indptr, stale, page_size=4)
    assert none is None
    want = batch.run()
    batch.block_table = built[:2]
    for got, expected in zip(batch.run(), want, strict=True):
        np.testing.assert_array_equal(got, expected)

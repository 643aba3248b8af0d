# SPDX-License-Identifier: Apache-2.0
"""Triton bodies of the page-table operators: slots of a ragged list, or of each request's row.

A program fills BLOCK columns of one sequence, of both tables where there are two. What it needs
to know of a sequence it reads itself, so a graph that replays it follows the lengths of the day.
The two bodies differ in where a sequence's slots begin and how many there are.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["ragged_kv_indices_body", "req_to_token_body"]


@triton.jit
def _page_of(slot, PAGE: tl.constexpr):
    """Page of each slot; 0 of a negative one, which `//` would round towards zero."""
    return (tl.maximum(slot, 0) // PAGE).to(tl.int32)


@triton.jit
def _fill(
    slots,  # where this sequence's slots begin
    tokens,  # of this sequence, int64
    row,  # int64
    page_table,
    swa_page_table,
    full_to_swa,
    columns,
    page_table_stride,
    swa_page_table_stride,
    PAGE: tl.constexpr,
    FILL_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill BLOCK columns of a row of the tables."""
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    written = column < columns
    live = written & (column * PAGE < tokens)
    if not FILL_TAIL:
        written = live
    # The tail is taken for padding: a negative slot is page 0, and is not looked up.
    slot = tl.load(slots + column * PAGE, live, other=-1)
    tl.store(page_table + row * page_table_stride + column, _page_of(slot, PAGE), written)
    if swa_page_table is not None:
        swa_slot = tl.load(full_to_swa + slot.to(tl.int64), slot >= 0, other=-1)
        swa_row = swa_page_table + row * swa_page_table_stride
        tl.store(swa_row + column, _page_of(swa_slot, PAGE), written)


@triton.jit
def ragged_kv_indices_body(
    kv_indices,  # [tokens]
    kv_indptr,  # [B + 1]
    page_table,  # [>= B, columns], last stride 1
    swa_page_table,  # like page_table, or None
    full_to_swa,  # [slots], or None
    columns,
    page_table_stride,  # [elements] from row to row
    swa_page_table_stride,
    PAGE: tl.constexpr,  # a power of two
    FILL_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,  # columns of a program, a power of two
):
    """Grid (B, ceil(columns / BLOCK)); see `archkey.ops.page_table`."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(kv_indptr + row).to(tl.int64)
    tokens = tl.load(kv_indptr + row + 1).to(tl.int64) - start
    _fill(
        kv_indices + start,
        tokens,
        row,
        page_table,
        swa_page_table,
        full_to_swa,
        columns,
        page_table_stride,
        swa_page_table_stride,
        PAGE,
        FILL_TAIL,
        BLOCK,
    )


@triton.jit
def req_to_token_body(
    req_to_token,  # [requests, max_tokens], last stride 1
    req_pool_indices,  # [B]
    seq_lens,  # [B]
    req_to_token_stride,  # [elements] from row to row
    num_draft_tokens,
    page_table,  # from here on as in ragged_kv_indices_body
    swa_page_table,
    full_to_swa,
    columns,
    page_table_stride,
    swa_page_table_stride,
    PAGE: tl.constexpr,
    FILL_TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (B, ceil(columns / BLOCK)); see `archkey.ops.page_table`."""
    row = tl.program_id(0).to(tl.int64)
    request = tl.load(req_pool_indices + row).to(tl.int64)
    tokens = tl.load(seq_lens + row).to(tl.int64) + num_draft_tokens
    _fill(
        req_to_token + request * req_to_token_stride,
        tokens,
        row,
        page_table,
        swa_page_table,
        full_to_swa,
        columns,
        page_table_stride,
        swa_page_table_stride,
        PAGE,
        FILL_TAIL,
        BLOCK,
    )

# SPDX-License-Identifier: Apache-2.0
"""Page tables from token slots, for attention inside speculative verification (sglang#23146).

    page_table[i, b] = slot of token b * page_size of sequence i // page_size

A negative slot (padding) is page 0. The first slot of each page is aligned, and the draft tokens'
slots are already there. With a sliding-window pool, `full_to_swa[slot]` takes the place of slot
in the second table; an evicted slot (0 or -1) is page 0, and lies outside the window.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.ops._checks import bad_value, shape_text
from archkey.ops._contract import Operator, public
from archkey.ops._memo import remember
from archkey.ops._operand import check_operand, layouts

if TYPE_CHECKING:
    import torch

    from archkey.session import Session

__all__ = [
    "OPERATORS",
    "RaggedPageTableProblem",
    "RequestPageTableProblem",
    "ragged_kv_indices_to_page_table",
    "req_to_token_to_page_table",
]

RAGGED = "ragged_kv_indices_to_page_table"
REQUESTS = "req_to_token_to_page_table"
INTEGERS = ("int32", "int64")


class RaggedPageTableProblem(NamedTuple):
    """Page tables from ragged lists of token slots.

    swa: also fill the table of the sliding-window layers, through full_to_swa
    """

    indices_dtype: str
    indptr_dtype: str
    page_size: int
    swa: bool = False
    fill_tail: bool = True
    operator: str = RAGGED


class RequestPageTableProblem(NamedTuple):
    """Page tables from the table of each request's token slots.

    swa: also fill the table of the sliding-window layers, through full_to_swa
    """

    tokens_dtype: str
    indices_dtype: str
    lens_dtype: str
    page_size: int
    swa: bool = False
    fill_tail: bool = True
    operator: str = REQUESTS


@public
def ragged_kv_indices_to_page_table(
    session: Session,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    page_table: torch.Tensor,
    *,
    page_size: int,
    swa_page_table: torch.Tensor | None = None,
    full_to_swa: torch.Tensor | None = None,
    fill_tail: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill page tables from FlashInfer's ragged `kv_indices`.

    kv_indices      `[tokens]` int32 or int64 token slots
    kv_indptr       `[B + 1]` int32 or int64: tokens of sequence i are `kv_indptr[i]` and on
    page_table      `[>= B, columns]` int32, row stride free; written in place, rows past B are not
    page_size       a power of two
    swa_page_table  like page_table, for the layers with a window; goes with full_to_swa
    full_to_swa     `[slots]` int64
    fill_tail       write 0 past a sequence's pages, so that no entry survives a graph's replay

    Returns (page_table, swa_page_table).
    """
    op, tables = RAGGED, (page_table, swa_page_table, full_to_swa)
    key = (op, layouts(kv_indices, kv_indptr, *tables), page_size, fill_tail)
    problem = session.problems.get(key)
    if problem is None:
        problem = RaggedPageTableProblem(
            check_operand(op, "kv_indices", kv_indices, INTEGERS, 1, kv_indices),
            check_operand(op, "kv_indptr", kv_indptr, INTEGERS, 1, kv_indices),
            _tables(op, *tables, page_size, kv_indptr.shape[0] - 1, kv_indices),
            swa_page_table is not None,
            fill_tail,
        )
        remember(session.problems, key, problem)
    if session.validate:
        lengths = kv_indptr.diff()
        if int(kv_indptr[0]) < 0 or int(kv_indptr[-1]) > len(kv_indices) or (lengths < 0).any():
            expected = f"rising within kv_indices' {len(kv_indices)} entries"
            bad_value(op, "kv_indptr", expected, kv_indptr.tolist())
        _validate_width(op, lengths, page_table, page_size)
    session.launcher(problem)(
        kv_indices, kv_indptr, page_table, swa_page_table, full_to_swa, page_size, fill_tail,
        page_table, swa_page_table,
    )  # fmt: skip
    return page_table, swa_page_table


@public
def req_to_token_to_page_table(
    session: Session,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    *,
    page_size: int,
    num_draft_tokens: int = 0,
    swa_page_table: torch.Tensor | None = None,
    full_to_swa: torch.Tensor | None = None,
    fill_tail: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill page tables from the table of each request's token slots.

    Verification then calls unified_attention with `seqused_k = seq_lens + num_draft_tokens`,
    computed inside the captured region, and num_draft_tokens queries a sequence.

    req_to_token      `[requests, max_tokens]` int32 or int64, row stride free
    req_pool_indices  `[B]` int32 or int64, its rows
    seq_lens          `[B]` int32 or int64, without the draft tokens
    page_table, page_size, swa_page_table, full_to_swa, fill_tail
                      as in ragged_kv_indices_to_page_table

    Returns (page_table, swa_page_table).
    """
    op, tables = REQUESTS, (page_table, swa_page_table, full_to_swa)
    facts = layouts(req_to_token, req_pool_indices, seq_lens, *tables)
    key = (op, facts, page_size, fill_tail)
    problem = session.problems.get(key)
    if problem is None:
        like = req_to_token
        problem = RequestPageTableProblem(
            check_operand(op, "req_to_token", req_to_token, INTEGERS, 2, like),
            check_operand(op, "req_pool_indices", req_pool_indices, INTEGERS, 1, like),
            check_operand(op, "seq_lens", seq_lens, INTEGERS, req_pool_indices.shape, like),
            _tables(op, *tables, page_size, seq_lens.shape[0], like),
            swa_page_table is not None,
            fill_tail,
        )
        remember(session.problems, key, problem)
    if num_draft_tokens < 0:
        bad_value(op, "num_draft_tokens", "0 or more", num_draft_tokens)
    if session.validate and len(seq_lens):
        lengths = seq_lens + num_draft_tokens
        rows = int(req_pool_indices.min()), int(req_pool_indices.max())
        if rows[0] < 0 or rows[1] >= req_to_token.shape[0]:
            expected = f"rows of req_to_token, 0 to {req_to_token.shape[0] - 1}"
            bad_value(op, "req_pool_indices", expected, rows)
        if int(lengths.max()) > req_to_token.shape[1]:
            expected = f"of {int(lengths.max())} columns or more"
            bad_value(op, "req_to_token", expected, shape_text(req_to_token))
        _validate_width(op, lengths, page_table, page_size)
    session.launcher(problem)(
        req_to_token, req_pool_indices, seq_lens, page_table, swa_page_table, full_to_swa,
        page_size, num_draft_tokens, fill_tail, page_table, swa_page_table,
    )  # fmt: skip
    return page_table, swa_page_table


def _tables(
    op: str,
    page_table: Any,
    swa_page_table: Any,
    full_to_swa: Any,
    page_size: int,
    rows: int,
    like: torch.Tensor,
) -> int:
    """Check the tables to be filled; returns page_size."""
    check_operand(op, "page_table", page_table, ("int32",), 2, like)
    if page_table.shape[0] < rows:
        bad_value(op, "page_table", f"of shape [>= {rows}, columns]", shape_text(page_table))
    if page_size < 1 or page_size & (page_size - 1):
        bad_value(op, "page_size", "a power of two", page_size)
    if (swa_page_table is None) != (full_to_swa is None):
        missing = "swa_page_table" if swa_page_table is None else "full_to_swa"
        bad_value(op, missing, "given with its counterpart", "None")
    if swa_page_table is not None:
        check_operand(op, "swa_page_table", swa_page_table, ("int32",), page_table.shape, like)
        check_operand(op, "full_to_swa", full_to_swa, ("int64",), 1, like)
    return page_size


def _validate_width(
    op: str, lengths: torch.Tensor, page_table: torch.Tensor, page_size: int
) -> None:
    """Under ARCHKEY_VALIDATE=1: all pages of the longest sequence have a column."""
    pages = -(-int(lengths.max()) // page_size) if len(lengths) else 0
    if pages > page_table.shape[1]:
        bad_value(op, "page_table", f"of {pages} columns or more", shape_text(page_table))


OPERATORS = (
    Operator(
        name=RAGGED,
        family="attention",
        problem=RaggedPageTableProblem,
        inputs=(
            "kv_indices", "kv_indptr", "page_table", "swa_page_table", "full_to_swa", "page_size",
            "fill_tail",
        ),
        outputs=("page_table", "swa_page_table"),
        reference="archkey.reference.attention:ragged_kv_indices_to_page_table",
        function="archkey.ops.page_table:ragged_kv_indices_to_page_table",
        cases="archkey.conformance.cases.attention",
        workloads="archkey.bench.workloads.attention",
        examples=MappingProxyType(
            {
                "Qwen3.5 verify, page 16": RaggedPageTableProblem("int32", "int32", 16),
                "GPT-OSS verify, page 64": RaggedPageTableProblem("int64", "int32", 64, swa=True),
            }
        ),
    ),
    Operator(
        name=REQUESTS,
        family="attention",
        problem=RequestPageTableProblem,
        inputs=(
            "req_to_token", "req_pool_indices", "seq_lens", "page_table", "swa_page_table",
            "full_to_swa", "page_size", "num_draft_tokens", "fill_tail",
        ),
        outputs=("page_table", "swa_page_table"),
        reference="archkey.reference.attention:req_to_token_to_page_table",
        function="archkey.ops.page_table:req_to_token_to_page_table",
        cases="archkey.conformance.cases.attention",
        workloads="archkey.bench.workloads.attention",
        examples=MappingProxyType(
            {
                "Qwen3.5 verify, page 16": RequestPageTableProblem("int32", "int64", "int64", 16),
                "GPT-OSS verify, page 64": RequestPageTableProblem(
                    "int32", "int64", "int32", 64, swa=True
                ),
            }
        ),
    ),
)  # fmt: skip

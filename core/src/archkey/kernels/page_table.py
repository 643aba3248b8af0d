# SPDX-License-Identifier: Apache-2.0
"""Builders of ragged_kv_indices_to_page_table and req_to_token_to_page_table.

One launch a call, for both tables. Its grid follows from shapes alone and nothing is read on the
host, so a call can be captured. Any architecture with a Triton backend can list them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from archkey.kernels.page_table_body import ragged_kv_indices_body, req_to_token_body
from archkey.launch import Build, Program

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.page_table import RaggedPageTableProblem, RequestPageTableProblem

__all__ = ["build_ragged_kv_indices_to_page_table", "build_req_to_token_to_page_table"]

_POINTERS = {"int32": "*i32", "int64": "*i64"}
_BLOCK = 512
"""Columns of a program. A column is a chain of reads that wait for one another, so a thread has few
and a long row many programs at once; 8k tokens in pages of 16 are still one. Not measured."""
_WARPS = 4


def build_ragged_kv_indices_to_page_table(problem: RaggedPageTableProblem, build: Build) -> Run:
    """`run(*inputs, out, swa_out)`; the outputs are page_table and swa_page_table themselves."""
    inputs = {
        "kv_indices": _POINTERS[problem.indices_dtype],
        "kv_indptr": _POINTERS[problem.indptr_dtype],
    }
    launch = build.compile(_program(ragged_kv_indices_body, inputs, problem))

    def run(
        kv_indices: torch.Tensor,
        kv_indptr: torch.Tensor,
        page_table: torch.Tensor,
        swa_page_table: torch.Tensor | None,
        full_to_swa: torch.Tensor | None,
        page_size: int,
        fill_tail: bool,
        out: torch.Tensor,
        swa_out: torch.Tensor | None,
    ) -> None:
        given = (kv_indices, kv_indptr)
        _launch(launch, kv_indptr.shape[0] - 1, given, out, swa_out, full_to_swa)

    return run


def build_req_to_token_to_page_table(problem: RequestPageTableProblem, build: Build) -> Run:
    """`run(*inputs, out, swa_out)`; the outputs are page_table and swa_page_table themselves."""
    inputs = {
        "req_to_token": _POINTERS[problem.tokens_dtype],
        "req_pool_indices": _POINTERS[problem.indices_dtype],
        "seq_lens": _POINTERS[problem.lens_dtype],
        "req_to_token_stride": "i64",
        "num_draft_tokens": "i32",
    }
    launch = build.compile(_program(req_to_token_body, inputs, problem))

    def run(
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        page_table: torch.Tensor,
        swa_page_table: torch.Tensor | None,
        full_to_swa: torch.Tensor | None,
        page_size: int,
        num_draft_tokens: int,
        fill_tail: bool,
        out: torch.Tensor,
        swa_out: torch.Tensor | None,
    ) -> None:
        tensors = (req_to_token, req_pool_indices, seq_lens)
        given = (*tensors, req_to_token.stride(0), num_draft_tokens)
        _launch(launch, seq_lens.shape[0], given, out, swa_out, full_to_swa)

    return run


def _program(
    body: Any, inputs: Mapping[str, str], problem: RaggedPageTableProblem | RequestPageTableProblem
) -> Program:
    """`body`, whose first parameters are `inputs`; the others are alike."""
    return Program(
        body,
        signature={
            **inputs,
            "page_table": "*i32",
            "swa_page_table": "*i32" if problem.swa else None,
            "full_to_swa": "*i64" if problem.swa else None,
            "columns": "i32",
            "page_table_stride": "i64",
            "swa_page_table_stride": "i64",
        },
        constants={"PAGE": problem.page_size, "FILL_TAIL": problem.fill_tail, "BLOCK": _BLOCK},
        options={"num_warps": _WARPS},
    )


def _launch(
    launch: Callable[..., None],
    sequences: int,
    given: tuple[Any, ...],
    page_table: torch.Tensor,
    swa_page_table: torch.Tensor | None,
    full_to_swa: torch.Tensor | None,
) -> None:
    """Launch with the arguments of the parameters in `_program`'s order, `given` the first."""
    columns = page_table.shape[1]
    if sequences > 0 and columns:
        swa_stride = 0 if swa_page_table is None else swa_page_table.stride(0)
        grid = (sequences, -(-columns // _BLOCK), 1)
        tables = (page_table, swa_page_table, full_to_swa)
        launch(grid, *given, *tables, columns, page_table.stride(0), swa_stride)

# SPDX-License-Identifier: Apache-2.0
"""Builders of sparse_mla_prefill and sparse_mla_decode on the shared Triton bodies.

They turn a Problem and a tuning into the Programs that are compiled, and tensors into their launch
arguments. Any architecture with a Triton backend can list them. Grids and the number of segments
follow from shapes alone, so that a captured call serves any lists and lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from archkey.kernels.mla_decode import split_of
from archkey.kernels.sparse_mla_programs import (
    attention_program,
    row_form,
    segments_program,
    units_of,
)
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.launch import Build

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Program
    from archkey.ops.sparse_mla import SparseMlaDecodeProblem, SparseMlaPrefillProblem

    Problem = SparseMlaPrefillProblem | SparseMlaDecodeProblem

__all__ = ["build_sparse_mla_decode", "build_sparse_mla_prefill", "run_of"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_FEW = 4
"""Segments that are added by a program of all columns; more need more programs to be read."""
_MANY, _COLUMNS = 32, 128
"""Otherwise, segments that are added at once, and a program's columns if these divide them."""
_MOST = 2**31 - 1
"""The last slot that an int32 names."""

_Strides = tuple[int, ...]
_Pool = tuple[torch.Tensor, torch.Tensor, _Strides, torch.Tensor | None]
"""A cache's pages, its lists, their strides of a sequence and a token, and its topk_length."""


def build_sparse_mla_prefill(problem: SparseMlaPrefillProblem, build: Build) -> Run:
    """`run(q, kv, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: SparseMlaTuning = build.tuning(problem)
    return run_of(problem, build, tuning, attention_program(problem, tuning))


def build_sparse_mla_decode(problem: SparseMlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: SparseMlaTuning = build.tuning(problem)
    return run_of(problem, build, tuning, attention_program(problem, tuning))


def run_of(problem: Problem, build: Build, tuning: SparseMlaTuning, program: Program) -> Run:
    """`run` of either operator with a body of the parameters of `sparse_mla_body`."""
    attend = _attend_of(problem, build, tuning, program)

    def prefill(
        q: torch.Tensor,
        kv: torch.Tensor,
        indices: torch.Tensor,
        topk_length: torch.Tensor | None,
        attn_sink: torch.Tensor | None,
        softmax_scale: float,
        head_dim_v: int,
        kv_format: str,
        batch_invariant: bool,
        out: torch.Tensor,
        max_logits: torch.Tensor | None,
        lse: torch.Tensor | None,
    ) -> None:
        tokens = q.shape[0]
        pool = kv, indices, (0, indices.stride(0)), topk_length
        q_steps, out_steps = (0, *q.stride()[:2]), (0, *out.stride()[:2])
        attend(
            tokens, tokens, q, q_steps, pool, None, attn_sink, softmax_scale, out, out_steps, lse,
            max_logits,
        )  # fmt: skip

    def decode(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        indices: torch.Tensor,
        topk_length: torch.Tensor | None,
        attn_sink: torch.Tensor | None,
        extra_kv_cache: torch.Tensor | None,
        extra_indices: torch.Tensor | None,
        extra_topk_length: torch.Tensor | None,
        softmax_scale: float,
        head_dim_v: int,
        kv_format: str,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        batch, queries = q.shape[:2]
        pool = kv_cache, indices, indices.stride()[:2], topk_length
        extra = None
        if extra_kv_cache is not None and extra_indices is not None:
            steps = extra_indices.stride()[:2]
            extra = extra_kv_cache, extra_indices, steps, extra_topk_length
        attend(
            batch * queries, queries, q, q.stride()[:3], pool, extra, attn_sink, softmax_scale,
            out, out.stride()[:3], lse, None,
        )  # fmt: skip

    return prefill if problem.operator == "sparse_mla_prefill" else decode


def _attend_of(
    problem: Problem, build: Build, tuning: SparseMlaTuning, program: Program
) -> Callable[..., None]:
    """Both launches, of tensors whose strides are given as `[B, Q, HEADS, ..]` have them."""
    heads, width = problem.heads, problem.head_dim_v
    launch = build.compile(program)
    splits = not problem.batch_invariant
    whole = 1 << (width - 1).bit_length()
    part = whole if width % _COLUMNS else _COLUMNS
    if splits:
        few = many = build.compile(segments_program(problem, _FEW, whole))
        if part < whole:
            many = build.compile(segments_program(problem, _MANY, part))
    slots = (build.device.compute_units or _UNITS) * tuning.resident
    head_tiles = -(-heads // tuning.rows)
    keys = problem.topk + getattr(problem, "extra_topk", 0)
    q_unit, kv_unit, out_unit = units_of(problem)
    row_bytes = row_form(problem.kv_format).row_bytes
    nothing: _Strides = (0, 0)

    def attend(
        tokens: int,
        queries: int,
        q: torch.Tensor,
        q_steps: _Strides,
        pool: _Pool,
        extra: _Pool | None,
        attn_sink: torch.Tensor | None,
        softmax_scale: float,
        out: torch.Tensor,
        out_steps: _Strides,
        lse: torch.Tensor | None,
        max_logits: torch.Tensor | None,
    ) -> None:
        tiles = tokens * head_tiles
        split = split_of(slots, tiles, keys) if splits else 1
        parts: tuple[Any, ...] = (None, None, None)
        if split > 1:
            totals = q.new_empty((tokens * heads, split, width), dtype=torch.float32)
            tops, masses = q.new_empty((2, tokens * heads, split), dtype=torch.float32)
            parts = totals, tops, masses
        kv, lists, list_steps, length = pool
        strides, last, each = _places(kv), _last(kv), _each(tokens, length)
        others: tuple[Any, ...] = (None, None, None)
        other_strides, other_steps, other_last, other_each = nothing, nothing, -1, 1
        if extra is not None:
            other_steps, others = extra[2], (extra[0], extra[1], extra[3])
            other_strides, other_last = _places(extra[0]), _last(extra[0])
            other_each = _each(tokens, extra[3])
        outputs = attn_sink, out, lse, max_logits
        out_strides = [stride // out_unit for stride in out_steps]
        out_strides += nothing if lse is None else lse.stride()
        out_strides += nothing if max_logits is None else max_logits.stride()
        launch(
            (tiles, split, 1), q, kv, lists, length, *others, *outputs, *parts, queries, split,
            last, other_last, each, other_each, softmax_scale,
            *(stride // q_unit for stride in q_steps), *strides, *other_strides, *list_steps,
            *other_steps, *out_strides,
        )  # fmt: skip
        if split > 1:
            add, columns = (few, whole) if split <= _FEW else (many, part)
            add(
                (tokens * heads, -(-width // columns), 1), *outputs, *parts, queries, split,
                *out_strides,
            )  # fmt: skip

    def _places(kv: torch.Tensor) -> _Strides:
        """Strides of a block and of a row in it."""
        block, row, _ = kv.stride()
        return block // kv_unit, (row_bytes or row) // kv_unit

    return attend


def _last(kv: torch.Tensor) -> int:
    """The last slot of a cache; a list names no later one."""
    return min(kv.shape[0] * kv.shape[1] - 1, _MOST)


def _each(tokens: int, length: torch.Tensor | None) -> int:
    """Tokens that share a topk_length: those of a sequence, or one."""
    return 1 if length is None else tokens // length.shape[0]

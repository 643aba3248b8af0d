# SPDX-License-Identifier: Apache-2.0
"""Builder of mla_decode on the shared Triton bodies.

It turns a Problem and a tuning into the Programs that are compiled, and tensors into their launch
arguments. Any architecture with a Triton backend can list it. Grids and the number of segments
follow from shapes and from `max_seqlen_k` alone, so that a captured call serves any lengths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from archkey.kernels.attention_programs import as_bytes
from archkey.kernels.mla_decode_programs import decode_program, segments_program, units_of
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey.launch import Build, interpreting

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Program
    from archkey.ops.mla import MlaDecodeProblem

__all__ = ["build_mla_decode", "run_of", "split_of"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_LEAST = 64
"""Keys that a segment has at least."""
_START, _MERGE, _ADD = 128, 128, 2
"""What the start of a program, the second launch and a sum take, in the time of a key in a step."""
_FEW = 4
"""Segments that are added by a program of all columns; more need more programs to be read."""
_MANY, _COLUMNS = 32, 128
"""Otherwise, segments that are added at once, and a program's columns if these divide them."""


def build_mla_decode(problem: MlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: MlaDecodeTuning = build.tuning(problem)
    return run_of(problem, build, tuning, decode_program(problem, tuning))


def run_of(
    problem: MlaDecodeProblem, build: Build, tuning: MlaDecodeTuning, program: Program
) -> Run:
    """`run` with a body of the parameters of `mla_decode_body`, which may be another's."""
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
    q_unit, kv_unit, out_unit = units_of(problem)
    codes = interpreting()

    def run(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        cache_seqlens: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        q_descale: Any,
        kv_descale: Any,
        softmax_scale: float,
        head_dim_v: int,
        causal: bool,
        window_left: int,
        num_splits: int,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        if codes:  # the interpreter reads codes as bytes
            q, kv_cache = map(as_bytes, (q, kv_cache))
        sequences = cache_seqlens.shape[0]
        if cu_seqlens_q is None:
            queries, tokens = q.shape[1], sequences * q.shape[1]
            tiles = -(-queries * heads // tuning.rows) * sequences
            q_steps, out_steps = q.stride()[:3], out.stride()[:3]
        else:
            queries = tokens = q.shape[0]
            tiles = tokens * heads // tuning.rows + sequences + 1
            q_steps, out_steps = (0, *q.stride()[:2]), (0, *out.stride()[:2])
        keys = max_seqlen_k if window_left < 0 else min(max_seqlen_k, window_left + 1)
        split = (num_splits or split_of(slots, tiles, keys)) if splits else 1
        parts: tuple[Any, ...] = (None, None, None)
        if split > 1:
            totals = q.new_empty((tokens * heads, split, width), dtype=torch.float32)
            tops, masses = q.new_empty((2, tokens * heads, split), dtype=torch.float32)
            parts = totals, tops, masses
        out_strides = [stride // out_unit for stride in out_steps]
        out_strides += (0, 0) if lse is None else lse.stride()
        launch(
            (tiles, split, 1), q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, q_descale,
            kv_descale, out, lse, *parts, tokens, sequences, queries, split, window_left,
            softmax_scale, *(stride // q_unit for stride in q_steps),
            kv_cache.stride(0) // kv_unit, kv_cache.stride(1) // kv_unit, *out_strides,
            block_table.stride(0),
        )  # fmt: skip
        if split > 1:
            add, columns = (few, whole) if split <= _FEW else (many, part)
            add(
                (tokens * heads, -(-width // columns), 1), kv_descale, out, lse, *parts, queries,
                split, *out_strides,
            )  # fmt: skip

    return run


@lru_cache(maxsize=4096)
def split_of(slots: int, tiles: int, keys: int) -> int:
    """Segments of `keys` keys for the least time, in keys that one program goes through.

    `slots` programs run at once. Each takes its keys and a start; every segment has a sum to add.
    """

    def time(split: int) -> float:
        waves = -(-tiles * split // slots)
        return waves * (keys / split + _START) + (split > 1) * (_MERGE + split * _ADD)

    most = max(1, min(-(-slots // max(tiles, 1)) * 2, keys // _LEAST))
    return min(range(1, most + 1), key=time)

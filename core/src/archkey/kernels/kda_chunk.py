# SPDX-License-Identifier: Apache-2.0
"""Builder of chunk_kda on the shared Triton bodies.

Two launches: every chunk by itself, then the walk of the states over the chunks. Where sequences
and heads are too few to fill the device, sequences are cut into segments, and two launches between
them find what each segment does to a state, and what it starts from. Grids, workspaces and segments
follow from shapes alone, so a call can be captured; which chunk belongs to which sequence is looked
up on the device, in cu_seqlens. Any architecture with a Triton backend can list it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.kda_arguments import state_steps
from archkey.kernels.kda_chunk_programs import (
    chunk_program,
    columns_of,
    join_program,
    maps_program,
    sizes_of,
    state_units,
    walk_program,
)
from archkey.kernels.kda_chunk_tunings import KdaChunkTuning
from archkey.launch import Build

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Program
    from archkey.ops._kda_contract import ChunkKdaProblem

__all__ = ["build_chunk_kda", "run_of"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""


def build_chunk_kda(problem: ChunkKdaProblem, build: Build) -> Run:
    """`run(q, k, v, .., track_state)`, in the order of the operator's inputs and outputs."""
    tuning: KdaChunkTuning = build.tuning(problem)
    return run_of(problem, build, tuning, chunk_program(problem, tuning))


def run_of(
    problem: ChunkKdaProblem, build: Build, tuning: KdaChunkTuning, chunks_alone: Program
) -> Run:
    """`run` with a body of the parameters of `kda_chunk_body` for every chunk by itself."""
    k_pad, v_pad = sizes_of(problem)
    heads, chunk = problem.value_heads, problem.chunk_size
    columns, few = (columns_of(problem, n) for n in (tuning.columns, tuning.few))
    prepare = build.compile(chunks_alone)
    if tuning.segment:
        map_segments = build.compile(maps_program(problem, tuning))
        if tuning.join:
            join_segments = build.compile(join_program(problem, tuning))
        walk_segments = build.compile(walk_program(problem, tuning, columns, segmented=True))
    # Segments of a batch-invariant call follow from a sequence's own length, columns from nothing.
    widths = {columns} if problem.batch_invariant else {columns, few}
    walks = {
        n: build.compile(walk_program(problem, tuning, n, segmented=False))
        for n in sorted(widths, reverse=True)
        if not (problem.batch_invariant and tuning.segment)
    }
    slots = (build.device.compute_units or _UNITS) * tuning.resident
    unit, g_unit = (
        unit_of(problem.dtype, problem.aligned),
        unit_of(problem.g_dtype, problem.aligned),
    )
    out_unit = unit_of(problem.out_dtype, problem.aligned)
    state_unit, final_unit = state_units(problem)

    def plan(sequences: int, tokens: int) -> tuple[int, int]:
        """(columns to walk with, chunks of a segment or 0 if sequences are not cut)."""
        if not walks:
            return columns, tuning.segment
        if problem.batch_invariant:
            return columns, 0
        if not tuning.segment:
            return columns if heads * sequences * (v_pad // columns) > slots else few, 0
        for n in walks:
            if 2 * heads * sequences * (v_pad // n) > slots:
                return n, 0
        longest = -(-tokens // chunk)
        if problem.cu_seqlens != "none":  # the lengths are on the device: as if they were alike
            longest = -(-longest // sequences)
        busy = heads * sequences * (v_pad // columns)
        length = max(tuning.segment, -(-longest * busy // slots))
        return (few, 0) if length >= longest else (columns, length)

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        A_log: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        initial_state: torch.Tensor | None,
        state_indices: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        chunk_indices: torch.Tensor | None,
        chunk_offsets: torch.Tensor | None,
        track_state: torch.Tensor | None,
        track_chunk_idx: torch.Tensor | None,
        scale: float,
        lower_bound: float | None,
        use_qk_l2norm_in_kernel: bool,
        use_gate_in_kernel: bool,
        use_beta_sigmoid_in_kernel: bool,
        allow_neg_eigval: bool,
        state_v_first: bool,
        chunk_size: int,
        return_intermediate_states: bool,
        out: torch.Tensor,
        final_state: torch.Tensor | None,
        h: torch.Tensor | None,
        tracked: torch.Tensor | None,
    ) -> None:
        batch, tokens = q.shape[:2]
        if cu_seqlens is None:
            sequences, extra = batch, 0
            chunks = batch * max(-(-tokens // chunk), 1)
        else:
            sequences = cu_seqlens.shape[0] - 1
            # Room for a last chunk of each, and for the rows that belong to nobody.
            chunks, extra = tokens // chunk + sequences, 1
        index_stride = 0 if state_indices is None else state_indices.stride(0)
        like = torch.float16 if problem.dtype == "float16" else torch.bfloat16
        w, qg, kg = q.new_empty((3, chunks * heads, chunk, k_pad), dtype=like)
        u = q.new_empty((chunks * heads, chunk, v_pad), dtype=like)
        within = q.new_empty((chunks * heads, chunk, chunk), dtype=like)
        decay = q.new_empty((chunks * heads, k_pad), dtype=torch.float32)
        if h is not None:
            h.zero_()  # of padding and of sequences without a slot
        if chunk_offsets is not None:
            chunk_offsets = chunk_offsets.int() if h is not None else None
        if tokens and chunks + extra:
            prepare(
                (heads, chunks + extra, 1), q, k, v, g, beta, A_log, dt_bias, state_indices,
                cu_seqlens, w, u, qg, kg, within, decay, out, sequences, tokens, scale,
                lower_bound or 0.0, index_stride,
                *(step // unit for x in (q, k, v) for step in x.stride()[:3]),
                *(step // g_unit for step in g.stride()[:3]), *beta.stride()[:3],
                *(step // out_unit for step in out.stride()[:3]),
            )  # fmt: skip
        if not sequences:
            return
        wide, length = plan(sequences, tokens)
        maps = None
        segments = sequences
        starts = state_steps(initial_state, state_unit)
        if length:
            if cu_seqlens is None:
                segments *= max(-(-tokens // (length * chunk)), 1)
            else:
                segments += tokens // (length * chunk)
            maps = q.new_empty((segments * heads, k_pad, v_pad + k_pad), dtype=torch.float32)
            map_segments(
                ((v_pad + k_pad) // columns, heads, segments), w, u, kg, decay, initial_state,
                state_indices, cu_seqlens, maps, sequences, tokens, length, index_stride, *starts,
            )  # fmt: skip
            if tuning.join:
                join_segments(
                    (v_pad // few, heads, sequences), maps, state_indices, cu_seqlens, tokens,
                    length, index_stride,
                )  # fmt: skip
        else:
            length = max(-(-tokens // chunk), 1)
        (walks[wide] if maps is None else walk_segments)(
            (v_pad // wide, heads, segments), w, u, qg, kg, within, decay, maps, initial_state,
            state_indices, cu_seqlens, chunk_offsets, track_chunk_idx, out, final_state, h, tracked,
            sequences, tokens, length, index_stride,
            *(step // out_unit for step in out.stride()[:3]), *starts,
            *state_steps(final_state, final_unit), 0 if h is None else h.shape[1],
            *state_steps(tracked, 1),
        )  # fmt: skip

    return run

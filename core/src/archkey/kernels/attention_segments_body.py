# SPDX-License-Identifier: Apache-2.0
"""The Triton body that ends attention whose keys were split: sums of segments, in their order."""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import factor_of, sum_segments, write_rows

__all__ = ["unified_attention_segments_body"]


@triton.jit
def unified_attention_segments_body(
    cu_seqlens_q,  # tensors and strides as in `unified_attention_body`
    v_descale,
    sinks,
    output_scale,
    out,
    lse,
    part_total,
    part_top,
    part_mass,
    segments,
    each,  # rows a sequence of the workspace; 0: it has a row a token
    rows,  # tokens of a sequence that the grid has room for
    above,  # sequences of more than `above` rows, and at most `most`
    most,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    v_descale_stride,
    v_descale_head_stride,
    part_stride,
    part_head_stride,
    part_segment_stride,
    part_top_stride,
    part_top_head_stride,
    part_mass_stride,
    part_mass_head_stride,
    HEADS: tl.constexpr,  # H
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    V_DESCALE: tl.constexpr,
    OUTPUT_SCALE: tl.constexpr,
    OUT_FP8: tl.constexpr,
    TOGETHER: tl.constexpr,  # segments that are added at once
    BLOCK_DV: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A query head of a token a program. Grid: B * rows * HEADS."""
    head, place = (tl.program_id(0) % HEADS).to(tl.int64), tl.program_id(0) // HEADS
    sequence, t = place // rows, place % rows
    begin = tl.load(cu_seqlens_q + sequence)
    queries = tl.load(cu_seqlens_q + sequence + 1) - begin
    if t >= queries or queries * GROUP <= above or queries * GROUP > most:
        return
    token = (begin + t).to(tl.int64)
    row = token
    if each:
        row = sequence.to(tl.int64) * each + t
    part_total += row * part_stride + head * part_head_stride
    part_top += row * part_top_stride + head * part_top_head_stride
    part_mass += row * part_mass_stride + head * part_mass_head_stride
    total, top, mass = sum_segments(
        part_total, part_top, part_mass, segments, part_segment_stride, DV, TOGETHER, BLOCK_DV
    )
    kv_head = head // GROUP
    factor = factor_of(
        v_descale, sequence, kv_head, v_descale_stride, v_descale_head_stride, V_DESCALE
    )
    factor /= factor_of(output_scale, sequence, kv_head, 0, 0, OUTPUT_SCALE)
    one = tl.zeros([1], tl.int32)
    write_rows(
        total[None, :], top + one, mass + one, token + one, head + one, one == 0, sinks, factor,
        out, lse, out_stride * OUT_UNIT, out_head_stride * OUT_UNIT, lse_stride, lse_head_stride,
        DV, OUT_FP8, INTERPRETED,
    )  # fmt: skip

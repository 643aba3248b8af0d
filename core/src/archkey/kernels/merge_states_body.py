# SPDX-License-Identifier: Apache-2.0
"""The Triton body that merges two halves of attention: each row is read once and written once."""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import LN2, LOG2E, level_of
from archkey.kernels.quantize_body import rounded

__all__ = ["merge_states_body"]


@triton.jit
def _lse_of(place, live):
    """Of each row of a part, base 2; +inf stands for an empty part, too."""
    value = tl.load(place, live, other=float("-inf"))
    return tl.where(value == float("inf"), float("-inf"), value) * LOG2E


@triton.jit
def merge_states_body(
    out_a,  # [T, HEADS, N], last stride 1
    lse_a,  # [T, HEADS] float32
    out_b,
    lse_b,
    out,  # [T, HEADS, N], last stride 1; may be out_a or out_b
    lse,  # [T, HEADS] float32; may be lse_a or lse_b
    rows,  # T * HEADS
    out_a_stride,  # [UNIT elements] from token to token, and from head to head
    out_a_head_stride,
    out_b_stride,
    out_b_head_stride,
    out_stride,  # [OUT_UNIT elements]
    out_head_stride,
    lse_a_stride,  # [elements]
    lse_a_head_stride,
    lse_b_stride,
    lse_b_head_stride,
    lse_stride,
    lse_head_stride,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,  # columns at once, a power of two
    TILE_ROWS: tl.constexpr,  # rows of a program, a power of two
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
    INTERPRETED: tl.constexpr,
):
    """TILE_ROWS rows a program, see `archkey.ops.mla`. Grid: ceil(rows / TILE_ROWS)."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        # Safe this early: the next kernel's own wait still lasts until this grid is done. It may
        # only take the places that finished programs leave.
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    live = row < rows
    token, head = (row // HEADS).to(tl.int64), (row % HEADS).to(tl.int64)
    a = _lse_of(lse_a + token * lse_a_stride + head * lse_a_head_stride, live)
    b = _lse_of(lse_b + token * lse_b_stride + head * lse_b_head_stride, live)
    top = tl.maximum(a, b)
    level = level_of(top)
    weight_a, weight_b = tl.exp2(a - level), tl.exp2(b - level)
    mass = weight_a + weight_b
    mass = tl.where(mass == 0, 1.0, mass)  # of two empty parts
    weight_a, weight_b = (weight_a / mass)[:, None], (weight_b / mass)[:, None]
    # What belongs to an empty part may be anything, NaN too, and is not read.
    some_a, some_b = (live & (a != float("-inf")))[:, None], (live & (b != float("-inf")))[:, None]
    out_a += (token * (out_a_stride * UNIT) + head * (out_a_head_stride * UNIT))[:, None]
    out_b += (token * (out_b_stride * UNIT) + head * (out_b_head_stride * UNIT))[:, None]
    out += (token * (out_stride * OUT_UNIT) + head * (out_head_stride * OUT_UNIT))[:, None]
    for start in tl.static_range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        where_a, where_b, where = some_a, some_b, live[:, None]
        if N % BLOCK:
            where_a, where_b = where_a & (column < N), where_b & (column < N)
            where = where & (column < N)
        value = tl.load(out_a + column, where_a, other=0).to(tl.float32) * weight_a
        value += tl.load(out_b + column, where_b, other=0).to(tl.float32) * weight_b
        value = rounded(value, out, INTERPRETED).to(out.dtype.element_ty)
        tl.debug_barrier()  # threads that share an element have all read it before it is replaced
        tl.store(out + column, value, where)
    place = token * lse_stride + head * lse_head_stride
    tl.store(lse + place, (top + tl.log2(mass)) * LN2, live)

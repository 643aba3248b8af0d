# SPDX-License-Identifier: Apache-2.0
"""One Triton body for rmsnorm, fused_add_rmsnorm and fused_qk_rmsnorm.

A program normalises a tile of rows of one tensor. Rows up to BLOCK wide are held in registers and
read once; wider ones are read twice, in blocks of columns. Sums are float32, and a value is
rounded once, on its store.

The body holds up to two norms of different widths. Programs 0 .. ceil(rows / TILE_ROWS) - 1 take
the first, the others the second, so both run in one launch of `rmsnorm_programs` programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["norm_tile", "rmsnorm_body", "rmsnorm_programs", "row_offsets"]


def rmsnorm_programs(rows: int, tile_rows: int, k_rows: int = 0, k_tile_rows: int = 1) -> int:
    """Size of the one-dimensional grid."""
    return -(-rows // tile_rows) + -(-k_rows // k_tile_rows)


@triton.jit
def row_offsets(row, HEADS: tl.constexpr, stride, head_stride):
    """Element offset of each row; row `t * HEADS + h` is head h of token t."""
    token = row // HEADS
    offsets = token.to(tl.int64) * stride  # 64 bits: 2^31 elements are 300k rows of 7168
    if HEADS > 1:
        offsets += (row - token * HEADS).to(tl.int64) * head_stride
    return offsets[:, None]


@triton.jit
def _load(x, residual, columns, mask):
    """x, or the sum of x and residual, in float32."""
    value = tl.load(x + columns, mask, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + columns, mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _store(
    value, rstd, weight, weight_bias, x, out, residual_out, columns, mask, CAST: tl.constexpr
):
    """Round and store the sum (where there is one) and the norm."""
    if residual_out is not None:
        tl.store(residual_out + columns, value.to(residual_out.dtype.element_ty), mask)
    y = value * rstd
    if CAST:
        y = y.to(x.dtype.element_ty).to(tl.float32)
    y *= weight + weight_bias
    tl.store(out + columns, y.to(out.dtype.element_ty), mask)


@triton.jit
def norm_tile(
    tile,  # which TILE_ROWS rows
    x,
    residual,
    weight,
    out,
    residual_out,
    rows,
    x_stride,
    x_head_stride,
    residual_stride,
    residual_head_stride,
    out_stride,
    out_head_stride,
    residual_out_stride,
    residual_out_head_stride,
    eps,
    weight_bias,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    CAST: tl.constexpr,
):
    """The norm of one tile of rows."""
    row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    live = (row < rows)[:, None]
    x += row_offsets(row, HEADS, x_stride, x_head_stride)
    out += row_offsets(row, HEADS, out_stride, out_head_stride)
    if residual is not None:
        residual += row_offsets(row, HEADS, residual_stride, residual_head_stride)
        residual_out += row_offsets(row, HEADS, residual_out_stride, residual_out_head_stride)
    columns = tl.arange(0, BLOCK)[None, :]
    if N <= BLOCK:
        mask = live & (columns < N)
        value = _load(x, residual, columns, mask)
        w = tl.load(weight + columns, columns < N, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / N + eps)
        _store(value, rstd, w, weight_bias, x, out, residual_out, columns, mask, CAST)
    else:
        squares = tl.zeros([TILE_ROWS, BLOCK], tl.float32)
        for start in range(0, N, BLOCK):
            value = _load(x, residual, start + columns, live & (start + columns < N))
            squares += value * value
        rstd = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / N + eps)
        # A block is read again before it is overwritten, so out may be x, residual_out residual.
        for start in range(0, N, BLOCK):
            at = start + columns
            mask = live & (at < N)
            value = _load(x, residual, at, mask)
            w = tl.load(weight + at, at < N, other=0.0).to(tl.float32)
            _store(value, rstd, w, weight_bias, x, out, residual_out, at, mask, CAST)


@triton.jit
def rmsnorm_body(
    x,  # [T, N] or [T, HEADS, N], last stride 1
    residual,  # like x, or None
    weight,  # [N]
    out,  # like x; may be x
    residual_out,  # like residual, or None; may be residual
    k,  # [T, K_N] or [T, K_HEADS, K_N], or None: no second norm
    k_weight,  # [K_N]
    k_out,  # like k; may be k
    rows,  # T * HEADS
    x_stride,  # [elements] from token to token, and from head to head
    x_head_stride,
    residual_stride,
    residual_head_stride,
    out_stride,
    out_head_stride,
    residual_out_stride,
    residual_out_head_stride,
    k_rows,  # T * K_HEADS
    k_stride,
    k_head_stride,
    k_out_stride,
    k_out_head_stride,
    eps,
    k_eps,
    weight_bias,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,  # columns at once, a power of two; at least N to read rows once
    TILE_ROWS: tl.constexpr,  # rows of a program, a power of two
    K_N: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_TILE_ROWS: tl.constexpr,
    CAST_BEFORE_WEIGHT: tl.constexpr,  # round x * rstd to x's dtype before the weight
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
):
    """Normalise the rows of x (plus residual) and, with k, those of k; see `archkey.ops.rmsnorm`.

    Absent tensors are None. TILE_ROWS * BLOCK elements are what a program holds in registers.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        # Safe this early: the next kernel's own wait still lasts until this grid is done. It may
        # only take the places that finished programs leave.
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    first = tl.cdiv(rows, TILE_ROWS)
    if k is None or program < first:
        norm_tile(
            program,
            x,
            residual,
            weight,
            out,
            residual_out,
            rows,
            x_stride,
            x_head_stride,
            residual_stride,
            residual_head_stride,
            out_stride,
            out_head_stride,
            residual_out_stride,
            residual_out_head_stride,
            eps,
            weight_bias,
            N,
            HEADS,
            BLOCK,
            TILE_ROWS,
            CAST_BEFORE_WEIGHT,
        )
    else:
        norm_tile(
            program - first,
            k,
            None,
            k_weight,
            k_out,
            None,
            k_rows,
            k_stride,
            k_head_stride,
            0,
            0,
            k_out_stride,
            k_out_head_stride,
            0,
            0,
            k_eps,
            weight_bias,
            K_N,
            K_HEADS,
            K_BLOCK,
            K_TILE_ROWS,
            CAST_BEFORE_WEIGHT,
        )

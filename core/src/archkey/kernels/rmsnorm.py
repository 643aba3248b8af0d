# SPDX-License-Identifier: Apache-2.0
"""Builders of rmsnorm, fused_add_rmsnorm and fused_qk_rmsnorm on the shared Triton body.

They turn a Problem and a tuning into the Program that is compiled, and tensors into its launch
arguments. Any architecture with a Triton backend can list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archkey.kernels.rmsnorm_body import rmsnorm_body, rmsnorm_programs
from archkey.kernels.tunings import RmsNormTuning
from archkey.launch import Build, Program

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.rmsnorm import (
        FusedAddRmsNormProblem,
        FusedQkRmsNormProblem,
        RmsNormProblem,
    )

__all__ = [
    "POINTERS",
    "block_of",
    "build_fused_add_rmsnorm",
    "build_fused_qk_rmsnorm",
    "build_rmsnorm",
    "rows_of",
    "tile_rows_of",
]

POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "uint8": "*u8"}
"""Triton's name of a pointer to a dtype of torch."""
_STRIDES = (
    "x_stride",
    "x_head_stride",
    "residual_stride",
    "residual_head_stride",
    "out_stride",
    "out_head_stride",
    "residual_out_stride",
    "residual_out_head_stride",
)
_K_STRIDES = ("k_stride", "k_head_stride", "k_out_stride", "k_out_head_stride")


def build_rmsnorm(problem: RmsNormProblem, build: Build) -> Run:
    """`run(x, weight, eps, weight_bias, cast_before_weight, out)`."""
    tuning: RmsNormTuning = build.tuning(problem)
    dtypes = {"x": problem.dtype, "weight": problem.weight_dtype, "out": problem.out_dtype}
    launch = build.compile(_program(problem, tuning, dtypes, problem.width, problem.heads))
    heads, tile_rows = problem.heads, tile_rows_of(problem.width, tuning)

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        weight_bias: float,
        cast_before_weight: bool,
        out: torch.Tensor,
    ) -> None:
        rows, *x_strides = rows_of(x, heads)
        if rows:
            grid = (rmsnorm_programs(rows, tile_rows), 1, 1)
            strides = (*x_strides, 0, 0, *rows_of(out, heads)[1:], 0, 0)
            tensors = (x, None, weight, out, None, None, None, None)
            launch(grid, *tensors, rows, *strides, 0, 0, 0, 0, 0, eps, 0.0, weight_bias)

    return run


def build_fused_add_rmsnorm(problem: FusedAddRmsNormProblem, build: Build) -> Run:
    """`run(x, residual, weight, eps, weight_bias, cast_before_weight, out, residual_out)`."""
    tuning: RmsNormTuning = build.tuning(problem)
    dtypes = {
        "x": problem.dtype,
        "residual": problem.residual_dtype,
        "weight": problem.weight_dtype,
        "out": problem.out_dtype,
        "residual_out": problem.residual_dtype,
    }
    launch = build.compile(_program(problem, tuning, dtypes, problem.width, problem.heads))
    heads, tile_rows = problem.heads, tile_rows_of(problem.width, tuning)

    def run(
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        weight_bias: float,
        cast_before_weight: bool,
        out: torch.Tensor,
        residual_out: torch.Tensor,
    ) -> None:
        rows, *x_strides = rows_of(x, heads)
        if rows:
            grid = (rmsnorm_programs(rows, tile_rows), 1, 1)
            strides = (
                *x_strides,
                *rows_of(residual, heads)[1:],
                *rows_of(out, heads)[1:],
                *rows_of(residual_out, heads)[1:],
            )
            tensors = (x, residual, weight, out, residual_out, None, None, None)
            launch(grid, *tensors, rows, *strides, 0, 0, 0, 0, 0, eps, 0.0, weight_bias)

    return run


def build_fused_qk_rmsnorm(problem: FusedQkRmsNormProblem, build: Build) -> Run:
    """`run(q, q_weight, q_eps, k, k_weight, k_eps, weight_bias, cast_before_weight, q_out, k_out)`.

    One launch for both halves. Without q, k takes the first place of the body.
    """
    tuning: RmsNormTuning = build.tuning(problem)
    both = problem.q_width > 0
    width, heads = (
        (problem.q_width, problem.q_heads) if both else (problem.k_width, problem.k_heads)
    )
    dtypes = {"x": problem.dtype, "weight": problem.weight_dtype, "out": problem.out_dtype}
    if both:
        dtypes |= {"k": problem.dtype, "k_weight": problem.weight_dtype, "k_out": problem.out_dtype}
    second = (problem.k_width, problem.k_heads) if both else (0, 1)
    launch = build.compile(_program(problem, tuning, dtypes, width, heads, *second))
    tile_rows, k_tile_rows = tile_rows_of(width, tuning), tile_rows_of(second[0], tuning)
    k_heads = problem.k_heads

    def run(
        q: torch.Tensor | None,
        q_weight: torch.Tensor | None,
        q_eps: float | None,
        k: torch.Tensor,
        k_weight: torch.Tensor,
        k_eps: float,
        weight_bias: float,
        cast_before_weight: bool,
        q_out: torch.Tensor | None,
        k_out: torch.Tensor,
    ) -> None:
        k_rows, *k_strides = rows_of(k, k_heads)
        if not k_rows:
            return
        k_strides += rows_of(k_out, k_heads)[1:]
        if q is None or q_out is None:
            grid = (rmsnorm_programs(k_rows, tile_rows), 1, 1)
            strides = (*k_strides[:2], 0, 0, *k_strides[2:], 0, 0)
            alone = (k, None, k_weight, k_out, None, None, None, None)
            launch(grid, *alone, k_rows, *strides, 0, 0, 0, 0, 0, k_eps, 0.0, weight_bias)
        else:
            rows, *q_strides = rows_of(q, heads)
            grid = (rmsnorm_programs(rows, tile_rows, k_rows, k_tile_rows), 1, 1)
            strides = (*q_strides, 0, 0, *rows_of(q_out, heads)[1:], 0, 0)
            tensors = (q, None, q_weight, q_out, None, k, k_weight, k_out)
            launch(grid, *tensors, rows, *strides, k_rows, *k_strides, q_eps, k_eps, weight_bias)

    return run


def _program(
    problem: RmsNormProblem | FusedAddRmsNormProblem | FusedQkRmsNormProblem,
    tuning: RmsNormTuning,
    dtypes: Mapping[str, str],
    width: int,
    heads: int,
    k_width: int = 0,
    k_heads: int = 1,
) -> Program:
    """The body for `problem`; tensors without a dtype are absent."""
    tensors = ("x", "residual", "weight", "out", "residual_out", "k", "k_weight", "k_out")
    pointers = {name: POINTERS[dtypes[name]] if name in dtypes else None for name in tensors}
    strides = dict.fromkeys(_STRIDES, "i64"), dict.fromkeys(_K_STRIDES, "i64")
    aligned = {*(name for name in tensors if name in dtypes), *_STRIDES, *_K_STRIDES}
    options: dict[str, Any] = {"num_warps": tuning.num_warps}
    if problem.pdl:
        options["launch_pdl"] = True
    return Program(
        rmsnorm_body,
        signature={
            **pointers,
            "rows": "i32",
            **strides[0],
            "k_rows": "i32",
            **strides[1],
            **dict.fromkeys(("eps", "k_eps", "weight_bias"), "fp32"),
        },
        constants={
            "N": width,
            "HEADS": heads,
            "BLOCK": block_of(width, tuning),
            "TILE_ROWS": tile_rows_of(width, tuning),
            "K_N": k_width,
            "K_HEADS": k_heads,
            "K_BLOCK": block_of(k_width, tuning),
            "K_TILE_ROWS": tile_rows_of(k_width, tuning),
            "CAST_BEFORE_WEIGHT": problem.cast_before_weight,
            "USE_PDL": problem.pdl,
        },
        aligned=frozenset(aligned if problem.aligned else ()),
        options=options,
    )


def block_of(width: int, tuning: RmsNormTuning) -> int:
    """Columns a program works on at once: the row rounded up to a power of two, if it fits."""
    return min(1 << max(width - 1, 0).bit_length(), tuning.block)


def tile_rows_of(width: int, tuning: RmsNormTuning) -> int:
    """Rows of a program."""
    return max(1, tuning.tile // block_of(width, tuning))


def rows_of(tensor: torch.Tensor, heads: int) -> tuple[int, int, int]:
    """(rows, stride from token to token, stride from head to head) [elements]."""
    shape, strides = tensor.shape, tensor.stride()
    if len(shape) == 2:
        return shape[0], strides[0], 0
    if heads > 1:
        return shape[0] * heads, strides[0], strides[1]
    # Evenly spaced rows; with one head a token, only the first stride says how far.
    return shape[0] * shape[1], strides[0 if shape[1] == 1 else 1], 0

# SPDX-License-Identifier: Apache-2.0
"""Builders of mxfp4_linear on the shared Triton body: decoded in registers, or as it is.

They turn a Problem and a tuning into the Program that is compiled, and tensors into its launch
arguments. Any architecture with a Triton backend can list the first, and those whose matrix units
take block scales the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.linear_tunings import Mxfp4LinearTuning
from archkey.kernels.mxfp4_linear_body import mxfp4_linear_body, mxfp4_linear_programs
from archkey.kernels.rmsnorm import POINTERS, rows_of
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.mxfp4_linear import Mxfp4LinearProblem

__all__ = ["build_mxfp4_linear", "build_mxfp4_linear_scaled"]

_STRIDES = ("x_stride", "x_head_stride", "weight_stride", "out_stride", "out_head_stride")


def build_mxfp4_linear(problem: Mxfp4LinearProblem, build: Build) -> Run:
    """`run(x, weight, weight_scale, x_scale, bias, x_scale_layout, out)`, all decoded."""
    return _build(problem, build, native=False)


def build_mxfp4_linear_scaled(problem: Mxfp4LinearProblem, build: Build) -> Run:
    """The same for packed x, by products of the matrix units that take block scales."""
    return _build(problem, build, native=True)


def _build(problem: Mxfp4LinearProblem, build: Build, native: bool) -> Run:
    tuning: Mxfp4LinearTuning = build.tuning(problem)
    launch = build.compile(_program(problem, tuning, native))
    n, heads, step = problem.out_features, problem.heads, _scale_step(problem)
    scales_in_rows = problem.x_scale_layout == "row"
    tiles = tuning.few_t, tuning.few_n, tuning.tile_t, tuning.tile_n

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        x_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        x_scale_layout: str,
        out: torch.Tensor,
    ) -> None:
        rows, *x_strides = rows_of(x, heads)
        if rows:
            scale_strides = [0, 0]
            if x_scale is not None and scales_in_rows:
                scale_strides = [stride // step for stride in rows_of(x_scale, heads)[1:]]
            grid = (mxfp4_linear_programs(rows, n, *tiles), 1, 1)
            strides = (
                *x_strides,
                *scale_strides,
                weight.stride(0),
                weight_scale.stride(0) // step,
                *rows_of(out, heads)[1:],
            )
            launch(grid, x, x_scale, weight, weight_scale, bias, out, rows, *strides)

    return run


def _scale_step(problem: Mxfp4LinearProblem) -> int:
    return 4 if problem.scales_aligned else 1


def _program(problem: Mxfp4LinearProblem, tuning: Mxfp4LinearTuning, native: bool) -> Program:
    """The body for `problem`."""
    packed = problem.x_scale_layout != "none"
    tensors = {
        "x": POINTERS[problem.dtype],
        "x_scale": "*u8" if packed else None,
        "weight": "*u8",
        "weight_scale": "*u8",
        "bias": POINTERS.get(problem.bias_dtype),
        "out": POINTERS[problem.out_dtype],
    }
    aligned = {"x", "weight", "out", *_STRIDES} if problem.aligned else set()
    if problem.scales_aligned:
        aligned |= {"weight_scale", *(("x_scale",) if packed else ())}
    options: dict[str, Any] = {"num_warps": tuning.num_warps}
    if problem.pdl:
        options["launch_pdl"] = True
    return Program(
        mxfp4_linear_body,
        signature={
            **tensors,
            "rows": "i32",
            "x_stride": "i64",
            "x_head_stride": "i64",
            "x_scale_stride": "i64",
            "x_scale_head_stride": "i64",
            "weight_stride": "i64",
            "weight_scale_stride": "i64",
            "out_stride": "i64",
            "out_head_stride": "i64",
        },
        constants={
            "K": problem.in_features,
            "N": problem.out_features,
            "HEADS": problem.heads,
            "LAYOUT": problem.x_scale_layout,
            "SCALE_STEP": _scale_step(problem),
            "NATIVE": native,
            "INTERPRETED": interpreting(),
            # Nor does the interpreter multiply bfloat16.
            "HALF": tuning.half and not interpreting(),
            "FEW_T": tuning.few_t,
            "FEW_N": tuning.few_n,
            "FEW_K": tuning.few_k,
            "FEW_STAGES": tuning.few_stages,
            "TILE_T": tuning.tile_t,
            "TILE_N": tuning.tile_n,
            "TILE_K": tuning.tile_k,
            "STAGES": tuning.stages,
            "GROUP": tuning.group,
            "USE_PDL": problem.pdl,
        },
        aligned=frozenset(aligned),
        options=options,
    )

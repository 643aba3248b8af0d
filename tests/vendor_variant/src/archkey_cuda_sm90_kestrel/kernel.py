# SPDX-License-Identifier: Apache-2.0
"""RMSNorm of rows of at most 1024 elements: four rows a program, a warp each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from archkey.launch import Build, Program

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.rmsnorm import RmsNormProblem

__all__ = ["build_rmsnorm"]

_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_ROWS = 4


@triton.jit
def short_rows(
    x,  # rows of N elements, x_stride elements apart
    weight,  # [N]
    out,  # like x; may be x
    rows,
    x_stride,
    out_stride,
    eps,
    weight_bias,
    N: tl.constexpr,
    BLOCK: tl.constexpr,  # N rounded up to a power of two
    ROWS: tl.constexpr,  # of a program
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
):
    """Program i normalises ROWS rows."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < N)
    value = tl.load(x + row * x_stride + column, live, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, column < N, other=0.0).to(tl.float32) + weight_bias
    y = value * tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / N + eps) * scale
    tl.store(out + row * out_stride + column, y.to(out.dtype.element_ty), live)


def build_rmsnorm(problem: RmsNormProblem, build: Build) -> Run:
    """`run(x, weight, eps, weight_bias, cast_before_weight, out)`; the cast is never asked for."""
    launch = build.compile(
        Program(
            short_rows,
            signature={
                "x": _POINTERS[problem.dtype],
                "weight": _POINTERS[problem.weight_dtype],
                "out": _POINTERS[problem.out_dtype],
                "rows": "i32",
                "x_stride": "i64",
                "out_stride": "i64",
                "eps": "fp32",
                "weight_bias": "fp32",
            },
            constants={
                "N": problem.width,
                "BLOCK": triton.next_power_of_2(problem.width),
                "ROWS": _ROWS,
                "USE_PDL": problem.pdl,
            },
            aligned=frozenset(
                ("x", "weight", "out", "x_stride", "out_stride") if problem.aligned else ()
            ),
            options={"num_warps": _ROWS, **({"launch_pdl": True} if problem.pdl else {})},
        )
    )

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        weight_bias: float,
        cast_before_weight: bool,
        out: torch.Tensor,
    ) -> None:
        rows = x.numel() // problem.width
        if rows:
            grid = (triton.cdiv(rows, _ROWS), 1, 1)
            launch(grid, x, weight, out, rows, _apart(x), _apart(out), eps, weight_bias)

    return run


def _apart(tensor: torch.Tensor) -> int:
    """Elements from row to row of `[T, N]`, or of evenly spaced `[T, h, N]`."""
    return tensor.stride(0) if tensor.shape[1] == 1 or tensor.dim() == 2 else tensor.stride(1)

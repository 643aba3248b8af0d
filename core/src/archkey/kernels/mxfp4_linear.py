# SPDX-License-Identifier: Apache-2.0
"""Builders of mxfp4_linear on the shared Triton body: decoded in registers, or as it is.

They turn a Problem and a tuning into the Programs that are compiled, and tensors into their launch
arguments. Any architecture with a Triton backend can list the first, and those whose matrix units
take block scales the second.

Few rows are bound by reading weights, and many by the matrix units: each `LinearTile` of the tuning
is a Program, so that one does not take the other's registers, and the rows of a call choose. Where
a tile makes too few programs, K is cut into parts, which go as float32 through a workspace to a
second, small launch. How many follows from the Problem and the device alone, not from the rows, and
they are added in order: a call gives the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from archkey.kernels.linear_tunings import LinearTile, Mxfp4LinearTuning
from archkey.kernels.mxfp4_linear_body import mxfp4_linear_body, mxfp4_linear_sum_body
from archkey.kernels.rmsnorm import POINTERS, rows_of
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.ops.mxfp4_linear import Mxfp4LinearProblem

__all__ = ["build_mxfp4_linear", "build_mxfp4_linear_scaled", "part_of"]

_STRIDES = ("x_stride", "x_head_stride", "weight_stride", "out_stride", "out_head_stride")
_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_STEPS = 4
"""Steps of K that a program has at least: fewer do not pay for its start and its sum."""
_SUM_BLOCK = 1024


def build_mxfp4_linear(problem: Mxfp4LinearProblem, build: Build) -> Run:
    """`run(x, weight, weight_scale, x_scale, bias, x_scale_layout, out)`, all decoded."""
    return _build(problem, build, native=False)


def build_mxfp4_linear_scaled(problem: Mxfp4LinearProblem, build: Build) -> Run:
    """The same for packed x, by products of the matrix units that take block scales."""
    return _build(problem, build, native=True)


def part_of(problem: Mxfp4LinearProblem, tile: LinearTile, units: int) -> int:
    """Columns of x that a program sums: whole steps, and all of K if out has tiles enough."""
    steps = -(-problem.in_features // tile.k)
    parts = units * tile.fill // -(-problem.out_features // tile.n)
    return tile.k * -(-steps // max(1, min(parts, steps // _STEPS)))


def _build(problem: Mxfp4LinearProblem, build: Build, native: bool) -> Run:
    tuning: Mxfp4LinearTuning = build.tuning(problem)
    units = build.device.compute_units or _UNITS
    tiles = [(t.rows, _tile(problem, build, tuning, t, native, units)) for t in tuning.tiles]
    heads, step = problem.heads, _scale_step(problem)
    scales_in_rows = problem.x_scale_layout == "row"

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
            strides = (
                *x_strides,
                *scale_strides,
                weight.stride(0),
                weight_scale.stride(0) // step,
            )
            launch = next(launch for limit, launch in tiles if not limit or rows <= limit)
            launch((x, x_scale, weight, weight_scale), bias, out, rows, strides)

    return run


def _tile(
    problem: Mxfp4LinearProblem,
    build: Build,
    tuning: Mxfp4LinearTuning,
    tile: LinearTile,
    native: bool,
    units: int,
) -> Callable[..., None]:
    """`launch((x, x_scale, weight, weight_scale), bias, out, rows, their strides)` with `tile`."""
    k, n, heads = problem.in_features, problem.out_features, problem.heads
    part = part_of(problem, tile, units)
    parts, tiles_n = -(-k // part), -(-n // tile.n)
    wgmma = build.capabilities.wgmma is True and problem.dtype == "bfloat16"
    body = _program(problem, tuning, tile, native, part, wgmma)
    if parts == 1:
        launch = build.compile(body)

        def whole(inputs: Any, bias: Any, out: Any, rows: int, strides: Any) -> None:
            grid = (-(-rows // tile.t) * tiles_n, 1, 1)
            launch(grid, *inputs, bias, out, rows, *strides, *rows_of(out, heads)[1:])

        return whole
    launch, add = build.compile(body), build.compile(_sum_program(problem, parts))
    blocks = -(-n // _SUM_BLOCK)

    def split(inputs: Any, bias: Any, out: Any, rows: int, strides: Any) -> None:
        sums = out.new_empty((parts, rows, n), dtype=torch.float32)
        grid = (-(-rows // tile.t) * tiles_n, parts, 1)
        launch(grid, *inputs, None, sums, rows, *strides, heads * n, n)
        add((rows, blocks, 1), sums, bias, out, rows, *rows_of(out, heads)[1:])

    return split


def _scale_step(problem: Mxfp4LinearProblem) -> int:
    return 4 if problem.scales_aligned else 1


def _program(
    problem: Mxfp4LinearProblem,
    tuning: Mxfp4LinearTuning,
    tile: LinearTile,
    native: bool,
    part: int,
    wgmma: bool,
) -> Program:
    """The body for `problem`; of a part of K, its sums are float32 and bias is left to the end."""
    packed, whole = problem.x_scale_layout != "none", part >= problem.in_features
    tensors = {
        "x": POINTERS[problem.dtype],
        "x_scale": "*u8" if packed else None,
        "weight": "*u8",
        "weight_scale": "*u8",
        "bias": POINTERS.get(problem.bias_dtype) if whole else None,
        "out": POINTERS[problem.out_dtype] if whole else "*fp32",
    }
    aligned = {"x", "weight", "out", *_STRIDES} if problem.aligned else set()
    if problem.out_features % 16 and not whole:
        aligned -= {"out_stride", "out_head_stride"}
    if problem.scales_aligned:
        aligned |= {"weight_scale", *(("x_scale",) if packed else ())}
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
            "WGMMA": wgmma,
            # Nor does the interpreter multiply bfloat16.
            "HALF": tuning.half and not interpreting(),
            "PART": part,
            "BT": tile.t,
            "BN": tile.n,
            "BK": tile.k,
            "STAGES": tile.stages,
            "GROUP": tuning.group,
            "USE_PDL": problem.pdl,
        },
        aligned=frozenset(aligned),
        options=_options(problem, tile.num_warps),
    )


def _sum_program(problem: Mxfp4LinearProblem, parts: int) -> Program:
    """The body that adds the parts of K."""
    aligned = {"out", "out_stride", "out_head_stride"} if problem.aligned else set()
    return Program(
        mxfp4_linear_sum_body,
        signature={
            "parts": "*fp32",
            "bias": POINTERS.get(problem.bias_dtype),
            "out": POINTERS[problem.out_dtype],
            "rows": "i32",
            "out_stride": "i64",
            "out_head_stride": "i64",
        },
        constants={
            "N": problem.out_features,
            "HEADS": problem.heads,
            "PARTS": parts,
            "BLOCK": _SUM_BLOCK,
            "USE_PDL": problem.pdl,
        },
        aligned=frozenset({"parts", *aligned}),
        options=_options(problem, 4),
    )


def _options(problem: Mxfp4LinearProblem, num_warps: int) -> dict[str, Any]:
    return {"num_warps": num_warps, **({"launch_pdl": True} if problem.pdl else {})}

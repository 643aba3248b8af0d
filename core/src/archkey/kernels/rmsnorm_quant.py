# SPDX-License-Identifier: Apache-2.0
"""Builder of rmsnorm_quant on the shared Triton body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.formats import SCALE_MODES
from archkey.kernels.rmsnorm import POINTERS, block_of, rows_of, tile_rows_of
from archkey.kernels.rmsnorm_body import rmsnorm_programs
from archkey.kernels.rmsnorm_quant_body import rmsnorm_quant_body
from archkey.kernels.tunings import RmsNormTuning
from archkey.launch import Build, Program, interpreting
from archkey.ops._rmsnorm_quant_kinds import KINDS, TILES

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.rmsnorm_quant import RmsNormQuantProblem

__all__ = ["build_rmsnorm_quant"]

# Tensors in the body's order, and the strides of each.
_TENSORS = (
    *("x", "residual", "weight", "scale", "out", "out_scale"),
    *("y_out", "residual_out", "x2", "x2_weight", "x2_out"),
)
_FIRST = (
    *("x_stride", "x_head_stride", "residual_stride", "residual_head_stride"),
    *("out_stride", "out_head_stride", "scale_stride", "scale_head_stride", "group_stride"),
    *("y_stride", "y_head_stride", "residual_out_stride", "residual_out_head_stride"),
)
_SECOND = ("x2_stride", "x2_head_stride", "x2_out_stride", "x2_out_head_stride")
_SCALES = {"scale_stride", "scale_head_stride", "group_stride"}


def build_rmsnorm_quant(problem: RmsNormQuantProblem, build: Build) -> Run:
    """`run(*inputs, *outputs)` in the operator's order. One launch."""
    tuning: RmsNormTuning = build.tuning(problem)
    launch = build.compile(_program(problem, tuning))
    heads, x2_heads = problem.heads, problem.x2_heads
    tile_rows = _tile_rows(problem, tuning)
    x2_tile_rows = tile_rows_of(problem.x2_width, tuning)
    height = TILES.get(problem.scale_layout, (1, 1))[0]
    by_bits = interpreting()

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        quant: str,
        scale: torch.Tensor | None,
        group_size: int,
        residual: torch.Tensor | None,
        fp8_dtype: str | None,
        scale_mode: str | None,
        scale_layout: str,
        x2: torch.Tensor | None,
        x2_weight: torch.Tensor | None,
        x2_eps: float | None,
        weight_bias: float,
        cast_before_weight: bool,
        out: torch.Tensor,
        out_scale: torch.Tensor | None,
        unquantized_out: torch.Tensor | None,
        residual_out: torch.Tensor | None,
        x2_out: torch.Tensor | None,
    ) -> None:
        rows, *x_strides = rows_of(x, heads)
        x2_rows, *x2_strides = _rows(x2, x2_heads)
        if not rows and not x2_rows:
            return
        tiles = rmsnorm_programs(-(-rows // height) * height, tile_rows)
        grid = (tiles + rmsnorm_programs(x2_rows, x2_tile_rows), 1, 1)
        # The interpreter has no FP8 tensors.
        codes, scales = (_bytes(out), _bytes(out_scale)) if by_bits else (out, out_scale)
        strides = (
            *x_strides,
            *_rows(residual, heads)[1:],
            *_rows(out, heads)[1:],
            *_rows(out_scale, heads)[1:],
            0 if out_scale is None else out_scale.stride(-1),
            *_rows(unquantized_out, heads)[1:],
            *_rows(residual_out, heads)[1:],
        )
        tensors = (x, residual, weight, scale, codes, scales, unquantized_out, residual_out)
        second = (x2_rows, *x2_strides, *_rows(x2_out, x2_heads)[1:])
        launch(
            grid, *tensors, x2, x2_weight, x2_out, rows, tiles, *strides, *second,
            eps, 0.0 if x2_eps is None else x2_eps, weight_bias,
        )  # fmt: skip

    return run


def _program(problem: RmsNormQuantProblem, tuning: RmsNormTuning) -> Program:
    """The body for `problem`; tensors without a dtype are absent."""
    kind = KINDS[problem.quant]
    dtypes = {
        "x": problem.dtype,
        "residual": problem.residual_dtype,
        "weight": problem.weight_dtype,
        "scale": "float32" if kind.given else "none",
        "out": "uint8",
        "out_scale": "uint8" if kind.packed else kind.scale_dtype,
        "y_out": problem.unquantized_dtype,
        "residual_out": problem.residual_dtype,
    }
    if problem.x2_width:
        dtypes |= {
            "x2": problem.dtype,
            "x2_weight": problem.weight_dtype,
            "x2_out": problem.x2_out_dtype,
        }
    pointers = {name: POINTERS.get(dtypes.get(name, "none")) for name in _TENSORS}
    aligned = {name for name in _TENSORS if pointers[name]} - {"scale", "out_scale"}
    aligned |= {*_FIRST, *_SECOND} - _SCALES
    options: dict[str, Any] = {"num_warps": tuning.num_warps}
    if problem.pdl:
        options["launch_pdl"] = True
    group, groups, size = _groups(problem)
    mx = problem.quant == "mxfp4"
    return Program(
        rmsnorm_quant_body,
        signature={
            **pointers,
            **dict.fromkeys(("rows", "tiles"), "i32"),
            **dict.fromkeys(_FIRST, "i64"),
            "x2_rows": "i32",
            **dict.fromkeys(_SECOND, "i64"),
            **dict.fromkeys(("eps", "x2_eps", "weight_bias"), "fp32"),
        },
        constants={
            "N": problem.width,
            "HEADS": problem.heads,
            "GROUP": group,
            "GROUPS": groups,
            "SIZE": size,
            "TILE_ROWS": _tile_rows(problem, tuning),
            "QUANT": problem.quant,
            "RULE": SCALE_MODES[problem.scale_mode] if mx else problem.scale_mode == "pow2",
            "LAYOUT": problem.scale_layout,
            "FNUZ": problem.out_dtype == "float8_e4m3fnuz",
            "BY_BITS": interpreting(),
            "CAST_BEFORE_WEIGHT": problem.cast_before_weight,
            "X2_N": problem.x2_width,
            "X2_HEADS": problem.x2_heads,
            "X2_BLOCK": block_of(problem.x2_width, tuning),
            "X2_TILE_ROWS": tile_rows_of(problem.x2_width, tuning),
            "USE_PDL": problem.pdl,
        },
        aligned=frozenset(aligned if problem.aligned else ()),
        options=options,
    )


def _groups(problem: RmsNormQuantProblem) -> tuple[int, int, int]:
    """(columns that share a scale, groups of a tile, columns of a group in it)."""
    group = problem.group_size or problem.width
    groups = -(-problem.width // group)
    # A padded layout has at least one whole tile of scales.
    return group, max(_power(groups), TILES.get(problem.scale_layout, (1, 1))[1]), _power(group)


def _tile_rows(problem: RmsNormQuantProblem, tuning: RmsNormTuning) -> int:
    """Rows of a program."""
    _, groups, size = _groups(problem)
    return max(1, tuning.tile // (groups * size))


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _rows(tensor: torch.Tensor | None, heads: int) -> tuple[int, int, int]:
    """As `rows_of`; zeros for a tensor that is absent."""
    return (0, 0, 0) if tensor is None else rows_of(tensor, heads)


def _bytes(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """FP8 codes as bytes."""
    import torch

    if tensor is None or not tensor.dtype.is_floating_point or tensor.element_size() > 1:
        return tensor
    return tensor.view(torch.uint8)

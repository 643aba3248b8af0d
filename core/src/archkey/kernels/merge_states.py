# SPDX-License-Identifier: Apache-2.0
"""Builder of merge_attn_states: one launch of the shared Triton body, in place or not.

Any architecture with a Triton backend can list it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.merge_states_body import merge_states_body
from archkey.kernels.rmsnorm import POINTERS
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.mla import MergeAttnStatesProblem

__all__ = ["build_merge_attn_states"]

_TILE = 2048
"""Elements of a program: two 16-byte loads of each part a thread, to keep the memory busy."""
_WARPS = 4


def build_merge_attn_states(problem: MergeAttnStatesProblem, build: Build) -> Run:
    """`run(out_a, lse_a, out_b, lse_b, out, lse)`."""
    heads = problem.heads
    block = min(1 << (problem.head_dim_v - 1).bit_length(), _TILE)
    tile_rows = _TILE // block
    launch = build.compile(_program(problem, block, tile_rows))
    unit = unit_of(problem.dtype, problem.aligned)
    out_unit = unit_of(problem.out_dtype, problem.aligned)

    def run(
        out_a: torch.Tensor,
        lse_a: torch.Tensor,
        out_b: torch.Tensor,
        lse_b: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        rows = out_a.shape[0] * heads
        strides = [stride // unit for x in (out_a, out_b) for stride in x.stride()[:2]]
        strides += [stride // out_unit for stride in out.stride()[:2]]
        strides += [*lse_a.stride(), *lse_b.stride(), *lse.stride()]
        grid = (-(-rows // tile_rows), 1, 1)
        launch(grid, out_a, lse_a, out_b, lse_b, out, lse, rows, *strides)

    return run


def _program(problem: MergeAttnStatesProblem, block: int, tile_rows: int) -> Program:
    """The body for `problem`."""
    parts = ("out_a", "out_b", "out")
    options: dict[str, Any] = {"num_warps": _WARPS}
    if problem.pdl:
        options["launch_pdl"] = True
    strides = [f"{x}{head}_stride" for x in parts for head in ("", "_head")]
    strides += [f"{x.replace('out', 'lse')}{head}_stride" for x in parts for head in ("", "_head")]
    return Program(
        merge_states_body,
        signature={
            "out_a": POINTERS[problem.dtype],
            "lse_a": "*fp32",
            "out_b": POINTERS[problem.dtype],
            "lse_b": "*fp32",
            "out": POINTERS[problem.out_dtype],
            "lse": "*fp32",
            "rows": "i32",
            **dict.fromkeys(strides, "i64"),
        },
        constants={
            "N": problem.head_dim_v,
            "HEADS": problem.heads,
            "UNIT": unit_of(problem.dtype, problem.aligned),
            "OUT_UNIT": unit_of(problem.out_dtype, problem.aligned),
            "BLOCK": block,
            "TILE_ROWS": tile_rows,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(parts if problem.aligned else ()),
        options=options,
    )

# SPDX-License-Identifier: Apache-2.0
"""Builders of kda_gate and kda_gate_chunk_cumsum on the shared Triton body.

Grids follow from shapes alone, so a call can be captured; which chunk belongs to which sequence is
looked up on the device, in cu_seqlens. Any architecture with a Triton backend can list them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.kda_arguments import POINTERS
from archkey.kernels.kda_gate_body import kda_gate_body
from archkey.kernels.kda_gate_tunings import KdaGateTuning
from archkey.launch import Build, Program

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.kda_gate import KdaGateChunkCumsumProblem, KdaGateProblem

__all__ = ["build_kda_gate", "build_kda_gate_chunk_cumsum"]


def build_kda_gate(problem: KdaGateProblem, build: Build) -> Run:
    """`run(g, A_log, dt_bias, lower_bound, out)`."""
    tuning: KdaGateTuning = build.tuning(problem)
    size = tuning.tokens
    launch = build.compile(_program(problem, tuning, size))
    programs = problem.value_heads * _blocks(problem, tuning)
    units = _units(problem)

    def run(
        g: torch.Tensor,
        A_log: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        lower_bound: float | None,
        out: torch.Tensor,
    ) -> None:
        for x, y in _planes(g, out):
            batch, tokens = x.shape[:2]
            launch(
                (batch * -(-tokens // size) * programs, 1, 1), x, A_log, dt_bias, None, y, batch,
                tokens, lower_bound or 0.0, *_steps(x, y, *units),
            )  # fmt: skip

    return run


def build_kda_gate_chunk_cumsum(problem: KdaGateChunkCumsumProblem, build: Build) -> Run:
    """`run(g, A_log, dt_bias, cu_seqlens, chunk_indices, lower_bound, chunk_size, unit, out)`."""
    tuning: KdaGateTuning = build.tuning(problem)
    size = problem.chunk_size
    launch = build.compile(
        _program(problem, tuning, size, problem.cu_seqlens, True, problem.unit == "log2")
    )
    programs = problem.value_heads * _blocks(problem, tuning)
    units = _units(problem)

    def run(
        g: torch.Tensor,
        A_log: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        chunk_indices: torch.Tensor | None,
        lower_bound: float | None,
        chunk_size: int,
        unit: str,
        out: torch.Tensor,
    ) -> None:
        batch, tokens = g.shape[:2]
        if cu_seqlens is None:
            sequences, chunks = batch, batch * -(-tokens // size)
        else:
            # Room for a last chunk of each, and for the rows that belong to nobody.
            sequences = cu_seqlens.shape[0] - 1
            chunks = tokens // size + sequences + 1
        launch(
            (chunks * programs, 1, 1), g, A_log, dt_bias, cu_seqlens, out, sequences, tokens,
            lower_bound or 0.0, *_steps(g, out, *units),
        )  # fmt: skip

    return run


def _planes(g: torch.Tensor, out: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both as `[B, T, HV, K]`, in parts if they have more dimensions that cannot be joined."""
    while g.dim() < 4:
        g, out = g[None], out[None]
    while g.dim() > 4:
        joint = next((n for n in range(g.dim() - 3) if _joins(g, n) and _joins(out, n)), None)
        if joint is None:
            break
        g, out = g.flatten(joint, joint + 1), out.flatten(joint, joint + 1)
    for index in itertools.product(*map(range, g.shape[:-4])):
        yield g[index], out[index]


def _joins(x: torch.Tensor, n: int) -> bool:
    """Whether dimensions n and n + 1 can be one of the same memory."""
    return 1 in x.shape[n : n + 2] or x.stride(n) == x.stride(n + 1) * x.shape[n + 1]


def _blocks(problem: KdaGateProblem | KdaGateChunkCumsumProblem, tuning: KdaGateTuning) -> int:
    """Programs of a head."""
    return -(-problem.head_dim // _channels(problem, tuning))


def _channels(problem: KdaGateProblem | KdaGateChunkCumsumProblem, tuning: KdaGateTuning) -> int:
    return min(tuning.channels, max(16, 1 << (problem.head_dim - 1).bit_length()))


def _units(problem: KdaGateProblem | KdaGateChunkCumsumProblem) -> tuple[int, int]:
    """Elements in which strides of g and of out count."""
    return unit_of(problem.dtype, problem.aligned), unit_of(problem.out_dtype, problem.aligned)


def _steps(g: torch.Tensor, out: torch.Tensor, unit: int, out_unit: int) -> tuple[int, ...]:
    """Strides of a batch row, a token and a head, in units."""
    return (
        *(step // unit for step in g.stride()[:3]),
        *(step // out_unit for step in out.stride()[:3]),
    )


def _program(
    problem: KdaGateProblem | KdaGateChunkCumsumProblem,
    tuning: KdaGateTuning,
    tokens: int,
    cu_seqlens: str = "none",
    sums: bool = False,
    log2: bool = False,
) -> Program:
    """The body for `problem`; tokens: of a program."""
    unit, out_unit = _units(problem)
    strides = [f"{x}_{of}" for x in ("g", "out") for of in ("batch", "stride", "head")]
    signature: dict[str, Any] = {
        "g": POINTERS[problem.dtype],
        "A_log": POINTERS[problem.A_log],
        "dt_bias": POINTERS[problem.dt_bias],
        "cu_seqlens": POINTERS[cu_seqlens],
        "out": POINTERS[problem.out_dtype],
        **dict.fromkeys(("sequences", "tokens"), "i32"),
        "lower_bound": "fp32",
        **dict.fromkeys(strides, "i64"),
    }
    return Program(
        kda_gate_body,
        signature=signature,
        constants={
            "HV": problem.value_heads,
            "K": problem.head_dim,
            "BK": _channels(problem, tuning),
            "BLOCKS": _blocks(problem, tuning),
            "C": tokens,
            "UNIT": unit,
            "OUT_UNIT": out_unit,
            "GATE": problem.gate,
            "SUMS": sums,
            "LOG2": log2,
        },
        aligned=frozenset(("g", "out") if problem.aligned else ()),
        options={"num_warps": tuning.num_warps},
    )

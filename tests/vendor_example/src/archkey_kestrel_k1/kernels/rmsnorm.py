# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, with residual add and as two norms, on tiles of rows."""

from __future__ import annotations

from typing import Any

import torch

from archkey.kernel import Run
from archkey.launch import Build
from archkey_kestrel_k1.runtime import heads, stream

__all__ = ["build_fused_add_rmsnorm", "build_fused_qk_rmsnorm", "build_rmsnorm"]


def build_rmsnorm(problem: Any, build: Build) -> Run:
    """`run(x, weight, eps, weight_bias, cast_before_weight, out)`."""
    rows = build.tuning(problem).rows

    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        weight_bias: float,
        cast_before_weight: bool,
        out: torch.Tensor,
    ) -> None:
        factor = weight.float() + weight_bias
        cast = x.dtype if problem.cast_before_weight else None
        for xs, outs in heads(x, out):
            stream(lambda tile: [_norm(tile, factor, eps, cast)], [xs], [outs], rows)

    return run


def build_fused_add_rmsnorm(problem: Any, build: Build) -> Run:
    """`run(x, residual, weight, eps, weight_bias, cast_before_weight, out, residual_out)`."""
    rows = build.tuning(problem).rows

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
        factor = weight.float() + weight_bias
        cast = x.dtype if problem.cast_before_weight else None

        def program(tile: torch.Tensor, added: torch.Tensor) -> list[torch.Tensor]:
            total = tile + added
            return [_norm(total, factor, eps, cast), total]

        for xs, residuals, outs, sums in heads(x, residual, out, residual_out):
            stream(program, [xs, residuals], [outs, sums], rows)

    return run


def build_fused_qk_rmsnorm(problem: Any, build: Build) -> Run:
    """`run(q, q_weight, q_eps, k, k_weight, k_eps, weight_bias, cast_before_weight, *outs)`."""
    one = build_rmsnorm(problem, build)

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
        if q is not None:
            one(q, q_weight, q_eps, weight_bias, cast_before_weight, q_out)
        one(k, k_weight, k_eps, weight_bias, cast_before_weight, k_out)

    return run


def _norm(
    tile: torch.Tensor, factor: torch.Tensor, eps: float, cast: torch.dtype | None
) -> torch.Tensor:
    y = tile * (tile.square().mean(1, keepdim=True) + eps).rsqrt()
    if cast is not None:
        y = y.to(cast).float()
    return y * factor

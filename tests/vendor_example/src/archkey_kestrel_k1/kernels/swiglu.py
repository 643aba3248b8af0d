# SPDX-License-Identifier: Apache-2.0
"""kestrel_swiglu on tiles of rows."""

from __future__ import annotations

import torch

from archkey.kernel import Run
from archkey.launch import Build
from archkey_kestrel_k1.runtime import stream
from archkey_kestrel_k1.swiglu import KestrelSwigluProblem

__all__ = ["build_kestrel_swiglu"]


def build_kestrel_swiglu(problem: KestrelSwigluProblem, build: Build) -> Run:
    """`run(x, limit, out)`."""
    width, rows = problem.width, build.tuning(problem).rows

    def run(x: torch.Tensor, limit: float | None, out: torch.Tensor) -> None:
        def program(tile: torch.Tensor) -> list[torch.Tensor]:
            gate, up = tile[:, :width], tile[:, width:]
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            return [gate / (1 + (-gate).exp()) * up]

        stream(program, [x], [out], rows)

    return run

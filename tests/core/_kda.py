# SPDX-License-Identifier: Apache-2.0
"""What the tests of the KDA family share: valid calls, and a session that records them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.ops.kda import OPERATORS, chunk_kda, fused_recurrent_kda

BF16 = torch.bfloat16
VALUE, TYPE = ArgumentValueError, ArgumentTypeError
BOTH = pytest.mark.parametrize("function", [chunk_kda, fused_recurrent_kda], ids=["chunk", "recur"])


class Recorder:
    """A session that keeps the problem and the arguments instead of launching."""

    fp8 = "e4m3fn"

    def __init__(self, validate: bool = False) -> None:
        self.validate = validate
        self.problems: dict[Any, Any] = {}
        self.problem: Any = None
        self.arguments: tuple[Any, ...] = ()

    def launcher(self, problem: Any) -> Any:
        self.problem = problem

        def run(*arguments: Any) -> None:
            self.arguments = arguments

        return run

    def named(self) -> dict[str, Any]:
        """Arguments of the launch by the operator's names; outputs win over inputs."""
        operator = next(o for o in OPERATORS if o.name == self.problem.operator)
        return dict(zip((*operator.inputs, *operator.outputs), self.arguments, strict=True))


def tokens(*shape: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """q, k, v, g, beta for `[B, T]`, by default `[1, 70]`; H=2, HV=4, K=16, V=8, bf16."""
    batch, length = shape or (1, 70)
    gen = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {
        "q": torch.randn(batch, length, 2, 16, generator=gen).to(BF16),
        "k": torch.randn(batch, length, 2, 16, generator=gen).to(BF16) / 4,
        "v": torch.randn(batch, length, 4, 8, generator=gen).to(BF16),
        "g": -torch.rand(batch, length, 4, 16, generator=gen),
        "beta": torch.rand(batch, length, 4, generator=gen),
    }
    return values | changes


def states(number: int, dtype: torch.dtype = torch.float32, v_first: bool = False) -> torch.Tensor:
    shape = (number, 4, 8, 16) if v_first else (number, 4, 16, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)


CU = torch.tensor([0, 30, 30, 66])

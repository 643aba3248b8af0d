# SPDX-License-Identifier: Apache-2.0
"""RMSNorm on rows with heavy tails and outlier channels, for level accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.case import Maker
from archkey.conformance.cases.distributions import ACTIVATIONS, activations

__all__ = ["CASES"]


@dataclass(frozen=True)
class RealNorm:
    """A call of rmsnorm, or with a residual of fused_add_rmsnorm, on bfloat16 rows of `kind`."""

    kind: str
    tokens: int
    width: int
    residual: bool

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        x = activations(make, self.kind, self.tokens, self.width).bfloat16()
        weight = (1 + 0.3 * make.randn(self.width, dtype=torch.float32)).bfloat16()
        call = {"x": x, "weight": weight, "eps": 1e-6}
        if self.residual:
            call["residual"] = activations(make, self.kind, self.tokens, self.width).bfloat16()
        return call


CASES = tuple(
    AccuracyCase(
        "fused_add_rmsnorm" if residual else "rmsnorm",
        kind,
        f"{tokens} tokens, N={width}, bf16",
        RealNorm(kind, tokens, width, residual),
        edge=size == "interpreter",
        large=size == "card",
    )
    for residual in (False, True)
    for kind in ACTIVATIONS
    for size, tokens, width in (
        ("interpreter", 260, 1024),
        ("cpu", 600, 7168),
        ("card", 8192, 7168),
    )
)

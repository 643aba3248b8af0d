# SPDX-License-Identifier: Apache-2.0
"""A case: one operator at the shapes of one real model, with inputs made from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Case", "Maker"]


class Maker:
    """Makes the inputs of a case: the same seed gives the same numbers on every device."""

    def __init__(self, device: torch.device | str = "cpu", seed: int = 0, fp8: str = "e4m3fn"):
        self.device = torch.device(device)
        self.fp8: torch.dtype = getattr(torch, f"float8_{fp8}")
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Standard normal numbers, rounded to `dtype`."""
        return torch.randn(shape, generator=self._generator).to(self.device, dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform numbers in [0, 1), rounded to `dtype`."""
        return torch.rand(shape, generator=self._generator).to(self.device, dtype)

    def permutation(self, n: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """The numbers 0 .. n-1 in random order: shuffled pages."""
        return torch.randperm(n, generator=self._generator).to(self.device, dtype)

    def randint(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Any:
        """Uniform integers in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator).to(self.device, dtype)

    def tensor(self, values: Any, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Given values, on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Case:
    """`inputs(maker)` gives the keyword arguments of the operator's public function."""

    operator: str
    model: str  # "DeepSeek-V3 TP8"
    label: str  # sizes: "B=4, kv 1k-2k, H=16, page 64, bf16"
    inputs: Callable[[Maker], Mapping[str, Any]]

# SPDX-License-Identifier: Apache-2.0
"""A case: one operator at one set of shapes, with inputs made from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

__all__ = ["Arrangement", "Case", "Maker"]


class Maker:
    """Makes the inputs of a case: the same seed gives the same numbers on every device.

    poisons  whether memory that nobody may read holds NaN and indices far outside
    """

    poisons = True

    def __init__(self, device: torch.device | str = "cpu", seed: int = 0, fp8: str = "e4m3fn"):
        self.device = torch.device(device)
        self.fp8: torch.dtype = getattr(torch, f"float8_{fp8}")
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Standard normal numbers, rounded to `dtype`."""
        return torch.randn(shape, **self._source()).to(self.device, dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform numbers in [0, 1), rounded to `dtype`."""
        return torch.rand(shape, **self._source()).to(self.device, dtype)

    def permutation(self, n: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """The numbers 0 .. n-1 in random order: shuffled pages."""
        return torch.randperm(n, **self._source()).to(self.device, dtype)

    def randint(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Any:
        """Uniform integers in [low, high)."""
        return torch.randint(low, high, shape, **self._source()).to(self.device, dtype)

    def _source(self) -> dict[str, Any]:
        """Where random numbers are drawn, and by what."""
        return {"generator": self._generator, "device": self._generator.device}

    def far(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The same values, so far apart along `dim` that the last lies past element 2^31.

        What is between them is never touched, so on a CPU it takes no memory. For a kernel that
        multiplies an index by a stride in 32 bits the last entry is somewhere else.
        """
        size, strides = list(tensor.shape), list(tensor.stride())
        strides[dim] = -(-(2**31) // (size[dim] - 1)) + 127 & ~127  # rows stay aligned
        span = sum((n - 1) * stride for n, stride in zip(size, strides, strict=True)) + 1
        room = torch.empty(span, dtype=tensor.dtype, device=self.device)
        return room.as_strided(size, strides).copy_(tensor)

    def tensor(self, values: Any, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Given values, on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)


class Arrangement(NamedTuple):
    """A call that computes rows of a case's own call once more: to the bit, as its operator says.

    about   how it differs: "each alone", "token by token"
    inputs  keyword arguments of the operator's public function
    rows    of each row of its outputs, which one of the case's own it is; a row is what belongs to
            one query, whatever dimensions say where it lies. By an output's name where outputs
            have rows of several kinds: of a query, and of a sequence
    """

    about: str
    inputs: Mapping[str, Any]
    rows: Sequence[int] | Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Case:
    """`inputs(maker)` gives the keyword arguments of the operator's public function.

    The case of a real model has the model's sizes. An edge case has real widths and few rows, is
    made to break what is easily done wrong, and is small enough for an interpreter. A large one is
    an edge that no interpreter has time for.

    `again(maker)` gives further calls, of another maker with the same seed, whose rows are to have
    the same bits; for operators that promise that a result does not depend on its batch.
    """

    operator: str
    model: str  # "DeepSeek-V3 TP8"; of an edge case what it is about: "window of one key"
    label: str  # sizes: "B=4, kv 1k-2k, H=16, page 64, bf16"
    inputs: Callable[[Maker], Mapping[str, Any]]
    edge: bool = False
    large: bool = False
    again: Callable[[Maker], Iterable[Arrangement]] | None = None

    @property
    def real(self) -> bool:
        """Whether it is a real model's."""
        return not (self.edge or self.large)

    @property
    def name(self) -> str:
        """Unique among the cases of its operator."""
        return f"{self.model}: {self.label}" if self.model else self.label

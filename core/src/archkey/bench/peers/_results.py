# SPDX-License-Identifier: Apache-2.0
"""What adapters make of a library's results: kept, in archkey's shapes, with a word on the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch

from archkey.bench.peers._arguments import wants_lse

__all__ = ["LN2", "Last", "attended", "joined"]

LN2 = 0.6931471805599453
"""A logarithm to base 2 times this is the natural one."""

Result = TypeVar("Result")


class Last(Generic[Result]):
    """A call that keeps its result, for `Bound.outputs` to read."""

    result: Result

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call

    def __call__(self) -> None:
        self.result = self._call()


def attended(
    inputs: Mapping[str, Any], out: torch.Tensor, lse: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """out `[T, H, d]` in the shape of q, and lse `[T, H]` if there is one and the call asks."""
    found = {"out": out.view(*inputs["q"].shape[:-1], out.shape[-1])}
    return found if lse is None or not wants_lse(inputs) else {**found, "lse": lse}


def joined(*parts: str) -> str:
    """A `Bound.how` of those parts that say something."""
    return "; ".join(filter(None, parts))

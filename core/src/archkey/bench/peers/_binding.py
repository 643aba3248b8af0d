# SPDX-License-Identifier: Apache-2.0
"""What several adapters need: to refuse, to keep a result, and archkey's arguments in other forms.

Reading values waits for the device: an adapter does it while binding, never in its call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from archkey.bench.entrant import NotServed

__all__ = [
    "HINTS",
    "Last",
    "all_covered",
    "given",
    "natural_lse",
    "require",
    "softmax_scale",
    "token_slots",
]

Inputs = Mapping[str, Any]

HINTS = ("max_seqlen_q", "max_seqlen_k")
"""Arguments that bound sizes and change no result."""


class Last:
    """A call that keeps its result, for `Bound.outputs` to read."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.result: Any = None

    def __call__(self) -> None:
        self.result = self._call()


def require(served: bool, reason: str) -> None:
    """NotServed with `reason` unless the library serves the call."""
    if not served:
        raise NotServed(reason)


def given(inputs: Inputs, *names: str) -> dict[str, Any]:
    """Those of the arguments that the call has; the others keep the library's defaults."""
    return {name: inputs[name] for name in names if inputs.get(name) is not None}


def softmax_scale(inputs: Inputs) -> float:
    """softmax_scale, or sm_scale, which is the same."""
    scale = inputs.get("softmax_scale")
    return float(inputs["sm_scale"] if scale is None else scale)


def natural_lse(lse: torch.Tensor) -> torch.Tensor:
    """The +inf that FlashMLA gives for an empty row as archkey's -inf."""
    return lse.masked_fill(lse == math.inf, -math.inf)


def all_covered(cu_seqlens: torch.Tensor | None, tokens: int) -> None:
    """Refuse rows that belong to no sequence: no library but ours writes zeros there."""
    if cu_seqlens is not None:
        require(int(cu_seqlens[-1]) == tokens, "rows past the last sequence are not written")


def token_slots(
    block_table: torch.Tensor, lengths: torch.Tensor, page_size: int, window_left: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of each sequence one by one: (indptr `[B + 1]` int32, slots int64).

    window_left  of the last query: keys before it are left out
    """
    rows = []
    for pages, length in zip(block_table, lengths.tolist(), strict=False):
        first = max(length - 1 - window_left, 0) if window_left >= 0 else 0
        at = torch.arange(first, length, device=block_table.device)
        rows.append(pages.long()[at // page_size] * page_size + at % page_size)
    counts = torch.tensor([0, *map(len, rows)], device=block_table.device)
    return counts.cumsum(0).int(), torch.cat(rows)

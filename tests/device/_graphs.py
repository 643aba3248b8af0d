# SPDX-License-Identifier: Apache-2.0
"""A call in a graph, and what its replay wrote against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archkey.conformance.tolerances import bound, distance

__all__ = ["captured", "near"]


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of `call`, and the tensors that each replay writes."""
    call()  # builds; a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


def near(operator: str, name: str, got: torch.Tensor, want: torch.Tensor, source: str) -> bool:
    """Whether an output is within its bound on a card; source: as of `tolerances.source_of`."""
    return distance(got, want, name) <= bound(operator, name, got.dtype, "device", source).value

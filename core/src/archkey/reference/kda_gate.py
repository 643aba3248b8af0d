# SPDX-License-Identifier: Apache-2.0
"""The log gate of Kimi Delta Attention, alone and summed inside chunks."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

__all__ = ["kda_gate", "kda_gate_chunk_cumsum", "spans"]


def kda_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor]:
    """The log gate of raw ``g [..., HV, K]``, in natural-log units.

    ``-exp(A_log) softplus(g + dt_bias)``, or with a lower bound
    ``lower_bound * sigmoid(exp(A_log) (g + dt_bias))``. ``A_log [HV]`` None stands for 0,
    ``dt_bias`` is ``[HV, K]`` or ``[HV * K]``.
    """
    x = g.to(compute_dtype)
    if dt_bias is not None:
        x = x + dt_bias.to(compute_dtype).reshape(g.shape[-2:])
    rate = 1.0 if A_log is None else A_log.to(compute_dtype).reshape(-1, 1).exp()
    if lower_bound is None:
        return (-rate * torch.nn.functional.softplus(x, threshold=20),)
    return (lower_bound * torch.sigmoid(rate * x),)


def kda_gate_chunk_cumsum(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    lower_bound: float | None = None,
    chunk_size: int = 64,
    unit: str = "ln",
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor]:
    """Running sum of the gate inside each chunk: ``G_i = sum of g_t, t <= i``, ``[B, T, HV, K]``.

    Chunks start anew with each sequence. ``unit`` "ln" keeps natural-log units; "log2" divides by
    ln 2, for kernels that work with exp2. Rows past the last sequence are 0.
    """
    (gate,) = kda_gate(g, A_log, dt_bias, lower_bound, compute_dtype=compute_dtype)
    rows = gate.flatten(0, 1)
    sums = torch.zeros_like(rows)
    for start, stop in spans(g, cu_seqlens):
        for first in range(start, stop, chunk_size):
            last = min(first + chunk_size, stop)
            sums[first:last] = rows[first:last].cumsum(0)
    return (sums.view_as(gate) / (math.log(2) if unit == "log2" else 1.0),)


def spans(x: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, int]]:
    """First and end token of each sequence, counted through ``[B, T]``."""
    batch, length = x.shape[:2]
    if cu_seqlens is None:
        return [(n * length, (n + 1) * length) for n in range(batch)]
    return list(itertools.pairwise(cu_seqlens.tolist()))

# SPDX-License-Identifier: Apache-2.0
"""KDA by a scalar loop in float64 numpy, and the tokens that it and the references take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from archkey.reference import kda as reference

F64 = torch.float64


def make(
    shape: tuple[int, int] = (2, 37),
    heads: tuple[int, int] = (2, 4),
    dims: tuple[int, int] = (8, 6),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """q, k, v, g, beta as a layer would give them when all activations are done outside."""
    gen = torch.Generator().manual_seed(seed)
    (h, hv), (kd, vd) = heads, dims
    k = torch.randn(*shape, h, kd, generator=gen)
    return {
        "q": torch.randn(*shape, h, kd, generator=gen).to(dtype),
        "k": (k / k.norm(dim=-1, keepdim=True)).to(dtype),
        "v": torch.randn(*shape, hv, vd, generator=gen).to(dtype),
        "g": -torch.rand(*shape, hv, kd, generator=gen).to(dtype),
        "beta": torch.rand(*shape, hv, generator=gen).to(dtype),
    }


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def loop(
    x: dict[str, torch.Tensor], states: np.ndarray, spans: list[tuple[int, int]]
) -> np.ndarray:
    """Head by head and token by token; `states` [N, HV, K, V] is updated in place."""
    q, k, v, g, beta = (x[n].double().flatten(0, 1).numpy() for n in ("q", "k", "v", "g", "beta"))
    group = v.shape[1] // q.shape[1]
    o = np.zeros(v.shape)
    for n, (start, stop) in enumerate(spans):
        for head in range(v.shape[1]):
            s = states[n, head]
            for t in range(start, stop):
                qt, kt = q[t, head // group], k[t, head // group]
                s *= np.exp(g[t, head])[:, None]
                error = v[t, head] - s.T @ kt
                s += beta[t, head] * np.outer(kt, error)
                o[t, head] = s.T @ qt / math.sqrt(len(qt))
    return o.reshape(x["v"].shape)


def close(got: torch.Tensor, want: np.ndarray, tolerance: float = 1e-12) -> None:
    scale = np.abs(want).max(initial=1e-3)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=0, atol=tolerance * scale)


def both(x: dict[str, torch.Tensor], **options: Any) -> list[tuple[torch.Tensor, ...]]:
    """Results of the recurrence and of the chunk form, the latter also in float64."""
    chunk = {k: v for k, v in options.items() if k != "inplace_final_state"}
    return [
        reference.fused_recurrent_kda(**x, **options, compute_dtype=F64),
        reference.chunk_kda(**x, **chunk, compute_dtype=F64)[:2],
    ]

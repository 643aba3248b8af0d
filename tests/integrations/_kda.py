# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention as it is defined, in float64, written anew for tests against its clients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["defined", "error", "gated"]


def gated(
    g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None
) -> Tensor:
    """The log gate of raw g `[.., HV, K]`."""
    x = g.double()
    if dt_bias is not None:
        x = x + dt_bias.double().view(x.shape[-2:])
    rate = 1.0 if A_log is None else A_log.double().view(-1, 1).exp()
    if lower_bound is not None:
        return lower_bound / (1 + (-rate * x).exp())
    return -rate * torch.logaddexp(x, torch.zeros_like(x))


def defined(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    bounds: list[int] | None = None,
    norm: bool = False,
) -> tuple[Tensor, Tensor]:
    """(o `[B, T, HV, V]`, last states `[N, HV, K, V]`) of finished gates and betas.

    bounds  of packed sequences, with B = 1
    """
    q, k, v, g, beta = (x.double() for x in (q, k, v, g, beta))
    if norm:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    group = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(group, 2) for x in (q, k))
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    rows: list[tuple[Any, ...]] = [(b, slice(None)) for b in range(len(q))]
    if bounds is not None:
        rows = [(0, slice(*pair)) for pair in zip(bounds, bounds[1:], strict=False)]
    o, states = torch.zeros_like(v), []
    for n, (b, part) in enumerate(rows):
        shape = v.shape[2], q.shape[-1], v.shape[-1]
        state = q.new_zeros(shape) if initial_state is None else initial_state[n].double()
        for t in range(len(q[b]))[part]:
            state = state * g[b, t].exp()[..., None]
            off = v[b, t] - (k[b, t][..., None] * state).sum(1)
            state = state + (beta[b, t][:, None] * k[b, t])[..., None] * off[:, None]
            o[b, t] = (q[b, t][..., None] * state).sum(1)
        states.append(state)
    return o, torch.stack(states) if states else q.new_zeros(0, *v.shape[2:], v.shape[-1])


def error(got: Tensor, want: Tensor) -> float:
    """As fla's tests count: root mean square of the error over that of what is right."""
    assert got.shape == want.shape
    assert bool(got.isfinite().all())
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))

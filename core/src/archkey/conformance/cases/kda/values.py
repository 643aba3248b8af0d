# SPDX-License-Identifier: Apache-2.0
"""The numbers that calls of KDA are made of."""

from __future__ import annotations

import torch

from archkey.conformance.case import Maker

__all__ = ["gate_parameters", "pool_of", "projections", "raw_gate"]


def gate_parameters(
    make: Maker, heads: int, dim: int, A_log: str, dt_bias: str
) -> dict[str, torch.Tensor | None]:
    """A_log `[HV]` and dt_bias `[HV K]`.

    A_log    normal: rates 1 .. 16; slow: e^-12, no decay to speak of; fast: e^4; mixed: one head
             slow, the next fast; absent
    dt_bias  normal: as the layer is initialised; extreme: -8 and 8 in turn; flat: `[HV, K]`, bf16;
             absent
    """
    head = torch.arange(heads, device=make.device)
    rates = {
        "normal": make.rand(heads) * 2.77,
        "slow": torch.full((heads,), -12.0, device=make.device),
        "fast": torch.full((heads,), 4.0, device=make.device),
        "mixed": torch.where(head % 2 == 0, -12.0, 4.0),
        "absent": None,
    }
    initial = make.rand(heads * dim) * 4.6 - 6.9
    turns = torch.arange(heads * dim, device=make.device) % 2 * 16.0 - 8
    biases = {
        "normal": initial,
        "extreme": turns,
        "flat": (turns / 8).view(heads, dim).bfloat16(),
        "absent": None,
    }
    return {"A_log": rates[A_log], "dt_bias": biases[dt_bias]}


def raw_gate(make: Maker, shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> torch.Tensor:
    """Raw g: normal; extreme, in +-100: softplus is linear there and its exponential overflows; or
    threshold, in 19 .. 21, where softplus becomes linear."""
    if kind == "extreme":
        return (make.rand(*shape) * 200 - 100).to(dtype)
    if kind == "threshold":
        return (make.rand(*shape) * 2 + 19).to(dtype)
    return make.randn(*shape, dtype=dtype)


def pool_of(make: Maker, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """`states` of a pool; those of nobody become NaN and infinite in turn."""
    if not make.poisons:
        return states
    used = set(slots.flatten().tolist())
    for i, slot in enumerate(s for s in range(len(states)) if s not in used):
        states[slot] = (float("nan"), float("inf"), float("-inf"))[i % 3]
    return states


def projections(
    make: Maker, lead: tuple[int, ...], heads: tuple[int, int], dims: tuple[int, int], l2norm: str
) -> torch.Tensor:
    """q, k and v side by side, float32 `[*lead, 2 H K + HV V]`.

    A query lies near its key: where a steep gate leaves nothing else, their product is what the
    output is made of, and it must not vanish by chance. l2norm is as in `Kda`.
    """
    (h, hv), (k_dim, v_dim) = heads, dims
    row = make.randn(*lead, 2 * h * k_dim + hv * v_dim, dtype=torch.float32)
    q, k = row[..., : h * k_dim], row[..., h * k_dim : 2 * h * k_dim]
    q.mul_(0.5).add_(k)
    if l2norm == "small":
        row[..., : 2 * h * k_dim] *= 1e-3 / k_dim**0.5
    elif not l2norm:  # states stay bounded with keys of unit length
        keys = k.unflatten(-1, (h, k_dim))
        keys /= keys.norm(dim=-1, keepdim=True)
    return row

# SPDX-License-Identifier: Apache-2.0
"""kestrel_swiglu in plain torch."""

from __future__ import annotations

import torch

__all__ = ["kestrel_swiglu"]


def kestrel_swiglu(
    x: torch.Tensor, limit: float | None, *, compute_dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor]:
    """(out,) `[T, N]`, unrounded, from x `[T, 2 N]`."""
    gate, up = x.to(compute_dtype).chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(gate) * up,)

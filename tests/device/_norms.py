# SPDX-License-Identifier: Apache-2.0
"""How far the norms of a card may lie from the reference, in units in the last place."""

from __future__ import annotations

import torch

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def ulps(out: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Distance in representable numbers of out's dtype."""
    kind = _BITS[out.dtype]

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(kind).long()
        return torch.where(bits < 0, -(bits & torch.iinfo(kind).max), bits)

    return (ordered(out) - ordered(want.to(out.dtype))).abs()


def agree(out: torch.Tensor, want: torch.Tensor) -> None:
    """`out` is `want`, rounded once; float32 sums may be in another order."""
    far = ulps(out, want)
    limit = 2 if out.dtype != torch.float32 else 64
    assert bool(out.isfinite().all())
    assert int(far.max()) <= limit
    assert limit != 2 or (far > 1).double().mean().item() <= 1e-3

# SPDX-License-Identifier: Apache-2.0
"""merge_attn_states on tiles of rows: two weights a row, and their normaliser."""

from __future__ import annotations

from typing import Any

import torch

from archkey.kernel import Run
from archkey.launch import Build
from archkey_kestrel_k1.runtime import heads, stream

__all__ = ["build_merge_attn_states"]


def build_merge_attn_states(problem: Any, build: Build) -> Run:
    """`run(out_a, lse_a, out_b, lse_b, out, lse)`."""
    rows = build.tuning(problem).rows

    def run(
        out_a: torch.Tensor,
        lse_a: torch.Tensor,
        out_b: torch.Tensor,
        lse_b: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        lses = (lse_a.unsqueeze(-1), lse_b.unsqueeze(-1), lse.unsqueeze(-1))
        for a, a_lse, b, b_lse, o, o_lse in heads(out_a, lses[0], out_b, lses[1], out, lses[2]):
            stream(_merge, [a, a_lse, b, b_lse], [o, o_lse], max(1, rows // 2))

    return run


def _merge(
    a: torch.Tensor, a_lse: torch.Tensor, b: torch.Tensor, b_lse: torch.Tensor
) -> list[torch.Tensor]:
    inf = float("inf")
    first, second = a_lse.where(a_lse != inf, -inf), b_lse.where(b_lse != inf, -inf)
    lse = torch.logaddexp(first, second)
    shift = lse.where(lse != -inf, 0.0)  # both empty: the weights are 0, not NaN
    weighted = torch.zeros_like(a)
    for tile, own in ((a, first), (b, second)):
        # What belongs to an empty half was never written: it is not read either.
        weighted += torch.where(own > -inf, tile * (own - shift).exp(), 0.0)
    return [weighted, lse]

# SPDX-License-Identifier: Apache-2.0
"""The numbers that calls of MLA and sparse MLA are made of, and where a cache has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.tensors import unused_table

__all__ = [
    "DEEPSEEK_SCALE",
    "GAIN",
    "GLM_SCALE",
    "descale_kind",
    "paged_slots",
    "real_values",
    "small",
    "stored",
]

DEEPSEEK_SCALE = (128 + 64) ** -0.5
GLM_SCALE = (192 + 64) ** -0.5

GAIN = 40.0
"""Of queries over keys."""


def small(make: Maker, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers of standard deviation 0.1, cut at 1, rounded once."""
    return real_values(make, *shape).to(dtype)


def real_values(make: Maker, *shape: int, gain: float = 1.0) -> torch.Tensor:
    """Normal numbers of standard deviation gain / 10, cut at gain, in float32."""
    return (make.randn(*shape, dtype=torch.float32) / 10).clamp(-1, 1) * gain


def stored(values: torch.Tensor, dtype: torch.dtype, descale: float | None) -> torch.Tensor:
    """`values` as a tensor of `dtype` holds them: `real = stored * descale`."""
    return (values / (1 if descale is None else descale)).to(dtype)


def descale_kind(tensors: str, name: str) -> str:
    """How the descale `name` is passed, see `factor`, where `tensors` names those that are ones."""
    return "tensor" if name in tensors.split() else "number"


def paged_slots(
    make: Maker, lengths: Sequence[int], page: int, spare: int = 2
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Block table `[B, n]`, the slots of each sequence's tokens, and the number of blocks.

    Pages are shuffled; `spare` blocks more than needed exist. The table is two entries wider than
    needed; its unused entries name pages that do not exist.
    """
    counts = [-(-length // page) for length in lengths]
    blocks = sum(counts) + spare
    order = make.permutation(blocks)
    table = unused_table(make, len(lengths), max(counts) + 2)
    slots, start = [], 0
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[b, :count] = order[start : start + count]
        start += count
        position = torch.arange(length, device=make.device)
        slots.append(table[b, position // page].long() * page + position % page)
    return table, slots, blocks

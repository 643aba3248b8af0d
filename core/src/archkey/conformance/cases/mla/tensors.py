# SPDX-License-Identifier: Apache-2.0
"""Tensors for the cases of MLA and sparse MLA: paged, strided, and poisoned where nobody looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.guard import poison

__all__ = [
    "DEEPSEEK_SCALE",
    "GLM_SCALE",
    "NO_PAGE",
    "bounds",
    "dtype_of",
    "empty",
    "factor",
    "head_major",
    "paged_slots",
    "put",
    "real_values",
    "small",
    "stored",
    "stretched",
]

NO_PAGE = 2147480000
"""What stands in unused entries of a block table; times a page size it overflows 32 bits."""

DEEPSEEK_SCALE = (128 + 64) ** -0.5
GLM_SCALE = (192 + 64) ** -0.5


def dtype_of(make: Maker, name: str) -> torch.dtype:
    """The dtype called "bf16", "fp16", "fp32", or "fp8": the device's flavour."""
    return make.fp8 if name == "fp8" else DTYPES[name]


def small(make: Maker, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers of standard deviation 0.1, cut at 1, rounded once."""
    return real_values(make, *shape).to(dtype)


def real_values(make: Maker, *shape: int, gain: float = 1.0) -> torch.Tensor:
    """Normal numbers of standard deviation gain / 10, cut at gain, in float32."""
    return (make.randn(*shape, dtype=torch.float32) / 10).clamp(-1, 1) * gain


def stored(values: torch.Tensor, dtype: torch.dtype, descale: float | None) -> torch.Tensor:
    """`values` as a tensor of `dtype` holds them: `real = stored * descale`."""
    return (values / (1 if descale is None else descale)).to(dtype)


def factor(make: Maker, descale: float | None, tensor: bool) -> float | torch.Tensor | None:
    """A dequantisation factor as it is passed: a number, or one float32 element."""
    if descale is None or not tensor:
        return descale
    return torch.full((1,), descale, device=make.device)


def empty(make: Maker, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of NaN, or of indices far outside."""
    tensor = torch.empty(shape, dtype=dtype, device=make.device)
    poison(tensor)
    return tensor


def put(pool: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """`pool[rows] = values`, for FP8 too, which torch does not scatter."""
    if pool.dtype.itemsize == 1:
        pool, values = pool.view(torch.uint8), values.view(torch.uint8)
    pool[rows] = values


def stretched(make: Maker, tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same values, with NaN between: `gap` elements after each row, a row after each block.

    0 leaves the tensor as it is; the last stride stays 1 either way.
    """
    if not gap:
        return tensor
    first, *inner, last = tensor.shape
    room = empty(make, first, *(n + 1 for n in inner), last + gap, dtype=tensor.dtype)
    view = room[tuple(slice(0, n) for n in tensor.shape)]
    return view.copy_(tensor)


def head_major(make: Maker, tokens: int, heads: int) -> torch.Tensor:
    """A buffer `[H, T]` for one number a row, as the view `[T, H]`."""
    return empty(make, heads, tokens, dtype=torch.float32).T


def bounds(make: Maker, lengths: Sequence[int]) -> torch.Tensor:
    """cu_seqlens `[B + 1]` of ragged sequences."""
    return make.tensor([sum(lengths[:b]) for b in range(len(lengths) + 1)])


def paged_slots(
    make: Maker, lengths: Sequence[int], page: int, spare: int = 2
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Block table `[B, n]`, the slots of each sequence's tokens, and the number of blocks.

    Pages are shuffled; `spare` blocks more than needed exist. The table is two entries wider than
    needed; its unused entries name pages that do not exist, -1 among them.
    """
    counts = [-(-length // page) for length in lengths]
    blocks = sum(counts) + spare
    order = make.permutation(blocks)
    width = max(counts) + 2
    table = make.tensor([NO_PAGE, -1]).repeat(-(-width // 2))[:width].repeat(len(lengths), 1)
    slots, start = [], 0
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[b, :count] = order[start : start + count]
        start += count
        position = torch.arange(length, device=make.device)
        slots.append(table[b, position // page].long() * page + position % page)
    return table, slots, blocks

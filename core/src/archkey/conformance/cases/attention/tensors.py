# SPDX-License-Identifier: Apache-2.0
"""Tensors for the cases of attention: strided, far, and poisoned where nobody may look."""

from __future__ import annotations

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.guard import poison

__all__ = ["NOWHERE", "dtype_of", "empty", "factor", "fused", "put", "spread"]

NOWHERE = 2147480000
"""What engines leave in unused entries of a table; times a page size it overflows 32 bits."""


def dtype_of(make: Maker, name: str) -> torch.dtype:
    """The dtype called "bf16", "fp16", "fp32", or "fp8": the device's flavour."""
    return make.fp8 if name == "fp8" else DTYPES[name]


def empty(make: Maker, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of NaN, or of indices far outside."""
    tensor = torch.empty(shape, dtype=dtype, device=make.device)
    poison(tensor)
    return tensor


def put(pool: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """`pool[pages, slots] = values`, for FP8 too, which torch does not scatter."""
    if pool.dtype.itemsize == 1:
        pool, values = pool.view(torch.uint8), values.view(torch.uint8)
    pool[pages, slots] = values


def spread(make: Maker, tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same values, `gap` poisoned elements after each row and a poisoned row after each block.

    0 leaves the tensor as it is; the last stride stays 1 either way.
    """
    if not gap:
        return tensor
    first, *inner, last = tensor.shape
    room = empty(make, first, *(n + 1 for n in inner), last + gap, dtype=tensor.dtype)
    return room[tuple(slice(0, n) for n in tensor.shape)].copy_(tensor)


def fused(make: Maker, k: torch.Tensor, v: torch.Tensor, how: str) -> tuple[torch.Tensor, ...]:
    """K and V as views of one tensor.

    how  "columns" `[blocks, .., D + Dv]`, "blocks" `[blocks, 2, ..]`, "halves" `[2, blocks, ..]`
    """
    if how == "columns":
        room = empty(make, *k.shape[:-1], k.shape[-1] + v.shape[-1], dtype=k.dtype)
        views = room[..., : k.shape[-1]], room[..., k.shape[-1] :]
    else:
        dim = ("halves", "blocks").index(how)
        room = empty(make, *k.shape[:dim], 2, *k.shape[dim:], dtype=k.dtype)
        views = room.select(dim, 0), room.select(dim, 1)
    return tuple(view.copy_(x) for view, x in zip(views, (k, v), strict=True))


def factor(
    make: Maker, value: float | None, kind: str, sequences: int = 1, kv_heads: int = 1
) -> float | torch.Tensor | None:
    """A scale as it is passed.

    kind  "number", "scalar" (no dimension), "tensor" (one element), and for descales `[B, Hk]`:
          "per_head" (each another one, around `value`), "transposed", "expanded" (one for all)
    """
    if value is None or kind == "number":
        return value
    one = torch.full((), value, dtype=torch.float32, device=make.device)
    if kind == "scalar":
        return one
    if kind == "tensor":
        return one.reshape(1)
    if kind == "expanded":
        return one.expand(sequences, kv_heads)
    each = one * (0.5 + 1.5 * make.rand(sequences, kv_heads))
    return each.T.contiguous().T if kind == "transposed" else each

# SPDX-License-Identifier: Apache-2.0
"""Tensors that cases of every family are made of: strided, far, and poisoned where nobody looks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.guard import poison

__all__ = [
    "LAYOUTS",
    "NOWHERE",
    "bounds",
    "dtype_of",
    "empty",
    "factor",
    "formed",
    "head_major",
    "lay",
    "nowhere",
    "put",
    "spread",
    "unused_table",
]

NOWHERE = 2147480000
"""What engines leave in unused entries of a table; times a page size it overflows 32 bits."""

LAYOUTS = {
    "packed": (0, 0),
    "slice": (64, 96),  # still aligned to 16 elements, where the width is
    "odd": (1, 3),
}
"""How rows may lie: columns left free before a row, and before and after it."""


def dtype_of(make: Maker, name: str) -> torch.dtype:
    """The dtype called "bf16", "fp16", "fp32", or "fp8": the device's flavour."""
    return make.fp8 if name == "fp8" else DTYPES[name]


def empty(make: Maker, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of NaN, or of indices far outside; of zeros if `make` does not poison."""
    if not make.poisons:
        return torch.zeros(shape, dtype=dtype, device=make.device)
    tensor = torch.empty(shape, dtype=dtype, device=make.device)
    poison(tensor)
    return tensor


def put(pool: torch.Tensor, index: Any, values: torch.Tensor) -> None:
    """`pool[index] = values`, for FP8 too, which torch does not scatter."""
    if pool.dtype.itemsize == 1:
        pool, values = pool.view(torch.uint8), values.view(torch.uint8)
    pool[index] = values


def lay(make: Maker, values: torch.Tensor, layout: str) -> torch.Tensor:
    """`values` `[.., N]` in a layout with last stride 1.

    packed, slice, odd  of a row that is wider by what LAYOUTS says
    heads     of more heads (dimension -2) than are there: rows are not evenly spaced
    repeated  the first entry of dimension 0, expanded: stride 0; for inputs only
    far0, far1   the last entry of that dimension lies past element 2^31
    """
    if layout == "packed":
        return values
    if layout == "repeated":
        return values[:1].expand(values.shape)
    if layout in ("far0", "far1"):
        return make.far(values, int(layout[-1]))
    *lead, rows, width = values.shape
    if layout == "heads":
        room = values.new_zeros((*lead, rows + 2, width))[..., 1 : rows + 1, :]
    else:
        before, free = LAYOUTS[layout]
        room = values.new_zeros((*lead, rows, width + free))[..., before : before + width]
    return room.copy_(values)


def spread(make: Maker, tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same values, `gap` poisoned elements after each row and a poisoned row after each block.

    0 leaves the tensor as it is; the last stride stays 1 either way.
    """
    if not gap:
        return tensor
    first, *inner, last = tensor.shape
    room = empty(make, first, *(n + 1 for n in inner), last + gap, dtype=tensor.dtype)
    return room[tuple(slice(0, n) for n in tensor.shape)].copy_(tensor)


def head_major(make: Maker, tokens: int, heads: int) -> torch.Tensor:
    """A buffer `[H, T]` for one number a row, as the view `[T, H]`."""
    return empty(make, heads, tokens, dtype=torch.float32).T


def formed(cache: torch.Tensor, form: str) -> torch.Tensor:
    """A cache `[blocks, page, row]` as it is passed: "3d", or with its one head as "nhd", "hnd"."""
    return {"3d": cache, "nhd": cache.unsqueeze(2), "hnd": cache.unsqueeze(1)}[form]


def bounds(
    make: Maker, lengths: Sequence[int], dtype: torch.dtype = torch.int32, start: int = 0
) -> torch.Tensor:
    """cu_seqlens `[B + 1]` of ragged sequences."""
    return make.tensor(list(accumulate(lengths, initial=start)), dtype)


def nowhere(make: Maker) -> int:
    """What an entry that nobody may look at names: a slot that does not exist, or slot 0."""
    return NOWHERE if make.poisons else 0


def unused_table(make: Maker, rows: int, columns: int) -> torch.Tensor:
    """A block table whose entries name pages that do not exist, -1 among them; or page 0."""
    if not make.poisons:
        return make.tensor([0]).repeat(rows, columns)
    return make.tensor([NOWHERE, -1]).repeat(-(-columns // 2))[:columns].repeat(rows, 1)


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

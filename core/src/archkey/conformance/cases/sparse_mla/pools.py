# SPDX-License-Identifier: Apache-2.0
"""Caches and index lists for the cases of sparse MLA.

Scales of packed caches are arbitrary float32 numbers wherever the format allows it: with powers
of two a kernel that rounds scales passes unseen (sglang#22723). Bytes of slots that nobody names,
slot 0 among them, decode to NaN, and so does what a list holds past its topk_length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import small
from archkey.conformance.cases.tensors import empty, spread
from archkey.formats.sparse_kv import PackedKV, empty_cache, packed, store

__all__ = ["FORMATS", "Pool", "flavoured", "index_lists", "latents", "lengths", "placed", "sinks"]

FORMATS = ("bf16", "fp8_v32", "fp8_v32_nope", "fp8_model1")

_FAR = 2**31


def flavoured(make: Maker, kv_format: str) -> str:
    """The format's name for the device's FP8 flavour."""
    fnuz = kv_format != "bf16" and make.fp8 == torch.float8_e4m3fnuz
    return kv_format + "_fnuz" if fnuz else kv_format


def latents(make: Maker, n: int, layout: PackedKV) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows whose tiles differ in size by a factor of up to 20, so that their scales differ too.

    In every third row the first tile is 0. Latents in float32, rope keys in bfloat16.
    """
    size = torch.exp(3 * make.rand(n, layout.tiles, 1))
    latent = small(make, n, layout.tiles, layout.tile, dtype=torch.float32) * size
    latent[::3, 0] = 0
    return latent.flatten(1), small(make, n, layout.rope_dim) if layout.rope_dim else None


def placed(cache: torch.Tensor, layout: PackedKV, *, far: bool, start: int = 0) -> torch.Tensor:
    """A packed cache with its blocks apart: a little, or the last one past element 2^31.

    start  bytes from an aligned address to its first one
    """
    blocks, page, row = cache.shape
    size, step = layout.block_bytes(page), layout.block_multiple
    least = -(-_FAR // (blocks - 1)) if far else size + 1
    stride = -(-least // step) * step
    room = torch.empty(start + (blocks - 1) * stride + size, dtype=torch.uint8, device=cache.device)
    room = room[start:]
    if not far:
        room.fill_(0xFF)
    return room.as_strided(cache.shape, (stride, row, 1), start).copy_(cache)


@dataclass(frozen=True)
class Pool:
    """A paged cache `[blocks, page, row]`: about half of its slots are filled, the last one is.

    Without poison there is nothing to tell an empty slot by, and all are filled.

    gap  elements between rows of a bfloat16 pool; blocks of a packed one lie apart, and begin at
         an odd address if it is odd
    far  the last block lies past element 2^31
    """

    kv_format: str
    width: int
    blocks: int
    page: int
    gap: int = 0
    far: bool = False

    def __call__(self, make: Maker) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache, and the slots in use `[n]`."""
        capacity = self.blocks * self.page
        if make.poisons:
            slots = _some(make, capacity)
        else:
            slots = torch.arange(capacity, device=make.device)
        if self.kv_format == "bf16":
            cache = empty(make, capacity, self.width, dtype=torch.bfloat16)
            cache[slots] = small(make, len(slots), self.width)
            cache = cache.view(self.blocks, self.page, self.width)
            return make.far(cache) if self.far else spread(make, cache, self.gap), slots
        layout = packed(flavoured(make, self.kv_format))
        cache = empty_cache(layout, self.blocks, self.page, device=make.device)
        if make.poisons:
            cache.fill_(0xFF)
        rows = latents(make, len(slots), layout)
        store(cache, slots, *rows, layout, "pow2" if layout.planar else "fp32")
        if self.far or self.gap:
            cache = placed(cache, layout, far=self.far, start=self.gap % 16)
        return cache, slots


def _some(make: Maker, capacity: int) -> torch.Tensor:
    """Half of the slots in order, the last one among them and slot 0 never."""
    slots = 1 + make.permutation(capacity - 1)[: max(1, capacity // 2)].to(torch.int64)
    slots[0] = capacity - 1
    some: torch.Tensor = slots.unique()
    return some


def index_lists(
    make: Maker, slots: torch.Tensor, rows: int, k: int, kind: str, capacity: int
) -> torch.Tensor:
    """Index lists `[rows, k]` of `slots` in use, the last slot among them.

    kind  "full"; "minus one": a tail of -1; "tail" of various invalid entries, that of row 0 all
          of it; "holes": every third entry is invalid; "same": one slot again and again;
          "empty rows": every other row has no valid entry; "empty": none has
    """
    lists = slots[make.randint(0, len(slots), rows, k).long()].int()
    lists[:, 0] = capacity - 1
    column = torch.arange(k, device=make.device)
    invalid = [-1, -123456, -(2**31), 2**31 - 1, capacity, capacity + 1]
    hidden = torch.zeros(rows, k, dtype=torch.bool, device=make.device)
    if kind in ("tail", "minus one"):
        hidden = column >= k - make.randint(0, k // 2 + 1, rows, 1)
        hidden[0] |= kind == "tail"
        invalid = invalid[:1] if kind == "minus one" else invalid
    elif kind == "holes":
        hidden = (column + torch.arange(rows, device=make.device)[:, None]) % 3 == 0
    elif kind == "same":
        lists[:, k // 4 :] = lists[:, -1:]
    elif kind == "empty rows":
        hidden[::2] = True
    elif kind == "empty":
        hidden[:] = True
    return torch.where(hidden, make.tensor(invalid)[column % len(invalid)], lists)


def lengths(make: Maker, n: int, lists: torch.Tensor) -> torch.Tensor:
    """topk_length `[n]` of lists `[rows, k]`, random in [0, k]; what they cut off is poisoned.

    There stands slot 0, which is NaN, and no slot at all; without poison what stood there.
    """
    rows, k = lists.shape
    length: torch.Tensor = make.randint(0, k + 1, n)
    length[0] = (k + 1) // 2
    if not make.poisons:
        return length
    column = torch.arange(k, device=make.device)
    cut = column >= length.repeat_interleave(rows // n)[:, None]
    lists[cut] = make.tensor([0, 2**31 - 1])[column % 2].expand(rows, k)[cut]
    return length


def sinks(make: Maker, heads: int, kind: str) -> torch.Tensor | None:
    """None for ""; one sink a head of the size of an lse, of "inf" the first two infinite."""
    if not kind:
        return None
    values = 2 + 2 * make.randn(heads, dtype=torch.float32)
    if kind == "inf":
        values[0] = -torch.inf
        values[1:2] = torch.inf
    return values

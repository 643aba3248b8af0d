# SPDX-License-Identifier: Apache-2.0
"""Calls that move rows into and out of packed caches, and positions to slots, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import paged_slots
from archkey.conformance.cases.sparse_mla.pools import Pool, flavoured, latents, placed
from archkey.conformance.cases.spec import DTYPES, INTEGERS
from archkey.conformance.cases.tensors import empty, formed, spread
from archkey.formats.sparse_kv import PackedKV, empty_cache, packed

__all__ = ["Dequantize", "Logical", "Quantize"]


def _outside(capacity: int) -> list[int]:
    """Slots that a cache does not have."""
    return [-1, capacity, -(2**31), 2**31 - 1]


@dataclass(frozen=True)
class Quantize:
    """A call of `quantize_sparse_kv`.

    values  "plain"; "zeros"; "tiny": all but one of a tile are negative and underflow; "faint":
            smaller than the least amax a scale is made from; "loud": thousands
    slots   dtype of slot_mapping, which drops some tokens (none without poison) and leaves some
            slots alone; "" for none
    paged   rows are `[blocks, page, width]`, one for each slot
    joint   latent and rope are views of one tensor
    out     what the cache is passed as: "uint8", "int8", "fp8"; "" for a new one
    form    of the cache: "3d", "nhd" or "hnd"
    gap     elements between rows of the tokens; blocks of the cache lie apart
    far     "k_nope", "k_rope" or "out": its last row or block lies past element 2^31
    """

    tokens: int
    kv_format: str = "fp8_v32"
    scale_mode: str = "fp32"
    blocks: int = 3
    page: int = 16
    dtype: str = "bf16"
    values: str = "plain"
    slots: str = "int64"
    paged: bool = False
    joint: bool = False
    out: str = "uint8"
    form: str = "3d"
    gap: int = 0
    far: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        name = flavoured(make, self.kv_format)
        layout = packed(name)
        k_nope, k_rope = self._rows(make, layout)
        call: dict[str, Any] = {"format": name, "scale_mode": self.scale_mode}
        if self.slots:
            capacity = self.blocks * self.page
            outside = _outside(capacity)[: self.tokens - 1] if make.poisons else []
            # Nobody writes slot 0: who takes -1 for it is found out.
            inside = 1 + make.permutation(capacity - 1)[: self.tokens - len(outside)]
            parts = inside[:1], make.tensor(outside), inside[1:]
            slots = torch.cat(parts).to(INTEGERS[self.slots])
            call["slot_mapping"] = slots
        if self.out:
            call["out"] = self._cache(make, layout)
        return {"k_nope": k_nope, "k_rope": k_rope, **call}

    def _cache(self, make: Maker, layout: PackedKV) -> torch.Tensor:
        """A cache that holds something already."""
        cache = empty_cache(layout, self.blocks, self.page, device=make.device).fill_(0x35)
        if self.gap or self.far == "out":
            cache = placed(cache, layout, far=self.far == "out")
        dtypes = {"uint8": torch.uint8, "int8": torch.int8, "fp8": make.fp8}
        cache = cache.view(dtypes[self.out])
        return formed(cache, self.form)

    def _rows(self, make: Maker, layout: PackedKV) -> tuple[torch.Tensor, torch.Tensor | None]:
        latent, rope = latents(make, self.tokens, layout)
        if self.values == "zeros":
            latent.zero_()
        elif self.values == "tiny":
            tiles = latent.view(-1, layout.tiles, layout.tile)
            tiles[..., 1:] = -(tiles[..., 1:].abs() + 1e-3) * 1e-6
            tiles[..., 0] = 7.0
        elif self.values in ("faint", "loud"):
            latent *= 1e-12 if self.values == "faint" else 3e3
        dtype = DTYPES[self.dtype]
        latent, rope = latent.to(dtype), None if rope is None else rope.to(dtype)
        if self.joint and rope is not None:
            both = torch.cat([latent, rope], dim=1)
            return both[:, : layout.nope_dim], both[:, layout.nope_dim :]
        k_nope = self._laid(make, "k_nope", latent)
        return k_nope, None if rope is None else self._laid(make, "k_rope", rope)

    def _laid(self, make: Maker, name: str, rows: torch.Tensor) -> torch.Tensor:
        if self.paged:
            rows = rows.view(self.blocks, self.page, -1)
        return make.far(rows) if self.far == name else spread(make, rows, self.gap)


@dataclass(frozen=True)
class Dequantize:
    """A call of `dequantize_sparse_kv`.

    tokens  wanted: slots in use, a few of them outside the cache; slots  dtype of slot_mapping,
            "" for all slots in order
    out     dtype of the output that is passed, "" for none; gap  the cache's blocks lie apart
    far     the last block lies past element 2^31
    """

    tokens: int
    kv_format: str = "fp8_v32"
    blocks: int = 3
    page: int = 16
    slots: str = "int32"
    out: str = ""
    form: str = "3d"
    gap: int = 0
    far: bool = False

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        cache, used = Pool(self.kv_format, 0, self.blocks, self.page, self.gap, self.far)(make)
        name = flavoured(make, self.kv_format)
        capacity, call = self.blocks * self.page, dict[str, Any]()
        if self.slots:
            slots = used[make.randint(0, len(used), self.tokens).long()]
            slots[0] = capacity - 1
            if make.poisons:
                outside = make.tensor(_outside(capacity), torch.int64)
                slots[1:5] = outside[: self.tokens - 1]
            call["slot_mapping"] = slots.to(INTEGERS[self.slots])
        if self.out:
            lead = (self.tokens,) if self.slots else (self.blocks, self.page)
            width = packed(name).head_dim
            call["out"] = empty(make, *lead, width, dtype=DTYPES[self.out])
        return {"kv_cache": formed(cache, self.form), "format": name, **call}


@dataclass(frozen=True)
class Logical:
    """A call of `logical_to_physical_indices`.

    kv_lens  of the sequences; positions are drawn from -1 to past the table's end
    q_len    0: the indices are `[B, k]`
    gap      entries between the rows of indices, table and out, which is passed then
    far      "indices", "block_table" or "out": its last row lies past element 2^31
    """

    kv_lens: tuple[int, ...]
    k: int
    page: int = 64
    q_len: int = 0
    gap: int = 0
    far: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        table, _, _ = paged_slots(make, self.kv_lens, self.page)
        lead = (len(self.kv_lens), self.q_len) if self.q_len else (len(self.kv_lens),)
        indices = make.randint(-1, table.shape[1] * self.page + 5, *lead, self.k)
        indices[..., 0] = -1
        indices[0, ..., 1:4] = make.tensor([-(2**31), 2**31 - 1, 0])[: self.k - 1]
        call = {"indices": indices, "block_table": table}
        if self.gap or self.far == "out":
            call["out"] = empty(make, *indices.shape, dtype=torch.int32)
        laid = {
            name: make.far(tensor) if self.far == name else spread(make, tensor, self.gap)
            for name, tensor in call.items()
        }
        return {**laid, "page_size": self.page}

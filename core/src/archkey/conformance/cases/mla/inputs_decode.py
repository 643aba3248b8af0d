# SPDX-License-Identifier: Apache-2.0
"""Calls of `mla_decode` as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import (
    DEEPSEEK_SCALE,
    GAIN,
    descale_kind,
    paged_slots,
    real_values,
    stored,
)
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import (
    bounds,
    dtype_of,
    empty,
    factor,
    formed,
    head_major,
    nowhere,
    put,
    spread,
)

__all__ = ["Cached", "Decode"]


class Cached(NamedTuple):
    """Queries `[q_len, H, d]` of a sequence, and the rows `[n, d]` of its cache that they see."""

    q: torch.Tensor
    keys: torch.Tensor


@dataclass(frozen=True)
class Decode:
    """A call of `mla_decode`.

    q_lens      of every sequence the same: q `[B, q_len, H, d]`; or one each: `[T, H, d]`
    dtype       "bf16", "fp16" or "fp8"; cache  "fp8" or "" for that of q
    *_descale   of q and cache; tensors  names those that are passed as tensors: "q kv"
    form        of the cache: "3d", "nhd" or "hnd"
    gap         elements between the rows of q, cache and out
    spare       rows of q after the last sequence
    out         dtype of the output that is passed; "" for none
    lse         "" not asked for, "new", "head-major"
    longest     max_seqlen_*: "tight", "loose" or "" for none
    far         the argument whose last entry lies past element 2^31; "kv_cache tokens" within pages
    level       what scores differ from 0 by on average
    splits      num_splits; invariant  batch_invariant
    room        pages of nobody, among which the others are strewn
    """

    heads: int
    kv_lens: tuple[int, ...]
    q_lens: int | tuple[int, ...] = 1
    page: int = 64
    width: int = 576
    head_dim_v: int = 512
    dtype: str = "bf16"
    cache: str = ""
    q_descale: float | None = None
    kv_descale: float | None = None
    tensors: str = ""
    causal: bool = True
    window: int = -1
    form: str = "3d"
    gap: int = 0
    spare: int = 0
    out: str = ""
    lse: str = "new"
    longest: str = "tight"
    far: str = ""
    scale: float = DEEPSEEK_SCALE
    level: float = 0.0
    splits: int = 0
    invariant: bool = False
    room: int = 2

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        return self.of(make, self.drawn(make))

    def drawn(self, make: Maker) -> list[Cached]:
        """The sequences; none depends on those after it."""
        return list(self._sequences(make))

    def of(self, make: Maker, sequences: Sequence[Cached]) -> Mapping[str, Any]:
        """Keyword arguments for sequences of these lengths, on pages of its own."""
        table, cache = self._paged(make, [sequence.keys for sequence in sequences])
        q, ragged = self._queries(make, [sequence.q for sequence in sequences])
        rows = q.shape[:-2].numel()
        given: dict[str, Any] = {}
        if self.out:
            out = empty(make, *q.shape[:-1], self.head_dim_v, dtype=DTYPES[self.out])
            given["out"] = make.far(out) if self.far == "out" else spread(make, out, self.gap)
        if self.lse == "head-major":
            given["lse"] = head_major(make, rows, self.heads)
        elif self.far == "lse":
            given["lse"] = make.far(empty(make, rows, self.heads, dtype=torch.float32))
        if self.longest:
            room = max(self.kv_lens)
            given["max_seqlen_k"] = room if self.longest == "tight" else 2 * room + 100
        return {
            "q": make.far(q) if self.far == "q" else spread(make, q, self.gap),
            "kv_cache": formed(cache, self.form),
            "block_table": spread(make, table, self.gap),
            "cache_seqlens": make.tensor(self.kv_lens),
            "softmax_scale": self.scale,
            "head_dim_v": self.head_dim_v,
            "causal": self.causal,
            "window_left": self.window,
            "q_descale": factor(make, self.q_descale, descale_kind(self.tensors, "q")),
            "kv_descale": factor(make, self.kv_descale, descale_kind(self.tensors, "kv")),
            "return_lse": bool(self.lse),
            **({"num_splits": self.splits} if self.splits else {}),
            **({"batch_invariant": True} if self.invariant else {}),
            **ragged,
            **given,
        }

    def _each(self) -> tuple[int, ...]:
        """Query tokens of each sequence."""
        return self.q_lens if isinstance(self.q_lens, tuple) else (self.q_lens,) * len(self.kv_lens)

    def _sequences(self, make: Maker) -> Iterator[Cached]:
        """Sequence by sequence; keys left of the window are left out."""
        dtypes = [dtype_of(make, name) for name in (self.dtype, self.cache or self.dtype)]
        for q_len, kv_len in zip(self._each(), self.kv_lens, strict=True):
            keys = real_values(make, kv_len - self._first(q_len, kv_len), self.width)
            q = real_values(make, q_len, self.heads, self.width, gain=GAIN)
            if self.level:
                keys, q = keys + 0.1, q + self.level / (0.1 * self.width * self.scale)
            yield Cached(
                stored(q, dtypes[0], self.q_descale), stored(keys, dtypes[1], self.kv_descale)
            )

    def _first(self, q_len: int, kv_len: int) -> int:
        """The first key that a query of the sequence sees."""
        return max(0, kv_len - 1 - self.window) if self.window >= 0 and q_len else 0

    def _paged(
        self, make: Maker, keys: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Block table, and cache `[blocks, page, d]`."""
        far = self.far.startswith("kv_cache")
        room = 0 if far else self.room
        table, slots, blocks = paged_slots(make, self.kv_lens, self.page, room)
        dtype = dtype_of(make, self.cache or self.dtype)
        cache = empty(make, blocks * self.page, self.width, dtype=dtype)
        for b, (rows, own) in enumerate(zip(slots, keys, strict=True)):
            first = len(rows) - len(own)
            table[b, : first // self.page] = nowhere(make)  # freed: the window has left them
            put(cache, rows[first:], own)
        cache = cache.view(blocks, self.page, self.width)
        if far:
            return table, make.far(cache, dim=1 if self.far == "kv_cache tokens" else 0)
        return table, spread(make, cache, self.gap)

    def _queries(
        self, make: Maker, queries: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Queries, those of nobody after them, and what makes them ragged."""
        each = self._each()
        q = torch.cat([*queries, self._of_nobody(make)])
        if not isinstance(self.q_lens, tuple):
            return q.view(len(each), -1, self.heads, self.width), {}
        longest = max(each) if self.longest == "tight" else max(each) + 3
        extra = {"max_seqlen_q": longest} if self.longest else {}
        return q, {"cu_seqlens_q": bounds(make, each), **extra}

    def _of_nobody(self, make: Maker) -> torch.Tensor:
        """Queries after those of the last sequence."""
        q = real_values(make, self.spare, self.heads, self.width, gain=GAIN)
        return stored(q, dtype_of(make, self.dtype), self.q_descale)

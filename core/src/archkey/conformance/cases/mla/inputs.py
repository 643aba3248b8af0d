# SPDX-License-Identifier: Apache-2.0
"""Calls of MLA decode and prefill as data: what a case, an edge and a drawn example differ in.

Keys are normal with a standard deviation of 0.1, queries of 4: scores then have one of 0.7, so
that a softmax is neither one-hot nor flat, and both hide errors. All that a kernel must not read
is poisoned: slots past a sequence's end or left of its window, unused pages, keys of sequences
without queries, gaps of strided tensors; unused entries of the block table name no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import (
    DEEPSEEK_SCALE,
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

__all__ = ["Cached", "Decode", "Prefill", "Ragged"]

_GAIN = 40.0  # of queries over keys


def _of_nobody(make: Maker, call: Decode | Prefill, width: int) -> torch.Tensor:
    """Queries `[spare, H, width]` after those of the last sequence."""
    q = real_values(make, call.spare, call.heads, width, gain=_GAIN)
    return stored(q, dtype_of(make, call.dtype), call.q_descale)


def _kind(call: Decode | Prefill, name: str) -> str:
    """How a descale is passed, see `tensors.factor`."""
    return "tensor" if name in call.tensors.split() else "number"


class Cached(NamedTuple):
    """Queries `[q_len, H, d]` of a sequence, and the rows `[n, d]` of its cache that they see."""

    q: torch.Tensor
    keys: torch.Tensor


class Ragged(NamedTuple):
    """Queries `[q_len, H, dqk]` of a sequence, its keys `[n, Hk, dqk]` and values `[n, Hk, dv]`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


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
            "q_descale": factor(make, self.q_descale, _kind(self, "q")),
            "kv_descale": factor(make, self.kv_descale, _kind(self, "kv")),
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
            q = real_values(make, q_len, self.heads, self.width, gain=_GAIN)
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
        q = torch.cat([*queries, _of_nobody(make, self, self.width)])
        if not isinstance(self.q_lens, tuple):
            return q.view(len(each), -1, self.heads, self.width), {}
        longest = max(each) if self.longest == "tight" else max(each) + 3
        extra = {"max_seqlen_q": longest} if self.longest else {}
        return q, {"cu_seqlens_q": bounds(make, each), **extra}


@dataclass(frozen=True)
class Prefill:
    """A call of `mla_prefill`.

    widths      of q and k, and of v
    kv_heads    0 for as many as heads
    projection  k and v are views of one tensor `[Tk, Hk, dqk + dv]`
    spare       rows of q, and poisoned ones of k and v, after the last sequence
    far         "q", "k", "v", "out" or "lse": by token; "q heads", "k heads": by head

    The others are those of `Decode`; max_seqlen_* are never left out. Keys of a sequence without
    queries are poisoned.
    """

    heads: int
    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    widths: tuple[int, int] = (192, 128)
    kv_heads: int = 0
    dtype: str = "bf16"
    q_descale: float | None = None
    k_descale: float | None = None
    v_descale: float | None = None
    tensors: str = ""
    causal: bool = True
    projection: bool = False
    gap: int = 0
    spare: int = 0
    out: str = ""
    lse: str = "new"
    longest: str = "tight"
    far: str = ""
    scale: float = DEEPSEEK_SCALE
    level: float = 0.0
    invariant: bool = False

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        return self.of(make, self.drawn(make))

    def drawn(self, make: Maker) -> list[Ragged]:
        """The sequences; none depends on those after it."""
        return list(self._sequences(make))

    def of(self, make: Maker, sequences: Sequence[Ragged]) -> Mapping[str, Any]:
        """Keyword arguments for sequences of these lengths."""
        rows, given = sum(self.q_lens) + self.spare, dict[str, Any]()
        queries = [sequence.q for sequence in sequences]
        q = torch.cat([*queries, _of_nobody(make, self, self.widths[0])])
        k, v = self._keys(make, sequences)
        if self.out:
            out = empty(make, rows, self.heads, self.widths[1], dtype=DTYPES[self.out])
            given["out"] = self._laid(make, "out", out)
        if self.lse == "head-major":
            given["lse"] = head_major(make, rows, self.heads)
        elif self.far == "lse":
            given["lse"] = make.far(empty(make, rows, self.heads, dtype=torch.float32))
        loose = 0 if self.longest == "tight" else 70
        return {
            "q": self._laid(make, "q", q),
            "k": self._laid(make, "k", k),
            "v": self._laid(make, "v", v),
            "cu_seqlens_q": bounds(make, self.q_lens),
            "cu_seqlens_k": bounds(make, self.k_lens),
            "max_seqlen_q": max(self.q_lens) + loose,
            "max_seqlen_k": max(self.k_lens) + loose,
            "softmax_scale": self.scale,
            "causal": self.causal,
            "return_lse": bool(self.lse),
            **({"batch_invariant": True} if self.invariant else {}),
            **{
                f"{name}_descale": factor(make, descale, _kind(self, name))
                for name, descale in zip("qkv", self._descales(), strict=True)
            },
            **given,
        }

    def _descales(self) -> tuple[float | None, float | None, float | None]:
        return self.q_descale, self.k_descale, self.v_descale

    def _laid(self, make: Maker, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with the strides that the call gives it."""
        if self.far.partition(" ")[0] == name:
            return make.far(tensor, dim=1 if self.far.endswith(" heads") else 0)
        if self.projection and name in "kv":
            return tensor  # its strides are those of the projection
        return spread(make, tensor, self.gap)

    def _sequences(self, make: Maker) -> Iterator[Ragged]:
        """Sequence by sequence."""
        (d, dv), dtype = self.widths, dtype_of(make, self.dtype)
        heads = self.kv_heads or self.heads
        for q_len, k_len in zip(self.q_lens, self.k_lens, strict=True):
            q = real_values(make, q_len, self.heads, d, gain=_GAIN)
            k, v = (real_values(make, k_len, heads, width) for width in (d, dv))
            if self.level:
                k, q = k + 0.1, q + self.level / (0.1 * d * self.scale)
            numbers = zip((q, k, v), self._descales(), strict=True)
            yield Ragged(*(stored(x, dtype, descale) for x, descale in numbers))

    def _keys(self, make: Maker, sequences: Sequence[Ragged]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all, and rows of nobody."""
        (d, dv), dtype = self.widths, dtype_of(make, self.dtype)
        heads, total = self.kv_heads or self.heads, sum(self.k_lens)
        room = empty(make, total + self.spare, heads, d + dv, dtype=dtype)
        ends = pairwise(accumulate(self.k_lens, initial=0))
        for (start, end), (q, k, v) in zip(ends, sequences, strict=True):
            if len(q):
                room[start:end, :, :d], room[start:end, :, d:] = k, v
        k, v = room[..., :d], room[..., d:]
        return (k, v) if self.projection else (k.contiguous(), v.contiguous())

# SPDX-License-Identifier: Apache-2.0
"""Calls of the MLA operators as data: what a case, an edge and a drawn example differ in.

Keys are normal with a standard deviation of 0.1, queries of 4: scores then have one of 0.7, so
that a softmax is neither one-hot nor flat, and both hide errors. All that a kernel must not read
is poisoned: slots past a sequence's end or left of its window, unused pages, keys of sequences
without queries, gaps of strided tensors; unused entries of the block table name no page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

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

__all__ = ["Decode", "Merge", "Prefill"]

_GAIN = 40.0  # of queries over keys


def _kind(call: Decode | Prefill, name: str) -> str:
    """How a descale is passed, see `tensors.factor`."""
    return "tensor" if name in call.tensors.split() else "number"


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

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        table, cache = self._paged(make)
        q, ragged = self._queries(make)
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
            **ragged,
            **given,
        }

    def _each(self) -> tuple[int, ...]:
        """Query tokens of each sequence."""
        return self.q_lens if isinstance(self.q_lens, tuple) else (self.q_lens,) * len(self.kv_lens)

    def _paged(self, make: Maker) -> tuple[torch.Tensor, torch.Tensor]:
        """Block table, and cache `[blocks, page, d]`."""
        far = self.far.startswith("kv_cache")
        table, slots, blocks = paged_slots(make, self.kv_lens, self.page, spare=0 if far else 2)
        dtype = dtype_of(make, self.cache or self.dtype)
        cache = empty(make, blocks * self.page, self.width, dtype=dtype)
        for b, (rows, queries) in enumerate(zip(slots, self._each(), strict=True)):
            first = max(0, len(rows) - 1 - self.window) if self.window >= 0 and queries else 0
            table[b, : first // self.page] = nowhere(make)  # freed: the window has left them
            keys = real_values(make, len(rows) - first, self.width) + (0.1 if self.level else 0)
            put(cache, rows[first:], stored(keys, dtype, self.kv_descale))
        cache = cache.view(blocks, self.page, self.width)
        if far:
            return table, make.far(cache, dim=1 if self.far == "kv_cache tokens" else 0)
        return table, spread(make, cache, self.gap)

    def _queries(self, make: Maker) -> tuple[torch.Tensor, dict[str, Any]]:
        """Queries, and what makes them ragged."""
        each = self._each()
        ragged = isinstance(self.q_lens, tuple)
        rows = sum(each) + self.spare
        q = real_values(make, rows, self.heads, self.width, gain=_GAIN)
        if self.level:
            q += self.level / (0.1 * self.width * self.scale)
        q = stored(q, dtype_of(make, self.dtype), self.q_descale)
        if not ragged:
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

    The others are those of `Decode`; max_seqlen_* are never left out.
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

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        rows, given = sum(self.q_lens) + self.spare, {}
        q = real_values(make, rows, self.heads, self.widths[0], gain=_GAIN)
        if self.level:
            q += self.level / (0.1 * self.widths[0] * self.scale)
        q = stored(q, dtype_of(make, self.dtype), self.q_descale)
        k, v = self._keys(make)
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

    def _keys(self, make: Maker) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        (d, dv), dtype = self.widths, dtype_of(make, self.dtype)
        heads, total = self.kv_heads or self.heads, sum(self.k_lens)
        room = empty(make, total + self.spare, heads, d + dv, dtype=dtype)
        sides = (slice(0, d), self.k_descale), (slice(d, d + dv), self.v_descale)
        for columns, descale in sides:
            values = real_values(make, total, heads, columns.stop - columns.start)
            if self.level and columns.start == 0:
                values += 0.1
            start = 0
            for queries, keys in zip(self.q_lens, self.k_lens, strict=True):
                if queries:
                    rows = slice(start, start + keys)
                    room[rows, :, columns] = stored(values[rows], dtype, descale)
                start += keys
        k, v = room[..., :d], room[..., d:]
        return (k, v) if self.projection else (k.contiguous(), v.contiguous())


@dataclass(frozen=True)
class Merge:
    """A call of `merge_attn_states`.

    pairs     the two lse that occur in turn, row by row and head by head: an infinity, or a number
              to which random ones are added. A part that is empty was never written: NaN
    dtype     of the parts; out  of the output that is passed, "" for none
    in_place  "" or the parts that out and lse are: "aa", "bb", "ab"
    layout    of lse_a and lse_b, and of a lse that is passed: "" or "head-major"
    far       "out_a", "out_b", "lse_a", "lse_b", "out" or "lse"
    """

    tokens: int
    heads: int
    width: int = 128
    pairs: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    dtype: str = "bf16"
    out: str = ""
    in_place: str = ""
    layout: str = ""
    gap: int = 0
    far: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        tokens, heads, call = self.tokens, self.heads, dict[str, Any]()
        turn = torch.arange(tokens)[:, None] + torch.arange(heads)
        for part, name in enumerate("ab"):
            base = torch.tensor([pair[part] for pair in self.pairs])[turn % len(self.pairs)]
            lse = base.to(make.device) + make.randn(tokens, heads, dtype=torch.float32)
            out = real_values(make, tokens, heads, self.width).masked_fill(
                (lse.abs() == inf)[..., None], torch.nan if make.poisons else 0.0
            )
            call[f"out_{name}"] = self._laid(make, f"out_{name}", out.to(DTYPES[self.dtype]))
            call[f"lse_{name}"] = self._laid(make, f"lse_{name}", lse)
        if self.in_place:
            one, other = tuple(self.in_place)
            return {**call, "out": call[f"out_{one}"], "lse": call[f"lse_{other}"]}
        if self.out:
            out = empty(make, tokens, heads, self.width, dtype=DTYPES[self.out])
            call["out"] = self._laid(make, "out", out)
        if self.layout or self.far == "lse":
            lse = empty(make, tokens, heads, dtype=torch.float32)
            call["lse"] = self._laid(make, "lse", lse)
        return call

    def _laid(self, make: Maker, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with the strides that the call gives it."""
        if self.far == name:
            return make.far(tensor)
        if name.startswith("lse"):
            return tensor.T.contiguous().T if self.layout == "head-major" else tensor
        return spread(make, tensor, self.gap)

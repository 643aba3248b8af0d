# SPDX-License-Identifier: Apache-2.0
"""Calls of unified attention as data: what a model, an edge and a drawn example differ in.

All that a kernel must not read is poisoned: slots past a sequence's end or before its window, pages
of nobody (page 0 among them), keys of sequences without queries, queries past the last sequence,
biases of later keys, gaps of strided tensors. Unused entries of the block table name no page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import (
    bounds,
    dtype_of,
    empty,
    factor,
    head_major,
    put,
    spread,
    unused_table,
)

__all__ = ["Attention", "Sequence"]

_SPARE = 2  # pages of nobody, the first ones: an index of 0 for "none" shows

_FAR = {"": 0, "slots": 1, "heads": 2}
"""Dimensions of the cache as `[blocks, page, Hk, D]`."""


class Sequence(NamedTuple):
    """Queries `[q_len, H, D]`, and the keys and values `[n, Hk, D or Dv]` that they see."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Attention:
    """A call of unified_attention.

    lengths     (q_len, kv_len) of each sequence
    heads, dims (H, Hk) and (D, Dv)
    dtype       of q: "bf16", "fp16", "fp32", "fp8"; cache  "fp8", or "" for that of q
    lse         "" not asked for, "new", "head-major"
    window      keys that a query sees, itself included, as Hugging Face's sliding_window; 0: all
    alibi, sinks, bias   their dtype, or ""
    sink        what sinks are on average; -inf: every other head has none
    tree        what qq_bias holds: "" normal numbers, "tree" and -inf, "blind" a row of -inf
    bias_room   rows and columns of qq_bias that no query needs
    descales    of q, k and v; kinds  how they are passed, see `tensors.factor`
    scale       softmax_scale; 0: that of D
    level       what scores differ from 0 by on average
    spare, rows rows of q after the last sequence, and of the block table
    layout      kv_layout; pair  K and V are views of one tensor, see `_fused`
    gap         poisoned elements between the rows of what `apart` names
    most_q      max_seqlen_q, 0: tight; most_k  the same
    segments    parts of the caller's workspace, which has `segment_rows` more rows than q
    threshold   seq_threshold_3D, -1: none
    invariant   batch_invariant
    far         what lies past element 2^31: "k", "k slots", "k heads", .. "lse heads"
    """

    lengths: tuple[tuple[int, int], ...]
    heads: tuple[int, int] = (8, 2)
    dims: tuple[int, int] = (64, 64)
    page: int = 16
    dtype: str = "bf16"
    cache: str = ""
    out: str = "bf16"
    lse: str = "new"
    window: int = 0
    softcap: float = 0.0
    alibi: str = ""
    sinks: str = ""
    sink: float = 0.0
    bias: str = ""
    tree: str = ""
    bias_room: int = 0
    descales: tuple[float | None, ...] = (None, None, None)
    kinds: tuple[str, ...] = ("number", "number", "number")
    output_scale: float | None = None
    output_kind: str = "number"
    scale: float = 0.0
    level: float = 0.0
    spare: int = 0
    rows: int = 0
    layout: str = "NHD"
    pair: str = ""
    gap: int = 0
    apart: str = "q k v out table bias"
    most_q: int = 0
    most_k: int = 0
    segments: int = 0
    segment_rows: int = 0
    threshold: int = -1
    invariant: bool = False
    far: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        return self.of(make, *self.drawn(make))

    def drawn(self, make: Maker) -> tuple[dict[str, torch.Tensor], list[Sequence]]:
        """What has a number a head, and the sequences: none depends on those after it."""
        return self._vectors(make), self._sequences(make)

    def of(
        self, make: Maker, vectors: Mapping[str, torch.Tensor], sequences: Iterable[Sequence]
    ) -> Mapping[str, Any]:
        """Keyword arguments for sequences of these lengths, on pages of its own."""
        q_lens, kv_lens = ([pair[i] for pair in self.lengths] for i in (0, 1))
        queries, keys, values = zip(*sequences, strict=True) if self.lengths else ((), (), ())
        q = self._together(make, queries)
        k, v, table = self._paged(make, keys, values)
        descales = {
            f"{name}_descale": factor(make, value, kind, len(self.lengths), self.heads[1])
            for name, value, kind in zip("qkv", self.descales, self.kinds, strict=True)
        }
        for name in descales:
            descales[name] = self._laid(make, name, descales[name])
        out = empty(make, len(q), self.heads[0], self.dims[1], dtype=dtype_of(make, self.out))
        return {
            "q": self._laid(make, "q", q),
            "k": k,
            "v": v,
            "out": self._laid(make, "out", out),
            "cu_seqlens_q": bounds(make, q_lens),
            "max_seqlen_q": self.most_q or max(q_lens, default=0),
            "seqused_k": make.tensor(kv_lens),
            "max_seqlen_k": self.most_k or max(kv_lens, default=0),
            "softmax_scale": self.scale or self.dims[0] ** -0.5,
            "causal": True,
            "window_size": (self.window - 1, 0) if self.window else (-1, -1),
            "block_table": self._laid(make, "table", table),
            "softcap": self.softcap,
            **descales,
            "output_scale": factor(make, self.output_scale, self.output_kind),
            "kv_layout": self.layout,
            **({"batch_invariant": True} if self.invariant else {}),
            **vectors,
            **self._bias(make),
            **self._lse(make, len(q)),
            **self._workspace(make, len(q)),
        }

    def _laid(self, make: Maker, name: str, tensor: Any) -> Any:
        """A tensor with its strides; anything else as it is."""
        which, _, dim = self.far.partition(" ")
        if which == name:
            return make.far(tensor, dim=1 if dim else 0)
        return spread(make, tensor, self.gap) if name in self.apart.split() else tensor

    def _sequences(self, make: Maker) -> list[Sequence]:
        """The codes of numbers that are normal once they are multiplied by the descales."""
        (heads, kv_heads), (d, dv) = self.heads, self.dims
        dtypes = [dtype_of(make, name) for name in (self.dtype, *[self.cache or self.dtype] * 2)]
        descales = [1 if x is None else x for x in self.descales]
        sequences = []
        for q_len, kv_len in self.lengths:
            n = kv_len - self.first(q_len, kv_len)
            q = make.randn(q_len, heads, d, dtype=torch.float32)
            k = make.randn(n, kv_heads, d, dtype=torch.float32)
            v = make.randn(n, kv_heads, dv, dtype=torch.float32)
            if self.level:
                q[..., 0], k[..., 0] = 8, self.level / 8 * d**0.5
            numbers = zip((q, k, v), descales, dtypes, strict=True)
            sequences.append(Sequence(*((x / scale).to(dtype) for x, scale, dtype in numbers)))
        return sequences

    def _together(self, make: Maker, queries: Iterable[torch.Tensor]) -> torch.Tensor:
        """Queries of all, and rows of nobody."""
        tokens = sum(q_len for q_len, _ in self.lengths) + self.spare
        together = empty(
            make, tokens, self.heads[0], self.dims[0], dtype=dtype_of(make, self.dtype)
        )
        row = 0
        for q in queries:
            together[row : row + len(q)] = q
            row += len(q)
        return together

    def first(self, q_len: int, kv_len: int) -> int:
        """The first key that a query of the sequence sees: kv_len if it has no query."""
        if not q_len:
            return kv_len
        return max(kv_len - q_len + 1 - self.window, 0) if self.window else 0

    def _paged(
        self, make: Maker, keys: tuple[torch.Tensor, ...], values: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """K and V in their layout, and the block table `[B + rows, n]`."""
        pages = [-(-kv_len // self.page) for _, kv_len in self.lengths]
        order = _SPARE + make.permutation(sum(pages))
        dtype = dtype_of(make, self.cache or self.dtype)
        k, v = (
            empty(make, _SPARE + len(order), self.page, self.heads[1], dim, dtype=dtype)
            for dim in self.dims
        )
        width = max(-(-self.most_k // self.page), max(pages, default=0) + 2)
        table = unused_table(make, len(pages) + self.rows, width)
        starts = accumulate(pages, initial=0)
        for i, (n, start) in enumerate(zip(pages, starts, strict=False)):
            q_len, kv_len = self.lengths[i]
            gone = max(kv_len - q_len + 1 - self.window, 0) // self.page if self.window else 0
            table[i, gone:n] = order[start + gone : start + n]
            j = torch.arange(kv_len - len(keys[i]), kv_len, device=make.device)
            where = table[i, j // self.page].long(), j % self.page
            put(k, where, keys[i])
            put(v, where, values[i])
        k, v = self._cache(make, k, v)
        return k, v, table

    def _cache(self, make: Maker, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Strides of `[blocks, page, Hk, D]` tensors, then kv_layout's order of dimensions."""
        which, _, dim = self.far.partition(" ")
        hnd = self.layout == "HND"
        caches = [x.transpose(1, 2).contiguous() if hnd else x for x in (k, v)]
        if self.pair:
            return _fused(make, caches[0], caches[1], self.pair)
        for i, name in enumerate("kv"):
            if which == name:
                at = _FAR[dim]
                caches[i] = make.far(caches[i], dim=3 - at if hnd and at else at)
            elif name in self.apart.split():
                caches[i] = spread(make, caches[i], self.gap)
        return tuple(caches)

    def _vectors(self, make: Maker) -> dict[str, torch.Tensor]:
        """What has a number a head."""
        given: dict[str, torch.Tensor] = {}
        heads = self.heads[0]
        if self.alibi:
            given["alibi_slopes"] = make.rand(heads).to(DTYPES[self.alibi])
        if self.sinks:
            sinks = make.randn(heads, dtype=torch.float32) + max(self.sink, -1e30)
            sinks[1::2] = -torch.inf if self.sink == -torch.inf else sinks[1::2]
            given["sinks"] = sinks.to(DTYPES[self.sinks])
        return given

    def _bias(self, make: Maker) -> dict[str, torch.Tensor]:
        """`[Q, Q]` with numbers where a query can see the other."""
        if not self.bias:
            return {}
        n = max((q_len for q_len, _ in self.lengths), default=0)
        most = max(n, self.most_q) + self.bias_room
        bias = empty(make, most, most, dtype=DTYPES[self.bias])
        numbers = make.randn(n, n, dtype=DTYPES[self.bias])
        if self.tree == "tree":  # a token keeps itself
            hidden = make.rand(n, n) < 0.5
            numbers.masked_fill_(hidden.fill_diagonal_(False), -torch.inf)
        elif self.tree == "blind":
            numbers[n // 2] = -torch.inf
        seen = torch.ones(n, n, dtype=torch.bool, device=make.device).tril()
        bias[:n, :n][seen] = numbers[seen]
        return {"qq_bias": self._laid(make, "bias", bias)}

    def _lse(self, make: Maker, tokens: int) -> dict[str, torch.Tensor]:
        if not self.lse:
            return {}
        shape = (tokens, self.heads[0])
        if self.lse == "head-major":
            return {"lse": head_major(make, *shape)}
        return {"lse": self._laid(make, "lse", empty(make, *shape, dtype=torch.float32))}

    def _workspace(self, make: Maker, tokens: int) -> dict[str, Any]:
        """vLLM's buffers of a split over keys, which start as NaN."""
        if not self.segments:
            return {}
        shape = (max(tokens + self.segment_rows, 0), self.heads[0], self.segments)
        width = 1 << (self.dims[1] - 1).bit_length()
        output = empty(make, *shape, width, dtype=torch.float32)
        return {
            "num_par_softmax_segments": self.segments,
            "softmax_segm_output": self._laid(make, "workspace", output),
            "softmax_segm_max": empty(make, *shape, dtype=torch.float32),
            "softmax_segm_expsum": empty(make, *shape, dtype=torch.float32),
            **({} if self.threshold < 0 else {"seq_threshold_3D": self.threshold}),
        }


def _fused(make: Maker, k: torch.Tensor, v: torch.Tensor, how: str) -> tuple[torch.Tensor, ...]:
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

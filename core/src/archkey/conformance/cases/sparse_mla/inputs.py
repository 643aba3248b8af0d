# SPDX-License-Identifier: Apache-2.0
"""Calls of sparse attention as data: what a case, an edge and a drawn example differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import DEEPSEEK_SCALE, real_values
from archkey.conformance.cases.sparse_mla.pools import (
    Pool,
    flavoured,
    index_lists,
    lengths,
    sinks,
)
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import empty, formed, head_major, spread

__all__ = ["SparseDecode", "SparsePrefill"]

# Of queries, so that scores spread by 0.7 or so: packed latents are larger than bfloat16 ones.
_GAIN = {"bf16": 40.0}
_PACKED_GAIN = 6.0


def _laid(make: Maker, call: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with the strides that the call gives it."""
    return make.far(tensor) if call.far == name else spread(make, tensor, call.gap)


def _queries(make: Maker, call: Any, *lead: int) -> torch.Tensor:
    gain = _GAIN.get(call.kv_format, _PACKED_GAIN)
    q = real_values(make, *lead, call.heads, call.width, gain=gain).bfloat16()
    return _laid(make, call, "q", q)


def _outputs(make: Maker, call: Any, *lead: int) -> dict[str, Any]:
    """The outputs that are passed."""
    rows, given = torch.Size(lead).numel(), {}
    if call.out:
        out = empty(make, *lead, call.heads, call.head_dim_v, dtype=DTYPES[call.out])
        given["out"] = _laid(make, call, "out", out)
    for name in call.stats:
        if call.far == name:
            given[name] = make.far(empty(make, rows, call.heads, dtype=torch.float32))
        elif call.lse == "head-major":
            given[name] = head_major(make, rows, call.heads)
    return given


@dataclass(frozen=True)
class SparsePrefill:
    """A call of `sparse_mla_prefill`.

    width     of q and of unpacked keys: 576, or 512 for a format that has no more
    form      of the pool: "flat" `[S, row]`, "unit" `[S, 1, row]` or "paged"
    lists     see `index_lists`; unit: they are `[T, 1, k]`
    length    whether there is a topk_length
    sink      "", "finite" or "inf"
    gap       elements between the rows of q, kv, lists and out; of packed kv between the blocks
    out       dtype of the output that is passed; "" for none
    lse       "" not asked for, "new", "head-major"; max_logits alike
    far       the argument whose last entry lies past element 2^31: q, kv, indices or an output
    invariant batch_invariant
    """

    heads: int
    tokens: int
    k: int
    kv_format: str = "bf16"
    width: int = 576
    head_dim_v: int = 512
    blocks: int = 150
    page: int = 1
    form: str = "flat"
    lists: str = "minus one"
    unit: bool = False
    length: bool = False
    sink: str = ""
    gap: int = 0
    out: str = ""
    lse: str = "new"
    far: str = ""
    scale: float = DEEPSEEK_SCALE
    invariant: bool = False

    stats = ("lse", "max_logits")

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        far = self.far == "kv"
        pool, slots = Pool(self.kv_format, self.width, self.blocks, self.page, self.gap, far)(make)
        capacity = self.blocks * self.page
        lists = index_lists(make, slots, self.tokens, self.k, self.lists, capacity)
        length = lengths(make, self.tokens, lists) if self.length else None
        lists = lists.unsqueeze(1) if self.unit else lists
        return {
            "q": _queries(make, self, self.tokens),
            "kv": {"flat": pool[:, 0], "unit": pool, "paged": pool.unsqueeze(2)}[self.form],
            "indices": _laid(make, self, "indices", lists),
            "softmax_scale": self.scale,
            "head_dim_v": self.head_dim_v,
            "topk_length": length,
            "attn_sink": sinks(make, self.heads, self.sink),
            "kv_format": flavoured(make, self.kv_format),
            "return_lse": bool(self.lse),
            **({"batch_invariant": True} if self.invariant else {}),
            **_outputs(make, self, self.tokens),
        }


@dataclass(frozen=True)
class SparseDecode:
    """A call of `sparse_mla_decode`.

    form        of the cache: "3d", "nhd" or "hnd"
    length      topk_length: "" for none, one a "batch" entry or one a "row"
    extra_k     entries of the second cache's lists; 0 for no such cache
    far         q, kv_cache, extra_kv_cache, indices or an output

    The others are those of `SparsePrefill`.
    """

    heads: int
    batch: int
    k: int
    kv_format: str = "fp8_v32"
    q_len: int = 1
    width: int = 576
    head_dim_v: int = 512
    blocks: int = 5
    page: int = 64
    form: str = "3d"
    lists: str = "minus one"
    length: str = ""
    sink: str = ""
    extra_k: int = 0
    extra_blocks: int = 5
    extra_page: int = 32
    extra_length: str = ""
    gap: int = 0
    out: str = ""
    lse: str = "new"
    far: str = ""
    scale: float = DEEPSEEK_SCALE
    invariant: bool = False

    stats = ("lse",)

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        cache, indices, length = self._side(make, "", self.blocks, self.page, self.k, self.length)
        extra: dict[str, Any] = {}
        if self.extra_k:
            names = ("extra_kv_cache", "extra_indices", "extra_topk_length")
            sizes = self.extra_blocks, self.extra_page, self.extra_k, self.extra_length
            extra = dict(zip(names, self._side(make, "extra_", *sizes), strict=True))
        return {
            "q": _queries(make, self, self.batch, self.q_len),
            "kv_cache": cache,
            "indices": _laid(make, self, "indices", indices),
            "softmax_scale": self.scale,
            "head_dim_v": self.head_dim_v,
            "kv_format": flavoured(make, self.kv_format),
            "topk_length": length,
            "attn_sink": sinks(make, self.heads, self.sink),
            "return_lse": bool(self.lse),
            **({"batch_invariant": True} if self.invariant else {}),
            **extra,
            **_outputs(make, self, self.batch, self.q_len),
        }

    def _side(
        self, make: Maker, prefix: str, blocks: int, page: int, k: int, length: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Cache, lists and lengths of one of the two pools."""
        far = self.far == prefix + "kv_cache"
        cache, slots = Pool(self.kv_format, self.width, blocks, page, self.gap, far)(make)
        rows = self.batch * self.q_len
        lists = index_lists(make, slots, rows, k, self.lists, blocks * page)
        count = {"": 0, "batch": self.batch, "row": rows}[length]
        limits = lengths(make, count, lists) if count else None
        return formed(cache, self.form), lists.view(self.batch, self.q_len, k), limits

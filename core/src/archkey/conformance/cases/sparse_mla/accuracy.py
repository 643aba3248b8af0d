# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA on the numbers of real models, for level accuracy.

Scales of packed caches are whatever float32 numbers the tiles' largest values give: with powers of
two a kernel that rounds scales to e8m0 passes unseen (sglang#22723). Lists are cut out of a context
that is longer than they are, in no order, over pages in no order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from archkey.conformance.accuracy import AccuracyCase, RoundTrip
from archkey.conformance.case import Maker
from archkey.conformance.cases.distributions import (
    ACTIVATIONS,
    KINDS,
    about_windows,
    activations,
    draw,
    focus,
)
from archkey.conformance.cases.mla.values import DEEPSEEK_SCALE
from archkey.conformance.cases.sparse_mla.pools import flavoured
from archkey.conformance.cases.tensors import empty
from archkey.formats.sparse_kv import empty_cache, load, packed, store

__all__ = ["CASES"]

_PAGE = 64


@dataclass(frozen=True)
class Selected:
    """A call of `sparse_mla_decode`, with one query a sequence, or of `sparse_mla_prefill`.

    kind     of the numbers, see `distributions`
    rows     query rows; k  entries of their lists
    context  tokens that the lists select from: the first one, those that the row wants, others
    """

    kind: str
    heads: int
    rows: int
    k: int
    context: int
    kv_format: str
    decode: bool = True

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        name = flavoured(make, self.kv_format)
        width = 576 if name == "bf16" else packed(name).head_dim
        shape = self.rows, self.heads, width
        q, keys, _ = draw(make, self.kind, shape, (self.context, 1), DEEPSEEK_SCALE)
        cache, slots = _cache(make, keys[:, 0], name)
        indices = slots[self._listed(make)].int()
        q, call = q.bfloat16(), {"softmax_scale": DEEPSEEK_SCALE, "kv_format": name}
        if self.decode:
            rows = {"q": q.unsqueeze(1), "kv_cache": cache, "indices": indices.unsqueeze(1)}
        else:
            rows = {"q": q, "kv": cache.unsqueeze(2), "indices": indices}
        return {**rows, **call, "return_lse": True}

    def _listed(self, make: Maker) -> torch.Tensor:
        """Positions `[rows, k]` in the context."""
        lists = []
        for row in range(self.rows):
            wanted = focus(row, self.context) if self.kind == "windows of keys" else range(0)
            first = make.tensor([0, *wanted], torch.int64).unique()
            others = make.permutation(self.context, torch.int64)
            chosen = torch.cat([first, others[~torch.isin(others, first)]])[: self.k]
            lists.append(chosen[make.permutation(self.k, torch.int64)])
        return torch.stack(lists)


def _cache(make: Maker, keys: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys `[n, d]` in a cache `[blocks, 64, row]`, and their slots; other slots are NaN."""
    n = len(keys)
    blocks = -(-n * 5 // (4 * _PAGE))
    slots = make.permutation(blocks * _PAGE, torch.int64)[:n]
    if name == "bf16":
        pool = empty(make, blocks * _PAGE, keys.shape[1], dtype=torch.bfloat16)
        pool[slots] = keys.bfloat16()
        return pool.view(blocks, _PAGE, -1), slots
    layout = packed(name)
    cache = empty_cache(layout, blocks, _PAGE, device=make.device)
    if make.poisons:
        cache.fill_(0xFF)
    latent, rope = keys[:, : layout.nope_dim], keys[:, layout.nope_dim :]
    mode = "pow2" if layout.planar else "fp32"
    store(cache, slots, latent, rope if layout.rope_dim else None, layout, mode)
    return cache, slots


@dataclass(frozen=True)
class Stored:
    """A call of `quantize_sparse_kv` for so many tokens, of numbers of `kind`."""

    kind: str
    tokens: int
    kv_format: str = "fp8_v32"
    scale_mode: str = "fp32"

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        name = flavoured(make, self.kv_format)
        layout = packed(name)
        rows = activations(make, self.kind, self.tokens, layout.head_dim).bfloat16()
        blocks = -(-self.tokens * 5 // (4 * _PAGE))
        cache = empty_cache(layout, blocks, _PAGE, device=make.device).fill_(0x35)
        return {
            "k_nope": rows[:, : layout.nope_dim],
            "k_rope": rows[:, layout.nope_dim :] if layout.rope_dim else None,
            "format": name,
            "scale_mode": self.scale_mode,
            "slot_mapping": make.permutation(blocks * _PAGE, torch.int64)[: self.tokens],
            "out": cache,
        }


def _stored(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """What stands in the cache at the slots of the call: `[T, head_dim]`."""
    layout, cache = packed(inputs["format"]), outputs["out"]
    return {"row": load(cache, inputs["slot_mapping"].long(), layout, dtype=torch.float64)}


def _given(inputs: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    parts = [inputs[name] for name in ("k_nope", "k_rope") if inputs[name] is not None]
    return {"row": torch.cat(parts, 1).double()}


@dataclass(frozen=True)
class Read:
    """A call of `dequantize_sparse_kv` on a cache of so many tokens, of numbers of `kind`."""

    kind: str
    tokens: int
    kv_format: str = "fp8_v32"

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        name = flavoured(make, self.kv_format)
        rows = activations(make, self.kind, self.tokens, packed(name).head_dim)
        cache, slots = _cache(make, rows, name)
        return {"kv_cache": cache, "format": name, "slot_mapping": slots}


_FORMATS = ("fp8_v32", "fp8_model1", "bf16", "fp8_v32_nope")
_WORST = ("outlier channels", "fp8_v32")
"""As in sglang#22723, which was of one kernel for 64 heads and not of that for 128."""

_MARKED = ("near ties", "sink", "windows of keys")
"""Kinds that raise scores by a mark in the rope key. Without one it is FP8 codes of one scale, and
their rounding to bfloat16, the same for all heads, is a bias that sound kernels have."""

_MODES = (
    ("fp8_v32", "fp32"),
    ("fp8_v32", "pow2"),
    ("fp8_v32_nope", "fp32"),
    ("fp8_model1", "pow2"),
)


def _attention(call: Selected, *, edge: bool = False, large: bool = False) -> AccuracyCase:
    operator = "sparse_mla_decode" if call.decode else "sparse_mla_prefill"
    label = f"{call.kv_format}, H={call.heads}, {call.rows} rows, k={call.k} of {call.context}"
    about = about_windows(call.kind, [call.context] * call.rows)
    return AccuracyCase(operator, call.kind, label, call, edge, large, about=about)


# An interpreter has time for some. In all of them there are 64 heads and 128, and each format.
_DECODES = (
    *((kind, "fp8_v32", (64, 128)[i % 2]) for i, kind in enumerate(KINDS)),
    ("outlier channels", "fp8_v32", 128),
    ("outlier channels", "fp8_model1", 128),
    ("windows of keys", "fp8_model1", 64),
    ("outlier channels", "bf16", 64),
    ("sink", "bf16", 128),
    ("outlier channels", "fp8_v32_nope", 64),
    ("sizes of tiles", "fp8_v32_nope", 128),
)
_PREFILLS = (
    ("outlier channels", "fp8_v32", 64),
    ("sink", "fp8_v32", 128),
    ("windows of keys", "bf16", 64),
    ("outlier channels", "bf16", 128),
    ("sizes of tiles", "fp8_model1", 64),
    ("outlier channels", "fp8_v32_nope", 128),
)


def _attentions(decode: bool) -> Iterator[AccuracyCase]:
    for kind, form, heads in _DECODES if decode else _PREFILLS:
        yield _attention(Selected(kind, heads, 2, 320, 2048, form, decode), edge=True)
    for i, kind in enumerate(KINDS):
        for j, form in enumerate(_FORMATS[: 3 if kind in _MARKED else 4]):
            for heads in (64, 128) if (kind, form) == _WORST else ((64, 128)[(i + j) % 2],):
                call = Selected(kind, heads, 4, 2048, 8192, form, decode)
                yield _attention(call)
                yield _attention(replace(call, rows=512, context=65536), large=True)


CASES = (
    *_attentions(decode=True),
    *_attentions(decode=False),
    *(
        AccuracyCase(
            *("quantize_sparse_kv", kind, f"tokens=600, {form}, scales {mode}"),
            Stored(kind, 600, form, mode),
            edge=True,
            round_trip=RoundTrip(_stored, _given),
        )
        for kind in ACTIVATIONS
        for form, mode in _MODES
    ),
    *(
        AccuracyCase(
            *("dequantize_sparse_kv", kind, f"tokens=600, {form}"), Read(kind, 600, form), edge=True
        )
        for kind in ACTIVATIONS
        for form, _ in _MODES[1:]
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Attention as sound kernels on a GPU compute it, in plain torch, and what others lose.

Keys come out of their cache in bfloat16, once rounded; weights are rounded to it, sums are float32.
A `Loss` is one step of that, done worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.conformance._wrong import Right, Values, Wrong

from archkey.formats import sparse_kv

Change = Callable[[torch.Tensor], torch.Tensor]


def bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest, as float32."""
    return x.bfloat16().float()


def fp8(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float8_e4m3fn).float()


def without_last_column(k: torch.Tensor) -> torch.Tensor:
    """A key's last rope column is left out; values do not have it."""
    return torch.cat([k[..., :-1], torch.zeros_like(k[..., -1:])], -1)


@dataclass(frozen=True)
class Loss:
    """One step of a kernel that loses something. Without any, a sound kernel.

    scales   of the cache's tiles, float32; codes  of the cache as they are read: `[k, d]` real ones
    keys     as they are multiplied with queries; weights  as they are multiplied with values
    out, lse  the results
    """

    scales: Change = lambda x: x
    codes: Change = lambda x: x
    keys: Change = lambda x: x
    weights: Change = bfloat16
    out: Change = lambda x: x
    lse: Change = lambda x: x

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, scale: float, width_v: int
    ) -> dict[str, torch.Tensor]:
        """out `[H, width_v]`, lse and max_logits `[H]` of q `[H, d]` over keys `[k, d]`."""
        keys = bfloat16(self.codes(keys))
        scores = scale * q.float() @ self.keys(keys).T
        top = scores.amax(-1, keepdim=True)
        p = (scores - top).exp()
        total = p.sum(-1, keepdim=True)
        out = self.out(self.weights(p) @ keys[:, :width_v] / total)
        lse = self.lse((top + total.log())[:, 0])
        return {"out": out, "lse": lse, "max_logits": top[:, 0]}


def sparse(loss: Loss) -> Wrong:
    """Both operators of sparse MLA, of valid lists of one cache alone."""

    def kernel(right: Right, inputs: Values, outputs: Values) -> Values:
        cache = inputs["kv"] if "kv" in inputs else inputs["kv_cache"]
        lists = inputs["indices"].flatten(0, -2).long()
        q = inputs["q"].flatten(0, -3)
        form, scale, width = (inputs[n] for n in ("kv_format", "softmax_scale", "head_dim_v"))
        if form != "bf16":
            cache = with_scales(cache, sparse_kv.packed(form), loss.scales)
        rows = []
        for row, slots in zip(q, lists, strict=True):
            if form == "bf16":
                keys = cache.flatten(0, 1)[slots].float()
            else:
                layout = sparse_kv.packed(form)
                keys = sparse_kv.load(cache, slots, layout, dtype=torch.float32)
            rows.append(loss.attend(row, keys, scale, width))
        return together(rows, outputs)

    return kernel


def mla_decode(loss: Loss) -> Wrong:
    """One query a sequence."""

    def kernel(right: Right, inputs: Values, outputs: Values) -> Values:
        cache, rows = inputs["kv_cache"], []
        descale = float(inputs["kv_descale"] or 1.0)
        for b, length in enumerate(inputs["cache_seqlens"].tolist()):
            at = torch.arange(length)
            pages = inputs["block_table"][b, at // cache.shape[1]].long()
            keys = cache[pages, at % cache.shape[1]].float() * descale
            scale, width = inputs["softmax_scale"], inputs["head_dim_v"]
            rows.append(loss.attend(inputs["q"][b, 0], keys, scale, width))
        return together(rows, outputs)

    return kernel


def together(rows: list[dict[str, torch.Tensor]], outputs: Values) -> Values:
    """Rows of results, in the shapes of the outputs."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in outputs}
    return {
        name: stacked[name].reshape(out.shape) for name, out in outputs.items() if out is not None
    }


def with_scales(cache: torch.Tensor, layout: Any, change: Change) -> torch.Tensor:
    """A packed cache with other scales; float32 ones only."""
    if layout.scale_dtype != "float32":
        return cache
    copy = cache.clone()
    plane = copy[..., layout.nope_dim : layout.nope_dim + layout.scale_bytes]
    changed = change(plane.contiguous().view(torch.float32))
    plane.copy_(changed.contiguous().view(torch.uint8).view(plane.shape))
    return copy


def cut_to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """The last 16 bits are dropped, not rounded."""
    return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)


def some_in_the_other_flavour(keys: torch.Tensor) -> torch.Tensor:
    """The first tile of every 64th key of a list is read as e4m3fnuz: half as large."""
    changed = keys.clone()
    changed[::64, :128] *= 0.5
    return changed


UP = Loss(scales=lambda x: torch.exp2(torch.ceil(torch.log2(x))))
"""sglang#22723: float32 scales become e8m0, rounded up."""

NEAREST = Loss(scales=lambda x: torch.exp2(torch.round(torch.log2(x))))

LOSSES = {
    "scales up to powers of two": UP,
    "scales to the nearest power of two": NEAREST,
    "scales cut off to bfloat16": Loss(scales=cut_to_bfloat16),
    "some codes in the other flavour": Loss(codes=some_in_the_other_flavour),
    "a rope column left out": Loss(keys=without_last_column),
    "weights in FP8": Loss(weights=fp8),
    "lse to base 2": Loss(lse=lambda x: x / math.log(2)),
    "0.3 % too small": Loss(out=lambda x: x * 0.997),
}

SOUND = Loss()

# SPDX-License-Identifier: Apache-2.0
"""SGLang's Triton sparse latent attention, over bfloat16 caches.

Read against SGLang 0.5.23. The "autotuned" routes go through the entry that tries 27 tiles when a
batch fills the device: over 100 seconds a process on an H200, so that one may want to leave them
out. None of them gives an lse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.kernels.ops.attention.dsa.triton_sparse_mla import triton_sparse_mla_fwd
from sglang.kernels.ops.attention.dsa.triton_sparse_mla_decode import triton_sparse_mla_decode
from sglang.kernels.ops.attention.dsa.triton_sparse_mla_prefill import (
    sparse_mla_prefill as fused_prefill,
)

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import given, softmax_scale
from archkey.bench.peers._refusals import require
from archkey.bench.peers._results import Last
from archkey.ops._mla_checks import pages_of

__all__ = [
    "sparse_mla_decode",
    "sparse_mla_decode_autotuned",
    "sparse_mla_prefill",
    "sparse_mla_prefill_autotuned",
]

COMMON = ("q", "indices", "softmax_scale", "sm_scale", "return_lse")


def sparse_mla_prefill(inputs: Mapping[str, Any]) -> Bound:
    """Prefill, one program a query."""
    only(inputs, *COMMON, "kv", "topk_length", head_dim_v=512, kv_format="bf16")
    q, kv, lists = _prefill(inputs)
    options = given(inputs, "topk_length")
    call = Last(lambda: fused_prefill(q, kv, lists, softmax_scale(inputs), 512, **options))
    return Bound(call, lambda: {"out": call.result}, "no lse")


def sparse_mla_prefill_autotuned(inputs: Mapping[str, Any]) -> Bound:
    """Prefill through the entry for any length."""
    only(inputs, *COMMON, "kv", head_dim_v=512, kv_format="bf16")
    q, kv, lists = _prefill(inputs)
    return _split_q(triton_sparse_mla_fwd, q, kv, lists, softmax_scale(inputs), q.shape[:2])


def sparse_mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Decode, lists split over the device."""
    return _decode(triton_sparse_mla_decode, inputs)


def sparse_mla_decode_autotuned(inputs: Mapping[str, Any]) -> Bound:
    """Decode through the entry for any length."""
    return _decode(triton_sparse_mla_fwd, inputs)


def _decode(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Bound:
    only(inputs, *COMMON, "kv_cache", "kv_format", head_dim_v=512)
    require(inputs["kv_format"] == "bf16", "bfloat16 caches only")
    q, cache = inputs["q"], pages_of(inputs["kv_cache"])
    require(cache.is_contiguous(), "a cache with gaps")
    keys = cache.reshape(-1, 1, cache.shape[2])
    lists = inputs["indices"].flatten(0, 1).unsqueeze(1)
    _check(q, keys, lists)
    rows = q.flatten(0, 1)
    return _split_q(function, rows, keys, lists, softmax_scale(inputs), q.shape[:3])


def _prefill(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, the pool `[S, 1, d]` and the lists `[T, 1, k]`."""
    q, kv, indices = inputs["q"], inputs["kv"], inputs["indices"]
    require(kv.is_contiguous(), "a pool with gaps")
    keys, lists = kv.reshape(-1, 1, kv.shape[-1]), indices.reshape(len(indices), 1, -1)
    _check(q, keys, lists)
    return q, keys, lists


def _check(q: torch.Tensor, keys: torch.Tensor, lists: torch.Tensor) -> None:
    """d is 512 + 64, and every entry is a row of the pool or negative: SGLang checks no bound."""
    require(q.shape[-1] == 576 and keys.shape[-1] == 576, "d = 576 only")
    require(keys.dtype == torch.bfloat16, "bfloat16 caches only")
    require(int(lists.max()) < len(keys), "indices past the pool")


def _split_q(
    function: Callable[..., Any],
    q: torch.Tensor,
    keys: torch.Tensor,
    lists: torch.Tensor,
    scale: float,
    shape: torch.Size,
) -> Bound:
    """A call of an entry that takes q's two parts apart and returns `[1, T, H, 512]`."""
    call = Last(lambda: function(q[..., :512], q[..., 512:], keys, lists, scale, 512))
    return Bound(call, lambda: {"out": call.result.view(*shape, 512)}, "no lse")

# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention: scaled_dot_product_attention by backend, and batched matrix products.

It knows neither pages nor ragged batches: sequences are as long as each other, and caches are
copied to contiguous memory before the timing, which no engine could do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MLA_DECODE, MLA_PREFILL, SEGMENTS, UNIFIED, softmax_scale
from archkey.bench.peers._batch import attention_batch, gathered, latent_batch
from archkey.bench.peers._refusals import all_covered, one_dtype, require
from archkey.bench.peers._results import Last, attended
from archkey.ops._mla_checks import pages_of

__all__ = [
    "mla_decode_bmm",
    "mla_prefill_cudnn",
    "mla_prefill_sdpa",
    "unified_attention_cudnn",
    "unified_attention_sdpa",
]

_COPIED = "over a contiguous copy of the cache, made outside the timing"


def _sdpa(
    backend: SDPBackend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sizes: tuple[int, int, int],
    causal: bool,
    scale: float,
    how: str,
) -> Bound:
    """Bind q `[B * n, H, d]`, k `[B * L, Hk, d]` and v `[B * L, Hk, dv]`, sizes (B, n, L)."""
    batch, queries, keys = sizes
    require(
        not causal or queries in (1, keys),
        "a causal mask over more keys than queries, of several queries",
    )
    pad = q.shape[-1] - v.shape[-1] if backend == SDPBackend.FLASH_ATTENTION else 0
    if pad:
        how = f"v padded to {q.shape[-1]} columns in the call"
    grouped = q.shape[1] != k.shape[1]
    width = v.shape[-1]
    q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))

    def run() -> torch.Tensor:
        values = functional.pad(v, (0, pad)) if pad else v
        with sdpa_kernel(backend):
            out = functional.scaled_dot_product_attention(
                q, k, values, is_causal=causal and queries > 1, scale=scale, enable_gqa=grouped
            )
        return out.transpose(1, 2)[..., :width].flatten(0, 1)

    call = Last(run)
    return Bound(call, lambda: {"out": call.result}, how)


def _prefill(inputs: Mapping[str, Any], backend: SDPBackend) -> Bound:
    only(inputs, *MLA_PREFILL)
    one_dtype(inputs, "q", "k", "v", "out")
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    q_lens, k_lens = (inputs[f"cu_seqlens_{x}"].diff().tolist() for x in "qk")
    require(len(set(q_lens)) == 1 == len(set(k_lens)), "sequences of unequal length")
    sizes = len(q_lens), q_lens[0], k_lens[0]
    for x, rows in (("q", q), ("k", k)):
        all_covered(inputs[f"cu_seqlens_{x}"], len(rows))
    causal = inputs.get("causal", True)
    return _sdpa(backend, q, k, v, sizes, causal, softmax_scale(inputs), "")


def mla_prefill_sdpa(inputs: Mapping[str, Any]) -> Bound:
    """Flash attention; it wants v as wide as q."""
    return _prefill(inputs, SDPBackend.FLASH_ATTENTION)


def mla_prefill_cudnn(inputs: Mapping[str, Any]) -> Bound:
    """cuDNN."""
    return _prefill(inputs, SDPBackend.CUDNN_ATTENTION)


def _unified(inputs: Mapping[str, Any], backend: SDPBackend) -> Bound:
    only(
        inputs, *UNIFIED, *SEGMENTS, "kv_layout", window_size=(-1, -1), softcap=0.0,
    )  # fmt: skip
    one_dtype(inputs, "q", "k", "v", "out")
    batch = attention_batch(inputs)
    sizes = batch.equal()
    k, v = inputs["k"], inputs["v"]
    if inputs.get("kv_layout", "NHD") == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    k, v = (gathered(x, inputs["block_table"], batch.kv_lens).flatten(0, 1) for x in (k, v))
    return _sdpa(backend, batch.q, k, v, sizes, True, inputs["softmax_scale"], _COPIED)


def unified_attention_sdpa(inputs: Mapping[str, Any]) -> Bound:
    """Flash attention."""
    return _unified(inputs, SDPBackend.FLASH_ATTENTION)


def unified_attention_cudnn(inputs: Mapping[str, Any]) -> Bound:
    """cuDNN."""
    return _unified(inputs, SDPBackend.CUDNN_ATTENTION)


def mla_decode_bmm(inputs: Mapping[str, Any]) -> Bound:
    """Two batched products and a softmax."""
    only(
        inputs, *MLA_DECODE, "head_dim_v", "cu_seqlens_q", "out", "enable_pdl", window_left=-1,
    )  # fmt: skip
    one_dtype(inputs, "q", "kv_cache", "out")
    batch = latent_batch(inputs)
    sequences, queries, _ = batch.equal()
    require(queries == 1 or not inputs.get("causal", True), "a causal mask of several queries")
    kv = gathered(pages_of(inputs["kv_cache"]), inputs["block_table"], batch.kv_lens)
    q = batch.q.reshape(sequences, -1, batch.q.shape[-1])
    scale, width = softmax_scale(inputs), inputs.get("head_dim_v", 512)
    scores = q.new_empty(*q.shape[:2], kv.shape[1])
    out = q.new_empty(*q.shape[:2], width)

    def call() -> None:
        scores.baddbmm_(q, kv.mT, beta=0, alpha=scale)
        p = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        torch.bmm(p, kv[..., :width], out=out)

    return Bound(call, lambda: attended(inputs, out), f"four launches, {_COPIED}")

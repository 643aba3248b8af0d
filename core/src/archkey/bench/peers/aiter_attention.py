# SPDX-License-Identifier: Apache-2.0
"""aiter's attention: latent decode in assembly, unified attention in Triton.

Read against ROCm/aiter e404860, and never run by archkey's authors, who have no such device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from aiter.mla import mla_decode_fwd
from aiter.ops.triton.attention.unified_attention import unified_attention as triton_attention

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MLA_DECODE, UNIFIED, scalar, softmax_scale
from archkey.bench.peers._batch import key_slots
from archkey.bench.peers._refusals import all_covered, require
from archkey.bench.peers._results import Last
from archkey.ops._mla_checks import pages_of

__all__ = ["mla_decode", "unified_attention"]


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Latent decode; the cache is given as pages of one key, as vLLM gives it."""
    only(
        inputs, *MLA_DECODE, "return_lse", "q_descale", "kv_descale", head_dim_v=512,
        window_left=-1,
    )  # fmt: skip
    q, cache = inputs["q"], pages_of(inputs["kv_cache"])
    require(q.dim() == 4, "ragged queries")
    batch, queries, heads, width = q.shape
    require(heads in (16, 128) and queries <= 4, "16 and 128 heads, up to 4 queries only")
    eight_bits = q.dtype.itemsize == 1
    require(q.dtype == cache.dtype and (eight_bits or q.dtype == torch.bfloat16), "dtypes")
    require(width == 576 and cache.is_contiguous(), "d = 576 in a cache without gaps only")
    require(eight_bits or inputs.get("q_descale") is inputs.get("kv_descale"), "a descale")
    require(bool((inputs["cache_seqlens"] >= queries).all()), "rows without keys")
    indptr, slots = key_slots(inputs["block_table"], inputs["cache_seqlens"], cache.shape[1])
    slots = slots.int()
    starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * queries
    ones = torch.ones(batch, dtype=torch.int32, device=q.device)
    flat, keys = q.reshape(-1, heads, width), cache.reshape(-1, 1, 1, width)
    out = torch.empty(len(flat), heads, 512, dtype=torch.bfloat16, device=q.device)
    scales = {}
    if eight_bits:
        scales = {
            f"{x}_scale": scalar(inputs.get(f"{x}_descale"), f"{x}_descale", q.device)
            for x in ("q", "kv")
        }
    causal = inputs.get("causal", True)

    def run() -> Any:
        return mla_decode_fwd(
            flat,
            keys,
            out,
            starts,
            indptr,
            slots,
            ones,
            queries,
            sm_scale=softmax_scale(inputs),
            return_lse=True,
            causal=causal,
            **scales,
        )

    call = Last(run)
    how = "key lists made once, outside; without the persistent schedule"
    return Bound(
        call,
        lambda: {"out": out.view(*q.shape[:3], 512), "lse": call.result[1].view(-1, heads)},
        how,
    )


def unified_attention(inputs: Mapping[str, Any]) -> Bound:
    """The Triton kernels; arguments have archkey's names and order."""
    only(
        inputs, *UNIFIED, "window_size", "softcap", "q_descale", "k_descale", "v_descale",
        "alibi_slopes", "output_scale", "qq_bias", "sinks", "lse", kv_layout="NHD",
    )  # fmt: skip
    q, v, page_size = inputs["q"], inputs["v"], inputs["k"].shape[1]
    require(q.shape[2] == v.shape[3], "one head size for K and V")
    require(page_size & (page_size - 1) == 0, "pages of a power of two only")
    for name in ("q_descale", "k_descale", "v_descale", "output_scale"):
        scale = inputs.get(name)
        one = isinstance(scale, torch.Tensor) and scale.numel() == 1
        require(scale is None or one, f"{name} of one element on the device only")
    all_covered(inputs["cu_seqlens_q"], len(q))
    out = inputs.get("out")
    if out is None:
        dtype = torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype
        out = torch.empty(*q.shape[:2], v.shape[3], dtype=dtype, device=q.device)

    def run() -> None:
        triton_attention(
            q,
            inputs["k"],
            v,
            out,
            inputs["cu_seqlens_q"],
            inputs["max_seqlen_q"],
            inputs["seqused_k"],
            inputs["max_seqlen_k"],
            inputs["softmax_scale"],
            inputs["causal"],
            inputs["window_size"],
            inputs["block_table"],
            inputs.get("softcap", 0.0),
            inputs.get("q_descale"),
            inputs.get("k_descale"),
            inputs.get("v_descale"),
            alibi_slopes=inputs.get("alibi_slopes"),
            output_scale=inputs.get("output_scale"),
            qq_bias=inputs.get("qq_bias"),
            sinks=inputs.get("sinks"),
        )

    return Bound(run, lambda: {"out": out}, "no lse")

# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3, its authors' package or the copy that vLLM builds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MLA_DECODE, MLA_PREFILL, SEGMENTS, UNIFIED, softmax_scale
from archkey.bench.peers._batch import Batch, attention_batch, latent_batch
from archkey.bench.peers._refusals import HALVES, all_covered, one_dtype, require
from archkey.bench.peers._results import Last, attended
from archkey.ops._mla_checks import pages_of

_authors: Any
_vllm: Any = None
try:
    _authors = importlib.import_module("flash_attn_interface")
except ImportError:
    _authors, _vllm = None, importlib.import_module("vllm.vllm_flash_attn.flash_attn_interface")

__all__ = ["mla_decode", "mla_prefill", "unified_attention"]

_SCHEDULED = "scheduler metadata made outside the timing"

Attention = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Gives out `[T, H, dv]` and lse `[H, T]`."""


def _bind(run: Attention, inputs: Mapping[str, Any], how: str) -> Bound:
    call = Last(run)

    def outputs() -> dict[str, torch.Tensor]:
        out, lse = call.result
        return attended(inputs, out, lse.T)

    return Bound(call, outputs, how)


def _paged(
    batch: Batch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    max_kv: int,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    qv: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    **descales: torch.Tensor | None,
) -> Attention:
    """Queries over pages `[blocks, page_size, Hk, ..]`."""
    library = _authors or _vllm
    shared: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": causal,
        "window_size": window,
        "softcap": softcap,
        "scheduler_metadata": library.get_scheduler_metadata(
            len(batch.kv_lens),
            batch.max_q,
            max_kv,
            q.shape[1],
            k.shape[2],
            q.shape[2],
            cache_seqlens=lengths,
            qkv_dtype=q.dtype,
            headdim_v=v.shape[-1],
            cu_seqlens_q=batch.cu_q,
            page_size=k.shape[1],
            causal=causal,
            window_size=window,
            has_softcap=softcap > 0,
        ),
        "num_splits": 0,  # its heuristic, as for the metadata
        "cu_seqlens_q": batch.cu_q,
        "max_seqlen_q": batch.max_q,
        "return_softmax_lse": True,
        **descales,
    }
    if _authors:
        require(sinks is None, "sinks")

        def authors() -> tuple[torch.Tensor, torch.Tensor]:
            out, lse, *_ = _authors.flash_attn_with_kvcache(
                q, k, v, qv=qv, cache_seqlens=lengths, page_table=table, **shared
            )
            return out, lse

        return authors
    dtype = torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=dtype, device=q.device)

    def vllm() -> tuple[torch.Tensor, torch.Tensor]:
        result: tuple[torch.Tensor, torch.Tensor] = _vllm.flash_attn_varlen_func(
            q, k, v, max_seqlen_k=max_kv, seqused_k=lengths, q_v=qv, block_table=table, out=out,
            fa_version=3, s_aux=sinks, **shared,
        )  # fmt: skip
        return result

    return vllm


def unified_attention(inputs: Mapping[str, Any]) -> Bound:
    """Paged attention of ragged queries."""
    only(
        inputs, *UNIFIED, *SEGMENTS, "window_size", "softcap", "q_descale", "k_descale",
        "v_descale", "sinks", "lse", "kv_layout",
    )  # fmt: skip
    one_dtype(inputs, "q", "k", "v", among=(*HALVES, torch.float8_e4m3fn))
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    out, sinks = inputs.get("out"), inputs.get("sinks")
    fp8 = q.dtype not in HALVES
    require(
        out is None or out.dtype == (torch.bfloat16 if fp8 else q.dtype), "out of another dtype"
    )
    require(sinks is None or sinks.dtype == torch.bfloat16, "sinks that are not bfloat16")
    widths = q.shape[-1], v.shape[-1]
    require(widths == (192, 128) or widths[0] == widths[1] <= 256, f"widths {widths}")
    if inputs.get("kv_layout", "NHD") == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    batch = attention_batch(inputs)
    shape = len(batch.kv_lens), k.shape[2]
    descales = {
        name: _factors(inputs.get(name), name, shape, fp8, q.device)
        for name in ("q_descale", "k_descale", "v_descale")
    }
    window = tuple(inputs["window_size"]) if inputs["window_size"][0] >= 0 else (-1, -1)
    table = inputs["block_table"][: shape[0]]
    run = _paged(
        batch, q, k, v, table, inputs["seqused_k"], inputs["max_seqlen_k"],
        scale=inputs["softmax_scale"], causal=True, window=window,
        softcap=inputs.get("softcap", 0.0), sinks=sinks, **descales,
    )  # fmt: skip
    return _bind(run, inputs, _SCHEDULED)


def _factors(
    value: Any, name: str, shape: tuple[int, int], fp8: bool, device: torch.device
) -> torch.Tensor | None:
    """A descale as `[B, Hk]`."""
    if value is None:
        return None
    require(fp8, f"{name} of 16-bit values")
    if isinstance(value, torch.Tensor):
        return value.expand(shape) if value.numel() == 1 else value
    return torch.full(shape, value, dtype=torch.float32, device=device)


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Absorbed: the rope part as q and k, the latent as v, with its queries as q_v."""
    only(
        inputs, *MLA_DECODE, "cu_seqlens_q", "out", "lse", "return_lse", "enable_pdl",
        head_dim_v=512, window_left=-1,
    )  # fmt: skip
    one_dtype(inputs, "q", "kv_cache", "out")
    batch, cache = latent_batch(inputs), pages_of(inputs["kv_cache"]).unsqueeze(2)
    require(batch.q.shape[-1] == 576, f"rows of {batch.q.shape[-1]}, not of 512 + 64")
    nope, rope = batch.q.split([512, 64], -1)
    latent, keys = cache.split([512, 64], -1)
    run = _paged(
        batch, rope, keys, latent, inputs["block_table"], inputs["cache_seqlens"], batch.max_kv,
        scale=softmax_scale(inputs), causal=inputs.get("causal", True), qv=nope,
    )  # fmt: skip
    return _bind(run, inputs, _SCHEDULED)


def mla_prefill(inputs: Mapping[str, Any]) -> Bound:
    """`flash_attn_varlen_func`."""
    only(inputs, *MLA_PREFILL, "lse", "return_lse")
    one_dtype(inputs, "q", "k", "v", "out")
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    cu_q = inputs["cu_seqlens_q"]
    all_covered(cu_q, len(q))
    lengths = {name: inputs[name] for name in ("cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")}
    shared = {
        "cu_seqlens_q": cu_q,
        **lengths,
        "softmax_scale": softmax_scale(inputs),
        "causal": inputs.get("causal", True),
    }
    if _authors:
        shared["return_attn_probs"] = True
    else:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        shared |= {"return_softmax_lse": True, "out": out, "fa_version": 3}
    attend = (_authors or _vllm).flash_attn_varlen_func
    return _bind(lambda: attend(q, k, v, **shared), inputs, "")

# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's attention, planned while binding; its logarithms are to base 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper
from flashinfer.mla import BatchMLAPagedAttentionWrapper, MLAPlanMetadata
from flashinfer.prefill import (
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
)

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import (
    MLA_DECODE,
    MLA_PREFILL,
    SEGMENTS,
    UNIFIED,
    number,
    softmax_scale,
    wants_lse,
)
from archkey.bench.peers._batch import attention_batch, csr, latent_batch
from archkey.bench.peers._refusals import HALVES, all_covered, one_dtype, require
from archkey.bench.peers._results import LN2, attended
from archkey.ops._mla_checks import pages_of

__all__ = [
    "mla_decode_fa2",
    "mla_decode_fa3",
    "mla_prefill_fa3",
    "unified_attention_decode",
    "unified_attention_fa2",
    "unified_attention_fa3",
]

_WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends
_PLANNED = "planned outside the timing"
_FA3_WIDTHS = ((64, 64), (128, 128), (256, 256), (192, 128))


def _workspace(device: torch.device) -> torch.Tensor:
    """The decode wrapper wants zeros at first."""
    return torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _bind(
    run: Callable[..., object], q: torch.Tensor, width: int, inputs: Mapping[str, Any]
) -> Bound:
    """Bind `run(out=, lse=, return_lse=)` for queries `[T, H, d]`; the output is `width` wide."""
    out = q.new_empty(*q.shape[:-1], width)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32) if wants_lse(inputs) else None

    return Bound(
        lambda: run(out=out, lse=lse, return_lse=lse is not None),
        lambda: attended(inputs, out, None if lse is None else lse * LN2),
        _PLANNED,
    )


def _mla_decode(inputs: Mapping[str, Any], backend: str) -> Bound:
    only(
        inputs, *MLA_DECODE, "cu_seqlens_q", "kv_descale", "out", "lse", "return_lse",
        "enable_pdl", head_dim_v=512, window_left=-1,
    )  # fmt: skip
    one_dtype(inputs, "q", "out")
    batch, cache = latent_batch(inputs), pages_of(inputs["kv_cache"])
    q, page_size = batch.q, cache.shape[1]
    require(q.shape[-1] == 576, f"rows of {q.shape[-1]}, not of 512 + 64")
    scales: dict[str, float] = {}
    if cache.dtype != q.dtype:
        require(
            (q.dtype, cache.dtype) == (torch.bfloat16, torch.float8_e4m3fn),
            f"a cache of {cache.dtype} beside {q.dtype}",
        )
        factor = number(inputs.get("kv_descale"), "kv_descale")
        scales = {"ckv_scale": factor, "kpe_scale": factor}
    else:
        require(inputs.get("kv_descale") is None, "kv_descale of a cache that is not FP8")
    pages = csr(inputs["block_table"], batch.kv_lens, page_size)
    wrapper = BatchMLAPagedAttentionWrapper(_workspace(q.device), backend=backend)
    wrapper.plan(
        metadata=MLAPlanMetadata.csr(
            batch.cu_q, pages.indptr, pages.indices, inputs["cache_seqlens"]
        ),
        num_heads=q.shape[1],
        head_dim_ckv=512,
        head_dim_kpe=64,
        page_size=page_size,
        causal=inputs.get("causal", True),
        sm_scale=softmax_scale(inputs),
        q_data_type=q.dtype,
        kv_data_type=cache.dtype,
        query_layout="split",
        kv_cache_layout="split",
        lse_mode="base2" if wants_lse(inputs) else "none",
        scale_mode="kv-per-tensor" if scales else "default",
    )
    query, pair = (q[..., :512], q[..., 512:]), (cache[..., :512], cache[..., 512:])

    def run(**outputs: Any) -> object:
        return wrapper.run(query=query, kv_cache=pair, **outputs, **scales)

    return _bind(run, q, 512, inputs)


def mla_decode_fa2(inputs: Mapping[str, Any]) -> Bound:
    """`BatchMLAPagedAttentionWrapper`, its fa2 kernel."""
    return _mla_decode(inputs, "fa2")


def mla_decode_fa3(inputs: Mapping[str, Any]) -> Bound:
    """`BatchMLAPagedAttentionWrapper`, its Hopper kernel."""
    return _mla_decode(inputs, "fa3")


def mla_prefill_fa3(inputs: Mapping[str, Any]) -> Bound:
    """`BatchPrefillWithRaggedKVCacheWrapper`, its Hopper kernel."""
    only(inputs, *MLA_PREFILL, "lse", "return_lse")
    one_dtype(inputs, "q", "k", "v", "out")
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    cu_q, cu_k = inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]
    widths = q.shape[-1], v.shape[-1]
    require(widths in _FA3_WIDTHS, f"widths {widths}")
    all_covered(cu_q, len(q))
    wrapper = BatchPrefillWithRaggedKVCacheWrapper(_workspace(q.device), "NHD", backend="fa3")
    wrapper.plan(
        cu_q,
        cu_k,
        q.shape[1],
        k.shape[1],
        widths[0],
        head_dim_vo=widths[1],
        causal=inputs.get("causal", True),
        sm_scale=softmax_scale(inputs),
        q_data_type=q.dtype,
        kv_data_type=k.dtype,
        o_data_type=q.dtype,
    )
    return _bind(lambda **outputs: wrapper.run(q, k, v, **outputs), q, widths[1], inputs)


def _unified(inputs: Mapping[str, Any], backend: str, decode: bool) -> Bound:
    only(
        inputs, *UNIFIED, *SEGMENTS, "window_size", "softcap", "k_descale", "v_descale", "lse",
        "kv_layout",
    )  # fmt: skip
    one_dtype(inputs, "q", "out")
    k, v, layout = inputs["k"], inputs["v"], inputs.get("kv_layout", "NHD")
    batch = attention_batch(inputs)
    q, width = batch.q, v.shape[-1]
    page_size, kv_heads = k.shape[1:3] if layout == "NHD" else k.transpose(1, 2).shape[1:3]
    scales = _scales(inputs, q.dtype, k.dtype, backend)
    pages = csr(inputs["block_table"], batch.kv_lens, page_size)
    shared = {
        "sm_scale": inputs["softmax_scale"],
        "window_left": max(inputs["window_size"][0], -1),
        "logits_soft_cap": inputs.get("softcap", 0.0),
        "q_data_type": q.dtype,
        "kv_data_type": k.dtype,
        "o_data_type": q.dtype,
    }
    table = pages.indptr, pages.indices, pages.last_page
    wrapper: Any
    if decode:
        require(set(batch.q_lens) == {1}, "more than one query a sequence")
        require(width == q.shape[-1], "values of another width than keys")
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            _workspace(q.device), layout, use_tensor_cores=True, backend=backend
        )
        wrapper.plan(*table, q.shape[1], kv_heads, q.shape[-1], page_size, **shared)
    else:
        widths = q.shape[-1], width
        require(backend != "fa3" or widths in _FA3_WIDTHS, f"widths {widths}")
        wrapper = BatchPrefillWithPagedKVCacheWrapper(_workspace(q.device), layout, backend=backend)
        heads = q.shape[1], kv_heads, q.shape[-1], page_size
        wrapper.plan(batch.cu_q, *table, *heads, head_dim_vo=width, causal=True, **shared)
    return _bind(lambda **outputs: wrapper.run(q, (k, v), **outputs, **scales), q, width, inputs)


def _scales(
    inputs: Mapping[str, Any], dtype: torch.dtype, kv_dtype: torch.dtype, backend: str
) -> dict[str, float]:
    """The factors of an FP8 cache, which fa2 takes beside 16-bit queries."""
    require(inputs["v"].dtype == kv_dtype, "keys and values of two dtypes")
    if kv_dtype == dtype:
        for name in ("k_descale", "v_descale"):
            require(inputs.get(name) is None, f"{name} of a cache that is not FP8")
        return {}
    require(
        backend == "fa2" and dtype in HALVES and kv_dtype == torch.float8_e4m3fn,
        f"a cache of {kv_dtype} beside {dtype}",
    )
    return {f"{x}_scale": number(inputs.get(f"{x}_descale"), f"{x}_descale") for x in "kv"}


def unified_attention_fa2(inputs: Mapping[str, Any]) -> Bound:
    """`BatchPrefillWithPagedKVCacheWrapper`, its fa2 kernel."""
    return _unified(inputs, "fa2", decode=False)


def unified_attention_fa3(inputs: Mapping[str, Any]) -> Bound:
    """`BatchPrefillWithPagedKVCacheWrapper`, its Hopper kernel."""
    return _unified(inputs, "fa3", decode=False)


def unified_attention_decode(inputs: Mapping[str, Any]) -> Bound:
    """`BatchDecodeWithPagedKVCacheWrapper` with tensor cores."""
    return _unified(inputs, "fa2", decode=True)

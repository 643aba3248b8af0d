# SPDX-License-Identifier: Apache-2.0
"""vLLM's Triton attention, with the splits and workspaces that its backends choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.v1.attention.ops.triton_decode_attention import decode_attention_fwd
from vllm.v1.attention.ops.triton_unified_attention import KVQuantMode
from vllm.v1.attention.ops.triton_unified_attention import unified_attention as _unified_attention

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import (
    MLA_DECODE,
    SEGMENTS,
    UNIFIED,
    output_dtype,
    scalar,
    softmax_scale,
)
from archkey.bench.peers._batch import attention_batch, latent_batch
from archkey.bench.peers._refusals import FP8, one_dtype, require
from archkey.bench.peers._results import attended
from archkey.ops._mla_checks import pages_of

__all__ = ["mla_decode", "unified_attention"]

# Of vLLM 0.26.0: MIN_LAUNCH_GRID_SIZE_2D and NUM_PAR_SOFTMAX_SEGMENTS of its Triton backend, and
# _MIN_WORK_PER_SPLIT and _SPLIT_OCCUPANCY_MULTIPLIER of its Triton MLA backend.
_LEAST_GRID = 128
_SEGMENTS = 16
_LEAST_KEYS_OF_A_SPLIT = 512
_SPLITS_OF_A_PROCESSOR = 2


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """`decode_attention_fwd` of one query a sequence."""
    only(
        inputs, *MLA_DECODE, "cu_seqlens_q", "kv_descale", "out", "lse", "return_lse",
        "enable_pdl", head_dim_v=512, window_left=-1,
    )  # fmt: skip
    one_dtype(inputs, "q", "out")
    batch, cache = latent_batch(inputs), pages_of(inputs["kv_cache"]).unsqueeze(2)
    q, page_size = batch.q, cache.shape[1]
    tokens, heads, width = q.shape
    fp8 = cache.dtype in FP8
    require(set(batch.q_lens) == {1}, "more than one query a sequence")
    require(heads > 1 and width == 576, f"{heads} heads of {width}")
    require(page_size % 16 == 0, f"pages of {page_size}")
    require(fp8 or cache.dtype == q.dtype, f"a cache of {cache.dtype} beside {q.dtype}")
    require(fp8 or inputs.get("kv_descale") is None, "kv_descale of a cache that is not FP8")
    splits = min(
        _power_of_two(max(1, batch.max_kv // _LEAST_KEYS_OF_A_SPLIT)),
        _processors(q.device) * _SPLITS_OF_A_PROCESSOR,
    )
    factor = scalar(inputs.get("kv_descale"), "kv_descale", q.device)
    out = q.new_empty(tokens, heads, 512)
    lse = q.new_empty(tokens, heads, dtype=torch.float32)
    parts = q.new_empty(tokens, heads, splits, 513, dtype=torch.float32)  # the last: its LSE
    table, lengths = inputs["block_table"], inputs["cache_seqlens"]
    scale = softmax_scale(inputs)

    def call() -> None:
        decode_attention_fwd(
            q, cache, cache[..., :512], out, lse, table, lengths, parts, splits, scale, page_size,
            k_scale=factor, v_scale=factor, is_mla=True,
        )  # fmt: skip

    return Bound(call, lambda: attended(inputs, out, lse), f"{splits} splits; two launches")


def unified_attention(inputs: Mapping[str, Any]) -> Bound:
    """`unified_attention`, with the workspace of its split over keys."""
    only(
        inputs, *UNIFIED, *SEGMENTS, "window_size", "softcap", "q_descale", "k_descale",
        "v_descale", "alibi_slopes", "output_scale", "qq_bias", "sinks", "kv_layout",
    )  # fmt: skip
    k, v = inputs["k"], inputs["v"]
    if inputs.get("kv_layout", "NHD") == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    batch = attention_batch(inputs)
    q, device, kv_heads = batch.q, batch.q.device, k.shape[2]
    heads, width = q.shape[1:]
    require(v.shape[-1] == width, "values of another width than keys")
    # Its bias of a key counts from the last query; softmax does not see that, a sink does.
    alibi, sinks = inputs.get("alibi_slopes"), inputs.get("sinks")
    require(alibi is None or sinks is None, "ALiBi with sinks")
    fp8_q, fp8_kv = q.dtype in FP8, k.dtype in FP8
    require(fp8_kv or k.dtype == q.dtype, f"a cache of {k.dtype} beside {q.dtype}")
    descales = {}
    for name, used in (("q_descale", fp8_q), ("k_descale", fp8_kv), ("v_descale", fp8_kv)):
        descale = inputs.get(name)
        require(used or descale is None, f"{name} of values that are not FP8")
        descales[name] = scalar(descale, name, device) if used else None
    out_scale = inputs.get("output_scale")
    dtype = output_dtype(inputs, torch.bfloat16 if fp8_q else q.dtype)
    require((dtype in FP8) == (out_scale is not None), "output_scale of an output that is not FP8")
    if out_scale is not None:
        out_scale = scalar(out_scale, "output_scale", device)
    out = torch.empty(q.shape, dtype=dtype, device=device)
    rows = max(_LEAST_GRID // kv_heads, 1)
    segments = torch.empty(
        rows, heads, _SEGMENTS, _power_of_two(width), dtype=torch.float32, device=device
    )
    largest, sums = segments.new_empty(2, rows, heads, _SEGMENTS)

    def call() -> None:
        _unified_attention(
            q=q, k=k, v=v, out=out, cu_seqlens_q=inputs["cu_seqlens_q"],
            max_seqlen_q=inputs["max_seqlen_q"], seqused_k=inputs["seqused_k"],
            max_seqlen_k=inputs["max_seqlen_k"], softmax_scale=inputs["softmax_scale"],
            causal=True, window_size=tuple(inputs["window_size"]),
            block_table=inputs["block_table"], softcap=inputs.get("softcap", 0.0), **descales,
            seq_threshold_3D=rows, num_par_softmax_segments=_SEGMENTS,
            softmax_segm_output=segments, softmax_segm_max=largest, softmax_segm_expsum=sums,
            alibi_slopes=alibi, output_scale=out_scale, qq_bias=inputs.get("qq_bias"), sinks=sinks,
            kv_quant_mode=KVQuantMode.FP8_PER_TENSOR if fp8_kv else KVQuantMode.NONE,
        )  # fmt: skip

    split = inputs["max_seqlen_q"] == 1 and len(batch.kv_lens) <= rows
    return Bound(call, lambda: {"out": out}, f"{_SEGMENTS} segments, two launches" if split else "")

# SPDX-License-Identifier: Apache-2.0
"""SGLang's Triton attention: decode (latent and grouped), extend, and the merge of two parts.

Read against SGLang 0.5.23. Keys are named one by one; the lists, and the number of parts of a split
by the server's own rule, are made once for a step, outside the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd_unified
from sglang.kernels.ops.attention.merge_state import merge_state_triton
from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MERGE, MLA_DECODE, UNIFIED, softmax_scale
from archkey.bench.peers._batch import key_slots
from archkey.bench.peers._refusals import all_covered, contiguous, require
from archkey.bench.peers._results import Last
from archkey.ops._mla_checks import pages_of

__all__ = ["merge_attn_states", "mla_decode", "unified_attention"]

MAX_KV_SPLITS = 8
"""The server's default of --triton-attention-num-kv-splits."""

LISTS = "key lists and split counts made once, outside; no lse"


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Latent decode of one query a sequence; no lse."""
    only(
        inputs, *MLA_DECODE, "return_lse", head_dim_v=512, window_left=-1,
    )  # fmt: skip
    q, cache = inputs["q"], pages_of(inputs["kv_cache"])
    require(q.dim() == 4 and q.shape[1] == 1, "one query a sequence only")
    require(q.dtype == cache.dtype and q.dtype.itemsize == 2, "bfloat16 and float16 only")
    require(cache.is_contiguous(), "a cache with gaps")
    keys = cache.reshape(-1, 1, cache.shape[2])
    lists = key_slots(inputs["block_table"], inputs["cache_seqlens"], cache.shape[1])
    out = torch.empty(*q.shape[:3], 512, dtype=q.dtype, device=q.device)
    scale = softmax_scale(inputs)
    run = _decode(q.squeeze(1), keys, keys[..., :512], out.squeeze(1), lists, scale, has_mla=True)
    return Bound(run, lambda: {"out": out}, LISTS)


def unified_attention(inputs: Mapping[str, Any]) -> Bound:
    """Decode kernel where each sequence has one query, else the one-stage extend kernel; no lse."""
    only(
        inputs, *UNIFIED, "window_size", "softcap", "sinks", "lse", kv_layout="NHD",
    )  # fmt: skip
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    lengths, starts = inputs["seqused_k"], inputs["cu_seqlens_q"]
    require(q.dtype == k.dtype and q.dtype.itemsize == 2, "bfloat16 and float16 only")
    require(k.is_contiguous() and v.is_contiguous(), "a cache with gaps")
    counts = starts.diff()
    require(bool((lengths >= counts).all() and (lengths > 0).all()), "rows without keys")
    all_covered(starts, len(q))
    window = inputs["window_size"][0]
    require(window != 0, "a window of one key")
    out = inputs.get("out")
    if out is None:
        out = q.new_empty(*q.shape[:2], v.shape[3])
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    softcap, sinks = inputs.get("softcap") or 0.0, inputs.get("sinks")
    scale, pages = float(inputs["softmax_scale"]), inputs["block_table"]
    if bool((counts == 1).all()):
        lists = key_slots(pages, lengths, k.shape[1], window)
        run = _decode(q, keys, values, out, lists, scale, logit_cap=softcap, sinks=sinks)
        return Bound(run, lambda: {"out": out}, LISTS)
    indptr, slots = key_slots(pages, lengths, k.shape[1])
    prefixes, longest = (lengths - counts).int(), int(counts.max())
    first_keys = torch.zeros_like(prefixes)

    def extend() -> None:
        extend_attention_fwd_unified(
            q,
            out,
            keys,
            values,
            1.0,
            1.0,
            starts,
            indptr,
            slots,
            prefixes,
            longest,
            sm_scale=scale,
            logit_cap=softcap,
            is_causal=True,
            sliding_window_size=window,
            sinks=sinks,
            window_start_pos=first_keys,
        )

    how = "the one-stage kernel of deterministic serving; key lists made once, outside; no lse"
    return Bound(extend, lambda: {"out": out}, how)


def merge_attn_states(inputs: Mapping[str, Any]) -> Bound:
    """merge_state in Triton."""
    only(inputs, *MERGE)
    contiguous(inputs, *MERGE)
    empty = torch.isinf(inputs["lse_a"]) & torch.isinf(inputs["lse_b"])
    require(not bool(empty.any()), "rows whose two parts are empty become NaN")

    def run() -> Any:
        return merge_state_triton(
            inputs["out_a"],
            inputs["lse_a"],
            inputs["out_b"],
            inputs["lse_b"],
            inputs.get("out"),
            inputs.get("lse"),
        )

    call = Last(run)
    return Bound(call, lambda: dict(zip(("out", "lse"), call.result, strict=True)))


def _decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    lists: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    **options: Any,
) -> Any:
    """The decode kernel's call; its workspaces are those of a server."""
    indptr, slots = lists
    batch, heads = q.shape[:2]
    lengths = indptr.diff()
    require(bool((lengths > 0).all()), "sequences without keys")
    room = batch, heads, MAX_KV_SPLITS
    parts = torch.empty(*room, values.shape[2], dtype=torch.float32, device=q.device)
    sums = torch.empty(room, dtype=torch.float32, device=q.device)
    splits = _splits(q, keys.shape[1], lengths)

    def run() -> None:
        decode_attention_fwd(
            q,
            keys,
            values,
            out,
            indptr,
            slots,
            parts,
            sums,
            splits,
            MAX_KV_SPLITS,
            scale,
            1.0,
            1.0,
            **options,
        )

    return run


def _splits(q: torch.Tensor, kv_heads: int, lengths: torch.Tensor) -> torch.Tensor:
    """Parts of each sequence, as the server's rule spreads them over the device's cores."""
    batch, heads = q.shape[:2]
    splits = torch.empty(batch, dtype=torch.int32, device=q.device)
    cores = torch.cuda.get_device_properties(q.device).multi_processor_count
    get_num_kv_splits_triton[(1,)](
        splits,
        lengths,
        batch,
        1,
        heads,
        kv_heads,
        MAX_KV_SPLITS,
        cores,
        MAX_NUM_SEQ=max(256, 1 << (batch - 1).bit_length()),
    )
    return splits

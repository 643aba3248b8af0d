# SPDX-License-Identifier: Apache-2.0
"""Adapters of FlashMLA's interface, which DeepSeek's package and vLLM's copy of it have alike.

Read against deepseek-ai/FlashMLA 9241ae3 and vLLM 0.26.0. A schedule is made by the first call that
is given an empty one; it holds for calls of the same shapes and lengths, as those of all layers of
a step are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MLA_DECODE, given, softmax_scale
from archkey.bench.peers._refusals import HALVES, require
from archkey.bench.peers._results import Last
from archkey.ops._mla_checks import pages_of
from archkey.ops._sparse_kv import PACKED

__all__ = [
    "Library",
    "decode",
    "decode_inputs",
    "decode_outputs",
    "sparse_decode",
    "sparse_prefill",
]

FORMATS = ("fp8_v32", "fp8_model1")
"""Packed caches that it knows."""


class Library(NamedTuple):
    """flash_mla_with_kvcache, flash_mla_sparse_fwd and get_mla_metadata."""

    with_kvcache: Callable[..., Any]
    sparse_fwd: Callable[..., Any]
    metadata: Callable[..., Any]


def decode_inputs(inputs: Mapping[str, Any], *more: str) -> tuple[torch.Tensor, torch.Tensor]:
    """q and the cache `[blocks, 64, 1, d]`; refuses what the dense kernels do not compute.

    more  arguments of one kernel
    """
    only(
        inputs, *MLA_DECODE, "return_lse", *more, head_dim_v=512, window_left=-1,
    )  # fmt: skip
    q, cache = inputs["q"], pages_of(inputs["kv_cache"])
    require(q.dim() == 4, "ragged queries")
    require(cache.shape[1] == 64, "page size 64 only")
    return q, cache.unsqueeze(2)


def decode_outputs(result: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """out, and lse `[B, H, q]` as `[B q, H]`."""
    out, lse = result
    return {"out": out, "lse": _natural(lse.transpose(1, 2).flatten(0, 1))}


def _scheduled(run: Callable[[], Any]) -> Bound:
    """A decode whose first run makes the schedule that the later ones use."""
    run()
    call = Last(run)
    return Bound(call, lambda: decode_outputs(call.result), "schedule made once, outside")


def decode(library: Library, inputs: Mapping[str, Any]) -> Bound:
    """Dense decode, bfloat16 or float16."""
    q, cache = decode_inputs(inputs)
    require(q.dtype in HALVES, "bfloat16 and float16 only")
    require(cache.dtype == q.dtype, "cache of q's dtype only")
    schedule, _ = library.metadata()
    lengths, causal = inputs["cache_seqlens"].contiguous(), inputs.get("causal", True)

    def run() -> Any:
        return library.with_kvcache(
            q,
            cache,
            inputs["block_table"],
            lengths,
            512,
            schedule,
            softmax_scale=softmax_scale(inputs),
            causal=causal,
        )

    return _scheduled(run)


def sparse_decode(library: Library, inputs: Mapping[str, Any]) -> Bound:
    """Sparse decode over a packed FP8 cache."""
    only(
        inputs, "q", "kv_cache", "indices", "softmax_scale", "sm_scale", "kv_format",
        "topk_length", "attn_sink", "extra_kv_cache", "extra_indices", "extra_topk_length",
        "return_lse", head_dim_v=512,
    )  # fmt: skip
    q, kv_format = inputs["q"], inputs["kv_format"]
    require(kv_format in FORMATS, f"{' and '.join(FORMATS)} only")
    layout = PACKED[kv_format]
    require(q.shape[3] == layout.head_dim, f"another d in {kv_format}")
    require(q.shape[2] in (64, 128), "64 and 128 heads only")
    caches = {
        "k_cache": _packed(inputs["kv_cache"], inputs["indices"], layout.row_bytes),
    }
    if inputs.get("extra_kv_cache") is not None:
        extra = inputs["extra_kv_cache"], inputs["extra_indices"]
        caches["extra_k_cache"] = _packed(*extra, layout.row_bytes)
    for name in ("topk_length", "extra_topk_length"):
        lengths = inputs.get(name)
        require(lengths is None or len(lengths) == len(q), "lengths by sequence only")
    if not layout.planar:  # asserted by its kernel for Hopper
        require(inputs.get("topk_length") is None, f"lengths with {kv_format}")
        require("extra_k_cache" not in caches, f"two caches of {kv_format}")
    options = given(inputs, "indices", "topk_length", "attn_sink", "extra_topk_length")
    if "extra_k_cache" in caches:
        options["extra_indices_in_kvcache"] = inputs["extra_indices"]
    schedule, _ = library.metadata()

    def run() -> Any:
        return library.with_kvcache(
            q,
            block_table=None,
            cache_seqlens=None,
            head_dim_v=512,
            tile_scheduler_metadata=schedule,
            softmax_scale=softmax_scale(inputs),
            is_fp8_kvcache=True,
            **caches,
            **options,
        )

    return _scheduled(run)


def sparse_prefill(library: Library, inputs: Mapping[str, Any]) -> Bound:
    """Sparse prefill over a flat bfloat16 pool."""
    only(
        inputs, "q", "kv", "indices", "softmax_scale", "sm_scale", "topk_length", "attn_sink",
        "return_lse", head_dim_v=512, kv_format="bf16",
    )  # fmt: skip
    q, kv, indices = inputs["q"], inputs["kv"], inputs["indices"]
    require(q.shape[1] in (64, 128), "64 and 128 heads only")
    require(indices.shape[-1] % 128 == 0, "lists of a multiple of 128 only")
    require(kv.dim() < 4 or kv.is_contiguous(), "pages with gaps")
    flat = kv.reshape(-1, 1, kv.shape[-1]) if kv.dim() == 4 else kv.reshape(len(kv), 1, -1)
    lists = indices.reshape(len(indices), 1, -1)
    options = given(inputs, "attn_sink", "topk_length")

    def run() -> Any:
        return library.sparse_fwd(q, flat, lists, softmax_scale(inputs), 512, **options)

    call = Last(run)
    return Bound(call, lambda: _prefill_outputs(call.result))


def _prefill_outputs(result: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    out, max_logits, lse = result
    return {"out": out, "max_logits": max_logits, "lse": _natural(lse)}


def _natural(lse: torch.Tensor) -> torch.Tensor:
    """The +inf that FlashMLA gives for an empty row as archkey's -inf."""
    return lse.masked_fill(lse == math.inf, -math.inf)


def _packed(cache: torch.Tensor, indices: torch.Tensor, row_bytes: int) -> torch.Tensor:
    """The bytes `[blocks, page, 1, row_bytes]`, if the lists name slots of it or -1."""
    pages = pages_of(cache).view(torch.uint8)
    require(pages.shape[2] == row_bytes and pages.stride(1) == row_bytes, "rows with gaps")
    require(indices.shape[-1] % 64 == 0, "lists of a multiple of 64 only")
    slots = math.prod(pages.shape[:2])
    require(bool(((indices >= -1) & (indices < slots)).all()), "indices outside the cache")
    return pages.unsqueeze(2)

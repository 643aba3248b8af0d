# SPDX-License-Identifier: Apache-2.0
"""Builders of FlashMLA's own kernels for Hopper: a call in its conventions, and its results in ours.

Read in deepseek-ai/FlashMLA 9241ae3 (csrc/api, csrc/sm90, flash_mla_interface.py) and vLLM 0.26.0,
which builds a copy. What the library does otherwise, or cannot:

| subject | FlashMLA | here |
|---|---|---|
| a row without keys | lse +inf | -inf |
| lse of decode | `[B, H, q]` | `[B q, H]` |
| heads of sparse MLA | 64 or 128 | zero queries up to the next of them, results dropped |
| k | a multiple of 64; prefill: of 128 | -1 behind the lists |
| entries past the cache | decode reads there; it skips -1 alone | -1 |
| topk_length | one a sequence, in MODEL1 alone; what is behind must not be NaN | -1 behind it, and the longest of a sequence, so that whole tiles are skipped |
| head_dim_v | 512 | its first columns |
| strides | 32 bits | what is further apart is copied |
| a pool of prefill | flat | pages one after the other are flat; others are copied |

A schedule hangs on lengths, so each call makes its own: one small launch, which a graph captures
and which reads the lengths of the replay.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad

from archkey.errors import Unsupported
from archkey.formats.sparse_kv import PackedKV, empty_cache, packed

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Build
    from archkey.ops.mla import MlaDecodeProblem
    from archkey.ops.sparse_mla import SparseMlaDecodeProblem, SparseMlaPrefillProblem

__all__ = ["build_mla_decode", "build_sparse_mla_decode", "build_sparse_mla_prefill"]

_HEADS = 64
_WIDTH = 512
_DECODE_K, _PREFILL_K = 64, 128
_INT32_MAX = 2**31 - 1


class _Library(NamedTuple):
    """flash_mla_with_kvcache, flash_mla_sparse_fwd and get_mla_metadata."""

    with_kvcache: Callable[..., Any]
    sparse_fwd: Callable[..., Any]
    metadata: Callable[..., Any]


def _deepseek() -> Any:
    import flash_mla

    return flash_mla


def _vllm() -> Any:
    import vllm._flashmla_extension_C  # noqa: F401 - registers what the interface calls
    from vllm.third_party.flashmla import flash_mla_interface

    return flash_mla_interface


_LIBRARIES = {"flash_mla": _deepseek, "vllm_flash_mla": _vllm}
"""Who brings the library, by the kernel's name."""


def _library(build: Build) -> _Library:
    """The functions of the library. Raises what its import raises."""
    module = _LIBRARIES[build.kernel.name]()
    names = ("flash_mla_with_kvcache", "flash_mla_sparse_fwd", "get_mla_metadata")
    library = _Library(*(getattr(module, name) for name in names))
    if library.with_kvcache.__module__.startswith("archkey."):
        raise Unsupported("archkey.integrations.flash_mla stands in the place of FlashMLA here")
    library.metadata()  # an interface from before 2026 takes lengths here, and raises
    return library


def build_mla_decode(problem: MlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    library = _library(build)

    def run(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        cache_seqlens: torch.Tensor,
        cu_seqlens_q: None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        q_descale: None,
        kv_descale: None,
        softmax_scale: float,
        head_dim_v: int,
        causal: bool,
        window_left: int,
        num_splits: int,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        if not block_table.shape[1] or not len(kv_cache):  # it reads the first entry of each row
            out.zero_()
            if lse is not None:
                lse.fill_(-math.inf)
            return
        result, theirs = library.with_kvcache(
            _near(q),
            kv_cache.unsqueeze(2),
            block_table,
            cache_seqlens,
            head_dim_v=_WIDTH,
            tile_scheduler_metadata=library.metadata()[0],
            softmax_scale=softmax_scale,
            causal=causal,
        )
        out.copy_(result[..., :head_dim_v])
        _write_lse(theirs.transpose(1, 2).flatten(0, 1), lse)

    return run


def build_sparse_mla_decode(problem: SparseMlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    library, layout, heads = _library(build), packed(problem.kv_format), problem.heads
    skips = layout.planar  # V3.2's kernel asserts that there are no lengths

    def run(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        indices: torch.Tensor,
        topk_length: torch.Tensor | None,
        attn_sink: torch.Tensor | None,
        extra_kv_cache: torch.Tensor | None,
        extra_indices: torch.Tensor | None,
        extra_topk_length: torch.Tensor | None,
        softmax_scale: float,
        head_dim_v: int,
        kv_format: str,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        queries, sinks = _padded(q, attn_sink)
        lists, length = _lists(indices, topk_length, kv_cache, _DECODE_K)
        extra = extra_lists = extra_length = None
        if extra_kv_cache is not None and extra_indices is not None:
            extra = _pages(extra_kv_cache, layout)
            extra_lists, extra_length = _lists(
                extra_indices, extra_topk_length, extra_kv_cache, _DECODE_K
            )
        result, theirs = library.with_kvcache(
            queries,
            _pages(kv_cache, layout),
            block_table=None,
            cache_seqlens=None,
            head_dim_v=_WIDTH,
            tile_scheduler_metadata=library.metadata()[0],
            softmax_scale=softmax_scale,
            is_fp8_kvcache=True,
            indices=lists,
            attn_sink=sinks,
            extra_k_cache=extra,
            extra_indices_in_kvcache=extra_lists,
            topk_length=length if skips else None,
            extra_topk_length=extra_length if skips else None,
        )
        out.copy_(result[..., :heads, :head_dim_v])
        _write_lse(theirs.transpose(1, 2).flatten(0, 1)[:, :heads], lse)

    return run


def build_sparse_mla_prefill(problem: SparseMlaPrefillProblem, build: Build) -> Run:
    """`run(q, kv, .., lse)`, in the order of the operator's inputs and outputs."""
    library, heads = _library(build), problem.heads

    def run(
        q: torch.Tensor,
        kv: torch.Tensor,
        indices: torch.Tensor,
        topk_length: torch.Tensor | None,
        attn_sink: torch.Tensor | None,
        softmax_scale: float,
        head_dim_v: int,
        kv_format: str,
        batch_invariant: bool,
        out: torch.Tensor,
        max_logits: torch.Tensor | None,
        lse: torch.Tensor | None,
    ) -> None:
        queries, sinks = _padded(q, attn_sink)
        lists, length = _lists(indices.unsqueeze(1), topk_length, kv, _PREFILL_K)
        flat = _near(kv.squeeze(1) if kv.shape[1] == 1 else kv.flatten(0, 1))
        result, most, theirs = library.sparse_fwd(
            queries,
            flat.unsqueeze(1),
            lists,
            softmax_scale,
            _WIDTH,
            attn_sink=sinks,
            topk_length=length,
        )
        out.copy_(result[:, :heads, :head_dim_v])
        if max_logits is not None:
            max_logits.copy_(most[:, :heads])
        _write_lse(theirs[:, :heads], lse)

    return run


def _padded(
    q: torch.Tensor, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries of 64 or 128 heads, and as many sinks; those that are added are zero."""
    more = -q.shape[-2] % _HEADS
    if not more:
        return _near(q), sinks
    return pad(q, (0, 0, 0, more)), None if sinks is None else pad(sinks, (0, more))


def _lists(
    indices: torch.Tensor, length: torch.Tensor | None, pool: torch.Tensor, multiple: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Lists `[B, q, k]` with -1 for all that names no key, k a multiple of `multiple`.

    length  `[B]` or `[B q]`
    pool    `[blocks, page, row]`

    With them the longest length of each sequence, `[B]`, if there are lengths.
    """
    batch, _, k = indices.shape
    last = min(pool.shape[0] * pool.shape[1] - 1, _INT32_MAX)
    named = (indices >= 0) & (indices <= last)
    if length is not None:
        rows = length.view(batch, -1)
        named &= torch.arange(k, device=length.device) < rows.unsqueeze(2)
        length = rows.amax(1).clamp(0, k)
    lists = torch.where(named, indices, -1)
    more = -k % multiple
    return (pad(lists, (0, more), value=-1) if more else lists), length


def _pages(cache: torch.Tensor, layout: PackedKV) -> torch.Tensor:
    """The cache as `[blocks, page, 1, row]` with strides that the library's checks pass.

    There is a block at least: a list's -1 becomes a read of the first one, which is not used.
    """
    blocks, page, row = cache.shape
    step = cache.stride(0) if blocks > 1 else layout.block_bytes(page)
    if not blocks or step > _INT32_MAX:
        near = empty_cache(layout, max(blocks, 1), page, device=cache.device)
        near[:blocks] = cache
        cache, step = near, near.stride(0)
    return cache.as_strided((len(cache), page, 1, row), (step, row, row, 1))


def _near(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if a stride is none that descriptors of TMA and 32 bits have."""
    if all(0 < stride <= _INT32_MAX for stride in tensor.stride()):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _write_lse(theirs: torch.Tensor, lse: torch.Tensor | None) -> None:
    """`theirs` `[T, H]` into `lse`, if it is asked for."""
    if lse is not None:
        lse.copy_(theirs.masked_fill(theirs == math.inf, -math.inf))

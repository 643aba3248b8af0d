# SPDX-License-Identifier: Apache-2.0
"""`flash_mla_with_kvcache` and what goes with it, on `mla_decode` and `sparse_mla_decode`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

import archkey
from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.ops._sparse_kv import PACKED
from archkey.session import session_of

__all__ = ["FlashMLASchedMeta", "flash_mla_with_kvcache", "get_mla_metadata", "with_inf"]

_OP = "flash_mla_with_kvcache"


@dataclass
class FlashMLASchedMeta:
    """What FlashMLA keeps its schedule in. archkey's kernels need none: only shapes are kept.

    config  what the first call that it was given to has in common with all later ones
    """

    have_initialized: bool = False
    config: dict[str, Any] | None = None
    tile_scheduler_metadata: torch.Tensor | None = None
    num_splits: torch.Tensor | None = None

    def check(self, config: dict[str, Any]) -> None:
        """ArgumentValueError if a call is another one than the first: FlashMLA would refuse it."""
        if self.config is None:
            self.have_initialized, self.config = True, config
        for name, known in self.config.items():
            if config[name] != known:
                raise ArgumentValueError(
                    f"{_OP}: {name} must be {known} with this tile_scheduler_metadata, as in its "
                    f"first call, found {config[name]}; get_mla_metadata() gives a new one"
                )


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[FlashMLASchedMeta, None]:
    """An empty schedule. Arguments, which older releases took, are ignored."""
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense decode, or with `indices` sparse decode.

    q              `[B, q_len, H, d]`
    k_cache        dense: `[blocks, page, Hk, d]`, H a multiple of Hk; sparse: `[blocks, page, 1,
                   row]`, bfloat16, or packed bytes in FP8, int8 or uint8, whose format follows from
                   row: 656 is V3.2's, 584 is MODEL1's
    block_table    `[B, n]` int32, cache_seqlens `[B]` int32: of dense decode
    softmax_scale  default `d ** -0.5`
    indices        `[B, q_len, k]` int32: slots `block * page + offset`; what names none is ignored
    attn_sink      `[H]` float32; topk_length  `[B]` int32; extra_*  a second cache with its lists
    the others     as in FlashMLA; is_fp8_kvcache has to be true for packed bytes, and for no other

    Returns out `[B, q_len, H, head_dim_v]` and lse `[B, H, q_len]`, +inf for a row without keys.
    """
    if not isinstance(tile_scheduler_metadata, FlashMLASchedMeta):
        found = type(tile_scheduler_metadata).__name__
        raise ArgumentTypeError(
            f"{_OP}: tile_scheduler_metadata must be what get_mla_metadata() gives, found {found}"
        )
    if num_splits is not None:
        raise ArgumentValueError(f"{_OP}: num_splits must be None, found {num_splits!r:.100}")
    for name, tensor in (("q", q), ("k_cache", k_cache)):
        if tensor.dim() != 4:
            shape = list(tensor.shape)
            raise ArgumentValueError(f"{_OP}: {name} must have 4 dimensions, found {shape}")
    tile_scheduler_metadata.check(
        {
            "batch_size": q.shape[0],
            "seq_len_q": q.shape[1],
            "num_heads_q": q.shape[2],
            "page_block_size": k_cache.shape[1],
            "num_heads_k": k_cache.shape[2],
            "causal": causal,
            "is_fp8_kvcache": is_fp8_kvcache,
            "topk": _size(indices, -1),
            "extra_page_block_size": _size(extra_k_cache, 1),
            "extra_topk": _size(extra_indices_in_kvcache, -1),
        }
    )
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    packed = k_cache.element_size() == 1
    if packed != is_fp8_kvcache:
        expected = "true for a packed cache" if packed else f"false for {k_cache.dtype}"
        raise ArgumentValueError(
            f"{_OP}: is_fp8_kvcache must be {expected}, found {is_fp8_kvcache}"
        )
    if indices is None:
        only_sparse = {
            "is_fp8_kvcache": is_fp8_kvcache or None,
            "attn_sink": attn_sink,
            "extra_k_cache": extra_k_cache,
            "extra_indices_in_kvcache": extra_indices_in_kvcache,
            "topk_length": topk_length,
            "extra_topk_length": extra_topk_length,
        }
        _absent("without indices", only_sparse)
        if block_table is None or cache_seqlens is None:
            raise ArgumentValueError(
                f"{_OP}: block_table and cache_seqlens must be given without indices, found None"
            )
        return _dense(q, k_cache, block_table, cache_seqlens, head_dim_v, scale, causal)
    _absent("with indices", {"causal": causal or None})
    out, lse = archkey.sparse_mla_decode(
        q,
        k_cache,
        indices,
        softmax_scale=scale,
        head_dim_v=head_dim_v,
        kv_format=_format(k_cache),
        topk_length=topk_length,
        attn_sink=attn_sink,
        extra_kv_cache=extra_k_cache,
        extra_indices=extra_indices_in_kvcache,
        extra_topk_length=extra_topk_length,
        return_lse=True,
    )
    return out, _head_major(q, lse)


def _dense(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    head_dim_v: int,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`mla_decode` of each KV head in turn, with its own queries, into its own part of the results.

    A row's latent has one head in every model of the kind; several are FlashMLA's tests alone.
    """
    batch, q_len, heads, _ = q.shape
    kv_heads = k_cache.shape[2]
    if not kv_heads or heads % kv_heads:
        raise ArgumentValueError(
            f"{_OP}: the {heads} heads of q must be a multiple of those of k_cache, found "
            f"{kv_heads}"
        )
    group = heads // kv_heads
    out = torch.empty((batch, q_len, heads, head_dim_v), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch * q_len, heads), dtype=torch.float32, device=q.device)
    for head in range(kv_heads):
        mine = slice(head * group, (head + 1) * group)
        archkey.mla_decode(
            q[:, :, mine],
            k_cache[:, :, head],
            block_table,
            cache_seqlens,
            softmax_scale=scale,
            head_dim_v=head_dim_v,
            causal=causal,
            out=out[:, :, mine],
            lse=lse[:, mine],
        )
    return out, _head_major(q, lse)


def _absent(when: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            found = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            expected = "None or False"
            raise ArgumentValueError(f"{_OP}: {name} must be {expected} {when}, found {found}")


def _format(cache: torch.Tensor) -> str:
    """The name of a sparse cache's format, by its dtype and the bytes of its rows."""
    if cache.element_size() > 1:
        return "bf16"
    stems = {PACKED[name].row_bytes: name for name in ("fp8_v32", "fp8_model1")}
    row = cache.shape[-1]
    if row not in stems:
        known = " or ".join(f"{size} ({name})" for size, name in stems.items())
        raise ArgumentValueError(
            f"{_OP}: k_cache must have rows of {known} bytes, found {row}. Other layouts are not "
            "told by their size: 528 is a NoPE row with four float32 scales, or one of V4.1 whose "
            "scales lie apart; archkey.sparse_mla_decode(kv_format=) takes a name"
        )
    fnuz = cache.dtype == torch.float8_e4m3fnuz or (
        not cache.dtype.is_floating_point and session_of(cache.device).fp8 == "e4m3fnuz"
    )
    return stems[row] + ("_fnuz" if fnuz else "")


def with_inf(lse: torch.Tensor) -> torch.Tensor:
    """archkey's -inf of a row without keys as FlashMLA's +inf."""
    return lse.masked_fill(lse == -math.inf, math.inf)


def _head_major(q: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """`[B q, H]` as `[B, H, q]`."""
    return with_inf(lse).view(q.shape[:3]).transpose(1, 2)


def _size(tensor: torch.Tensor | None, dim: int) -> int | None:
    return None if tensor is None else tensor.shape[dim]

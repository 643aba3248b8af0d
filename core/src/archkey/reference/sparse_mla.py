# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA in plain torch: every query row attends to the keys that its index list names.

`s_ij = scale * q_i . kv[I_ij]` over the valid entries of the list, then softmax; there is no
causal mask, causality is in the lists. An entry counts unless it is negative, not below the
cache's capacity, or at or past `topk_length`; one that occurs twice counts twice. An attention
sink scales the output by `exp(lse) / (exp(lse) + exp(sink))` and leaves lse and max_logits as
they are. A row with no valid entry has `out = 0`, `lse = max_logits = -inf`.
"""

from __future__ import annotations

import torch

from archkey.formats import sparse_kv
from archkey.reference.mla import softmax_lse

__all__ = [
    "dequantize_sparse_kv",
    "logical_to_physical_indices",
    "quantize_sparse_kv",
    "sparse_mla_decode",
    "sparse_mla_prefill",
]

_GATHERED = 1 << 14  # key rows that are gathered at once
_INT32_MAX = 2**31 - 1


def sparse_mla_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    topk_length: torch.Tensor | None,
    attn_sink: torch.Tensor | None,
    softmax_scale: float,
    head_dim_v: int,
    kv_format: str,
    batch_invariant: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse attention of many query rows over one pool of keys.

    q            `[T, H, d]`
    kv           `[num_blocks, page_size, d]`, or packed bytes `[num_blocks, page_size, row]`
    indices      `[T, k]` int32, slots `block * page_size + offset`
    topk_length  `[T]` int32, or None
    attn_sink    `[H]` float32, or None
    kv_format    "bf16", or the name of a packed layout (`archkey.formats.sparse_kv`)
    batch_invariant  one row at a time: the order of torch's sums depends on the shape of a product,
                 which is then the same in every batch

    Returns out `[T, H, head_dim_v]`, max_logits `[T, H]` (of the scaled scores), lse `[T, H]`.
    """
    pools = [(kv, indices, _valid(indices, kv, topk_length))]
    most = 1 if batch_invariant else None
    return _attend(q, pools, attn_sink, softmax_scale, head_dim_v, kv_format, compute_dtype, most)


def sparse_mla_decode(
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
    batch_invariant: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse attention of a few query tokens per sequence: one softmax over one or two caches.

    q            `[B, q_len, H, d]`
    kv_cache     as `kv` of `sparse_mla_prefill`; `extra_kv_cache` may have other pages
    indices      `[B, q_len, k]` int32, slots of `kv_cache`; `extra_indices` `[B, q_len, k2]`
    topk_length  `[B]`, or per query row `[B * q_len]`; `extra_topk_length` alike

    Returns out `[B, q_len, H, head_dim_v]` and lse `[B * q_len, H]`.
    """
    pools = []
    for cache, slots, length in (
        (kv_cache, indices, topk_length),
        (extra_kv_cache, extra_indices, extra_topk_length),
    ):
        if cache is not None and slots is not None:
            rows = slots.flatten(0, 1)
            pools.append((cache, rows, _valid(rows, cache, length)))
    out, _, lse = _attend(
        q.flatten(0, 1), pools, attn_sink, softmax_scale, head_dim_v, kv_format, compute_dtype,
        1 if batch_invariant else None,
    )  # fmt: skip
    return out.reshape(*q.shape[:-1], head_dim_v), lse


def quantize_sparse_kv(
    k_nope: torch.Tensor,
    k_rope: torch.Tensor | None,
    slot_mapping: torch.Tensor | None,
    kv_cache: torch.Tensor,
    format: str,
    scale_mode: str,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor]:
    """`kv_cache` with the given rows quantised into their slots; the argument is left as it is.

    k_nope        `[T, nope_dim]`, k_rope `[T, rope_dim]` or None for a layout without rope
    slot_mapping  `[T]` int32 or int64: token t goes to that slot, and nowhere if it is outside
                  the cache; None: token t goes to slot t
    kv_cache      `[num_blocks, page_size, row_bytes]` uint8

    The bytes are defined in float32 arithmetic whatever `compute_dtype` is.
    """
    cache = kv_cache.clone()
    if slot_mapping is None:
        slot_mapping = torch.arange(k_nope.shape[0], device=cache.device)
    kept = _inside(slot_mapping, cache)
    rope = None if k_rope is None else k_rope[kept]
    layout = sparse_kv.packed(format)
    sparse_kv.store(cache, slot_mapping[kept].long(), k_nope[kept], rope, layout, scale_mode)
    return (cache,)


def dequantize_sparse_kv(
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor | None,
    format: str,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor]:
    """Rows `[T, head_dim]` at the slots of `slot_mapping` `[T]`, or at every slot if it is None.

    A slot outside the cache gives a row of zeros.
    """
    capacity = kv_cache.shape[0] * kv_cache.shape[1]
    if slot_mapping is None:
        slot_mapping = torch.arange(capacity, device=kv_cache.device)
    valid = _inside(slot_mapping, kv_cache)
    return (_gather(kv_cache, slot_mapping, valid, format, compute_dtype),)


def logical_to_physical_indices(
    indices: torch.Tensor,
    block_table: torch.Tensor,
    page_size: int,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor]:
    """Positions in a sequence to slots of the cache: `table[b, i // page] * page + i % page`.

    indices      `[B, ..., k]` int32; block_table `[B, n]` int32

    Returns int32 of the shape of `indices`. Negative entries, entries past the table's width and
    entries whose page is negative or whose slot exceeds int32 become -1. `compute_dtype` has no
    bearing on integers.
    """
    flat = indices.flatten(1).long()
    known = (flat >= 0) & (flat < block_table.shape[1] * page_size)
    if not known.any():
        return (torch.full_like(indices, -1),)
    at = flat.where(known, 0)
    page = block_table.long().gather(1, at // page_size)
    slots = page * page_size + at % page_size
    known &= (page >= 0) & (slots <= _INT32_MAX)
    return (slots.where(known, -1).to(torch.int32).view(indices.shape),)


_Pool = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # cache, slots [T, k], valid [T, k]


def _attend(
    q: torch.Tensor,
    pools: list[_Pool],
    attn_sink: torch.Tensor | None,
    softmax_scale: float,
    head_dim_v: int,
    kv_format: str,
    compute_dtype: torch.dtype,
    most: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of `most` rows at once, or as many as the memory for their keys allows."""
    tokens, heads, _ = q.shape
    out = q.new_zeros(tokens, heads, head_dim_v, dtype=compute_dtype)
    lse = q.new_full((tokens, heads), -torch.inf, dtype=compute_dtype)
    max_logits = lse.clone()
    step = most or max(1, _GATHERED // sum(slots.shape[1] for _, slots, _ in pools))
    for rows in (slice(start, start + step) for start in range(0, tokens, step)):
        keys = torch.cat(
            [_gather(c, i[rows], ok[rows], kv_format, compute_dtype) for c, i, ok in pools], dim=1
        )  # [t, k, d]
        hidden = ~torch.cat([ok[rows] for _, _, ok in pools], dim=1)
        scores = softmax_scale * q[rows].to(compute_dtype) @ keys.mT  # [t, H, k]
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        p, lse[rows] = softmax_lse(scores)
        max_logits[rows] = scores.amax(-1)
        out[rows] = p @ keys[..., :head_dim_v]
    if attn_sink is not None:
        kept = torch.sigmoid(lse - attn_sink.to(compute_dtype))
        out = out * kept.masked_fill(lse == -torch.inf, 0)[..., None]
    return out, max_logits, lse


def _valid(
    slots: torch.Tensor, cache: torch.Tensor, topk_length: torch.Tensor | None
) -> torch.Tensor:
    """Which entries of the lists `[T, k]` name a key."""
    valid = _inside(slots, cache)
    if topk_length is None:
        return valid
    if topk_length.shape[0] != slots.shape[0]:
        topk_length = topk_length.repeat_interleave(slots.shape[0] // topk_length.shape[0])
    return valid & (torch.arange(slots.shape[1], device=slots.device) < topk_length[:, None])


def _inside(slots: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    wide = slots.long()  # torch wraps a capacity that does not fit the tensor's own int32
    return (wide >= 0) & (wide < cache.shape[0] * cache.shape[1])


def _gather(
    cache: torch.Tensor,
    slots: torch.Tensor,
    valid: torch.Tensor,
    kv_format: str,
    compute_dtype: torch.dtype,
) -> torch.Tensor:
    """Rows `[..., d]` at `slots`; zeros where not `valid`, without reading the cache there."""
    used = slots[valid].long()
    if kv_format == "bf16":
        rows = cache[used // cache.shape[1], used % cache.shape[1]].to(compute_dtype)
    else:
        rows = sparse_kv.load(cache, used, sparse_kv.packed(kv_format), dtype=compute_dtype)
    gathered = rows.new_zeros(*slots.shape, rows.shape[-1])
    gathered[valid] = rows
    return gathered

# SPDX-License-Identifier: Apache-2.0
"""Unified attention over a paged cache, and the page tables that EAGLE verification needs.

With ``p = (kv_len - q_len) + t`` the position of query ``t`` of a sequence, the logit of key j is

    s = softmax_scale * q_descale * k_descale * (q_t . k_j)
    s = softcap * tanh(s / softcap)                           if softcap > 0
    s = s + alibi_slope * (j - p) + qq_bias[t, j - (kv_len - q_len)]
    s = -inf                                                  unless p - window_left <= j <= p

and ``out = v_descale * sum_j exp(s_j - lse) v_j`` with ``lse = ln(sum_j exp(s_j) + exp(sink))``.

The scaling comes before the softcap, and the biases after it, as in vLLM's ``unified_attention``.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

QUERY_ROWS = 256
"""Queries handled at once: bounds the logits to ``[H, QUERY_ROWS, kv_len]`` for long prefills."""

Descale = float | Tensor | None
"""A dequantisation factor: absent, a number, a one-element tensor, or one per ``[B, Hk]``."""


def unified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    q_descale: Descale = None,
    k_descale: Descale = None,
    v_descale: Descale = None,
    alibi_slopes: Tensor | None = None,
    qq_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    output_scale: float | Tensor | None = None,
    *,
    softmax_scale: float,
    window_left: int = -1,
    softcap: float = 0.0,
    out_limit: float = torch.inf,
    segments: tuple[Tensor, Tensor, Tensor] | None = None,
    batch_invariant: bool = False,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Causal attention of ragged queries over a paged cache.

    Args:
        q: ``[T, H, D]``, any float dtype; the queries of all sequences, one after another.
        k, v: ``[blocks, page_size, Hk, D]`` and ``[.., Dv]``, any strides; ``H % Hk == 0``.
        cu_seqlens_q: ``[B + 1]`` int; rows past its last entry belong to no sequence.
        seqused_k: ``[B]`` int; keys per sequence, the query tokens included. May be 0, or less
            than the queries: causality is aligned bottom-right, and the first rows see nothing.
        block_table: ``[B, n]`` int; entries past ``ceil(seqused_k / page_size)`` are not looked at.
        max_seqlen_q, max_seqlen_k, segments: for kernels: bounds that make a grid, and a workspace.
        q_descale, k_descale, v_descale: multiply on dequantisation (``real = code * descale``).
        alibi_slopes: ``[H]``.
        qq_bias: ``[Q, Q]`` with ``Q >= max q_len``, between the queries of one sequence.
        sinks: ``[H]`` natural-log logits, already scaled; one column without value per head.
        output_scale: ``out = real / output_scale``.
        window_left: number of earlier keys that stay visible, -1 for all of them.
        out_limit: largest magnitude that the caller's dtype holds; ``out`` is clamped to it, since
            a cast of more to fp8 can give NaN. Nothing is rounded here.
        batch_invariant: one query at a time, over its own keys: the order of torch's sums depends
            on the shape of a product, which is then the same in every batch and for every chunk.

    Returns:
        ``(out [T, H, Dv], lse [T, H])`` in ``compute_dtype``. A row without a visible key has
        ``out = 0`` and ``lse = -inf``. With sinks, ``lse`` counts the sink, as flash-attention does
        (flash-attention#2706), so such a row has ``out = 0`` and ``lse = sink``; partial results
        that are to be merged must therefore pass ``sinks`` to exactly one of the parts.
    """
    tokens, heads, _ = q.shape
    kv_heads, group = k.shape[2], heads // k.shape[2]
    out = torch.zeros(tokens, heads, v.shape[3], dtype=compute_dtype, device=q.device)
    lse = torch.full((tokens, heads), -torch.inf, dtype=compute_dtype, device=q.device)
    starts = cu_seqlens_q.tolist()
    together = 1 if batch_invariant else QUERY_ROWS

    def per_head(x: Tensor) -> Tensor:  # query head h reads KV head h // G
        return x.to(compute_dtype).reshape(kv_heads, group, 1, 1)

    for i, kv_len in enumerate(seqused_k.tolist()):
        context = kv_len - (starts[i + 1] - starts[i])
        scale = _descale(q_descale, i, compute_dtype) * _descale(k_descale, i, compute_dtype)
        for row in range(starts[i], starts[i + 1], together):
            end = min(row + together, starts[i + 1])
            t = torch.arange(row - starts[i], end - starts[i], device=q.device)
            p = context + t[:, None]
            first = 0 if window_left < 0 else max(context + row - starts[i] - window_left, 0)
            j = torch.arange(first, max(context + end - starts[i], first), device=q.device)
            keys = _gather(k, block_table[i], j).to(compute_dtype)
            values = _gather(v, block_table[i], j).to(compute_dtype)

            queries = q[row:end].to(compute_dtype).view(len(t), kv_heads, group, -1)
            s = torch.einsum("tkgd,jkd->kgtj", queries, keys) * (softmax_scale * scale)
            if softcap > 0:
                s = softcap * torch.tanh(s / softcap)
            if alibi_slopes is not None:
                s = s + per_head(alibi_slopes) * (j - p)
            if qq_bias is not None:
                bias = qq_bias[t[:, None], (j - context).clamp(min=0)].to(compute_dtype)
                s = s + bias.masked_fill(j < context, 0)
            hidden = j > p if window_left < 0 else (j > p) | (j < p - window_left)
            s = s.masked_fill(hidden, -torch.inf)

            total = s.logsumexp(-1, keepdim=True)
            if sinks is not None:
                total = torch.logaddexp(total, per_head(sinks))
            weights = torch.exp(s - total.masked_fill(total == -torch.inf, 0))
            mixed = torch.einsum("kgtj,jkd->kgtd", weights, values)
            mixed = mixed * _descale(v_descale, i, compute_dtype)
            out[row:end] = mixed.permute(2, 0, 1, 3).flatten(1, 2)
            lse[row:end] = total[..., 0].permute(2, 0, 1).flatten(1, 2)

    if output_scale is not None:
        out = out / output_scale
    return out.clamp(-out_limit, out_limit), lse


def ragged_kv_indices_to_page_table(
    kv_indices: Tensor,
    kv_indptr: Tensor,
    page_table: Tensor,
    swa_page_table: Tensor | None = None,
    full_to_swa: Tensor | None = None,
    *,
    page_size: int,
    fill_tail: bool = True,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """Page tables from ragged lists of token slots (FlashInfer's ``kv_indices``, sglang#23146).

    Row ``i``, column ``b`` becomes the page of the first slot of page ``b`` of sequence ``i``:
    ``kv_indices[kv_indptr[i] + b * page_size] // page_size``. A negative slot (padding) becomes
    page 0: Triton and torch would round its quotient differently.

    Args:
        kv_indices: ``[tokens]`` int32 or int64 token slots; the first of each page is aligned.
        kv_indptr: ``[B + 1]`` int.
        page_table: ``[>= B, columns]`` int32; rows from ``B`` on come back unchanged.
        swa_page_table: like ``page_table``, for the layers with a sliding window.
        full_to_swa: ``[slots]`` int64, the window pool's slot of each slot (0 or -1: evicted).
        fill_tail: write 0 into the columns past a sequence's pages, so that no entry of an
            earlier call survives there; otherwise they come back unchanged.

    Returns:
        The filled ``(page_table, swa_page_table)``; new tensors, the arguments stay as they are.
    """
    starts = kv_indptr.tolist()
    slots = [kv_indices[a:b:page_size] for a, b in itertools.pairwise(starts)]
    return _page_tables(slots, page_table, swa_page_table, full_to_swa, page_size, fill_tail)


def req_to_token_to_page_table(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    page_table: Tensor,
    swa_page_table: Tensor | None = None,
    full_to_swa: Tensor | None = None,
    *,
    page_size: int,
    num_draft_tokens: int = 0,
    fill_tail: bool = True,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """Page tables from the request-to-token table (sglang#23146).

    Sequence ``i`` holds ``seq_lens[i] + num_draft_tokens`` tokens, whose slots are the first
    entries of ``req_to_token[req_pool_indices[i]]``; the rest is as in
    :func:`ragged_kv_indices_to_page_table`.

    Args:
        req_to_token: ``[requests, max_tokens]`` int32 token slots, row stride free.
        req_pool_indices: ``[B]`` int row numbers.
        seq_lens: ``[B]`` int; without the draft tokens, whose slots are already written.
    """
    lengths = (seq_lens + num_draft_tokens).tolist()
    rows = req_pool_indices.tolist()
    slots = [req_to_token[r, :n:page_size] for r, n in zip(rows, lengths, strict=True)]
    return _page_tables(slots, page_table, swa_page_table, full_to_swa, page_size, fill_tail)


def _gather(cache: Tensor, blocks: Tensor, j: Tensor) -> Tensor:
    """Rows ``j`` of one sequence, ``[len(j), Hk, D]``: no unused slot and no table tail is read."""
    page_size = cache.shape[1]
    return cache[blocks[j // page_size].long(), j % page_size]


def _descale(descale: Descale, sequence: int, dtype: torch.dtype) -> float | Tensor:
    """The factor of one sequence: a number, or ``[Hk, 1, 1, 1]``."""
    if descale is None or isinstance(descale, int | float):
        return 1.0 if descale is None else float(descale)
    if descale.ndim == 2:
        return descale[sequence].to(dtype).reshape(-1, 1, 1, 1)
    return descale.to(dtype).reshape(())


def _page_tables(
    slots: list[Tensor],
    page_table: Tensor,
    swa_page_table: Tensor | None,
    full_to_swa: Tensor | None,
    page_size: int,
    fill_tail: bool,
) -> tuple[Tensor, Tensor | None]:
    """Write the page of each sequence's page-first slots into copies of the tables."""

    def pages(first_slots: Tensor) -> Tensor:
        return first_slots.clamp(min=0) // page_size

    full = page_table.clone()
    swa = None if swa_page_table is None else swa_page_table.clone()
    for i, first_slots in enumerate(slots):
        n = len(first_slots)
        full[i, :n] = pages(first_slots)
        if swa is not None and full_to_swa is not None:
            # A padding slot has no entry in the map; it stays padding.
            mapped = full_to_swa[first_slots.clamp(min=0).long()]
            swa[i, :n] = pages(mapped.masked_fill(first_slots < 0, -1))
        if fill_tail:
            full[i, n:] = 0
            if swa is not None:
                swa[i, n:] = 0
    return full, swa

# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention in plain torch.

Notation: query row i of a sequence with n query tokens and L cached tokens stands at position
`p = i + L - n` (bottom-right alignment), and sees key j if `j <= p` (causal) and, with a window
w >= 0, if `j >= p - w`. `s_ij = scale * q_i . k_j`, `lse_i = ln sum_j exp(s_ij)` (natural log),
`out_i = sum_j exp(s_ij - lse_i) v_j`. A row that sees no key has `out = 0`, `lse = -inf`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

__all__ = ["merge_attn_states", "mla_decode", "mla_prefill", "softmax_lse", "visible"]

Descale = float | torch.Tensor | None
_ROWS = 512  # query rows whose scores are held at once by prefill


def mla_decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    q_descale: Descale,
    kv_descale: Descale,
    softmax_scale: float,
    head_dim_v: int,
    causal: bool,
    window_left: int,
    num_splits: int = 0,
    batch_invariant: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Absorbed MLA over a paged latent cache: one KV head, V is the head of K's row.

    q              `[B, q_len, H, d]`, or `[T, H, d]` with `cu_seqlens_q` `[B + 1]`
    kv_cache       `[num_blocks, page_size, d]`, a row is latent then rope key
    block_table    `[B, n]` int32; entries past `ceil(cache_seqlens / page_size)` are not read
    cache_seqlens  `[B]` int32, the query tokens included
    max_seqlen_*   bounds for the size of a grid; not needed here
    *_descale      None, a number or a one-element tensor: `real = stored * descale`
    num_splits     how a kernel cuts the keys; not needed here
    batch_invariant  one query at a time, over its own keys: the order of torch's sums depends on
                   the shape of a product, which is then the same in every batch

    Returns out `[..., H, head_dim_v]` with q's leading shape, and lse `[T, H]`.
    """
    ragged = q.flatten(0, -3)  # [T, H, d]
    tokens, heads, _ = ragged.shape
    out = ragged.new_zeros(tokens, heads, head_dim_v, dtype=compute_dtype)
    lse = ragged.new_full((tokens, heads), -torch.inf, dtype=compute_dtype)
    first_rows = _first_rows(q, cu_seqlens_q)

    for b, length in enumerate(cache_seqlens.tolist()):
        first, stop = first_rows[b], first_rows[b + 1]
        visibly = visible(stop - first, length, causal, window_left, device=q.device)
        for rows in _slices(first, stop, 1 if batch_invariant else stop - first):
            sees = visibly[rows.start - first : rows.stop - first]
            used = sees.any(0)  # a key that no row sees may lie in a freed page
            if not used.any():
                continue
            keys = _gather(kv_cache, block_table[b], used.nonzero().squeeze(1))
            kv = _real(keys, kv_descale, compute_dtype)  # [L, d]
            queries = _real(ragged[rows], q_descale, compute_dtype)
            scores = softmax_scale * queries @ kv.T  # [n, H, L]
            p, lse[rows] = softmax_lse(scores.masked_fill(~sees[:, None, used], -torch.inf))
            out[rows] = p @ kv[:, :head_dim_v]
    return out.reshape(*q.shape[:-1], head_dim_v), lse


def mla_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    q_descale: Descale,
    k_descale: Descale,
    v_descale: Descale,
    softmax_scale: float,
    causal: bool,
    batch_invariant: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Un-absorbed MLA: ragged attention whose query/key and value widths may differ.

    q `[Tq, H, dqk]`, k `[Tk, Hk, dqk]`, v `[Tk, Hk, dv]`; head h reads KV head `h // (H / Hk)`
    cu_seqlens_q, cu_seqlens_k  `[B + 1]` int32, may repeat (an empty sequence)
    max_seqlen_*  bounds for the size of a grid; not needed here
    batch_invariant  one query at a time, over the keys that it sees, as in `mla_decode`

    Returns out `[Tq, H, dv]` and lse `[Tq, H]`.
    """
    tokens, heads, _ = q.shape
    out = q.new_zeros(tokens, heads, v.shape[-1], dtype=compute_dtype)
    lse = q.new_full((tokens, heads), -torch.inf, dtype=compute_dtype)
    group = heads // k.shape[1]
    starts = zip(_spans(cu_seqlens_q), _spans(cu_seqlens_k), strict=True)

    for (q_start, q_stop), (k_start, k_stop) in starts:
        keys = _real(k[k_start:k_stop], k_descale, compute_dtype).repeat_interleave(group, 1)
        values = _real(v[k_start:k_stop], v_descale, compute_dtype).repeat_interleave(group, 1)
        sees = visible(q_stop - q_start, k_stop - k_start, causal, -1, device=q.device)
        for rows in _slices(q_start, q_stop, 1 if batch_invariant else _ROWS):
            seen = sees[rows.start - q_start : rows.stop - q_start]
            used = seen.any(0)
            queries = _real(q[rows], q_descale, compute_dtype)
            scores = softmax_scale * torch.einsum("nhd,mhd->hnm", queries, keys[used])
            p, row_lse = softmax_lse(scores.masked_fill(~seen[:, used], -torch.inf))
            out[rows] = torch.einsum("hnm,mhv->nhv", p, values[used])
            lse[rows] = row_lse.T
    return out, lse


def merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of two disjoint key sets, from its two halves.

    out_a, out_b `[T, H, dv]`; lse_a, lse_b `[T, H]`, natural log. `w = exp(lse_x - lse)`,
    `lse = ln(exp(lse_a) + exp(lse_b))`. An lse of +inf counts as -inf (FlashMLA marks empty rows
    so), and the output that belongs to an lse of -inf is not read. Both empty: 0 and -inf.

    Returns out `[T, H, dv]` and lse `[T, H]`.
    """
    lses = torch.stack([lse_a, lse_b]).to(compute_dtype)
    weights, lse = softmax_lse(lses.masked_fill(lses == torch.inf, -torch.inf).movedim(0, -1))
    halves = zip((out_a, out_b), weights.unbind(-1), strict=True)
    terms = [w[..., None] * out.to(compute_dtype).where(w[..., None] > 0, 0) for out, w in halves]
    return terms[0] + terms[1], lse


def softmax_lse(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[..., m]` and natural-log normaliser `[...]` of scores `[..., m]`.

    Where every score is -inf, or there is none, the probabilities are 0 and the normaliser -inf.
    """
    lse = scores.logsumexp(-1)
    shift = lse.masked_fill(lse == -torch.inf, 0)
    return (scores - shift[..., None]).exp(), lse


def visible(
    queries: int, keys: int, causal: bool, window_left: int, *, device: torch.device
) -> torch.Tensor:
    """Which key each query row sees: `[queries, keys]` bool. A negative window is unlimited."""
    j = torch.arange(keys, device=device)
    position = torch.arange(queries, device=device)[:, None] + (keys - queries)
    sees = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        sees &= j <= position
    if window_left >= 0:
        sees &= j >= position - window_left
    return sees


def _gather(cache: torch.Tensor, pages: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows `[n, d]` of `cache` at logical `positions`; reads only the pages they lie in."""
    page_size = cache.shape[1]
    return cache[pages[positions // page_size].long(), positions % page_size]


def _real(x: torch.Tensor, descale: Descale, compute_dtype: torch.dtype) -> torch.Tensor:
    """The values that `x` stores, `x * descale`."""
    if isinstance(descale, torch.Tensor):
        descale = descale.to(compute_dtype)
    return x.to(compute_dtype) * (1 if descale is None else descale)


def _first_rows(q: torch.Tensor, cu_seqlens_q: torch.Tensor | None) -> list[int]:
    """Row at which each sequence's queries start, and one past the last."""
    if cu_seqlens_q is not None:
        return cu_seqlens_q.tolist()
    batch, q_len = q.shape[:2]
    return [b * q_len for b in range(batch + 1)]


def _spans(cu_seqlens: torch.Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(cu_seqlens.tolist()))


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """The rows from start to stop, `size` at a time."""
    return (slice(row, min(row + size, stop)) for row in range(start, stop, max(size, 1)))

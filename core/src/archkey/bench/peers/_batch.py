# SPDX-License-Identifier: Apache-2.0
"""Batches of sequences over pages, as libraries want them described. Reads lengths: it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.bench.peers._refusals import all_covered, require

__all__ = [
    "Batch",
    "Csr",
    "attention_batch",
    "csr",
    "gathered",
    "key_slots",
    "latent_batch",
]


@dataclass(frozen=True)
class Batch:
    """Queries `[T, H, d]`, ragged, and how long each sequence is.

    cu_q  `[B + 1]` int32, on the device; cu_q[B] == T
    """

    q: torch.Tensor
    cu_q: torch.Tensor
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]

    @property
    def max_q(self) -> int:
        """The longest query."""
        return max(self.q_lens)

    @property
    def max_kv(self) -> int:
        """The longest sequence of keys."""
        return max(self.kv_lens)

    def equal(self) -> tuple[int, int, int]:
        """(B, queries, keys) of sequences that are all as long as each other, or NotServed."""
        require(len(set(self.q_lens)) == 1 == len(set(self.kv_lens)), "sequences of unequal length")
        return len(self.q_lens), self.q_lens[0], self.kv_lens[0]


@dataclass(frozen=True)
class Csr:
    """A block table without its unused entries; int32, on its device.

    indptr     `[B + 1]`, indices `[indptr[B]]`
    last_page  `[B]`: how many slots of its last page a sequence uses
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    last_page: torch.Tensor


def attention_batch(inputs: Mapping[str, Any]) -> Batch:
    """That of a call of unified_attention."""
    lengths = tuple(inputs["seqused_k"].tolist())
    return _ragged(inputs["q"], inputs["cu_seqlens_q"], lengths)


def latent_batch(inputs: Mapping[str, Any]) -> Batch:
    """That of a call of mla_decode."""
    q, cu_q = inputs["q"], inputs.get("cu_seqlens_q")
    lengths = tuple(inputs["cache_seqlens"].tolist())
    if cu_q is not None:
        return _ragged(q, cu_q, lengths)
    batch, queries = q.shape[:2]
    cu_q = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * queries
    return _ragged(q.flatten(0, 1), cu_q, lengths)


def _ragged(q: torch.Tensor, cu_q: torch.Tensor, kv_lens: tuple[int, ...]) -> Batch:
    all_covered(cu_q, len(q))
    require(min(kv_lens, default=0) > 0, "a sequence without keys")
    return Batch(q, cu_q, tuple(cu_q.diff().tolist()), kv_lens)


def csr(block_table: torch.Tensor, kv_lens: tuple[int, ...], page_size: int) -> Csr:
    """The pages in use."""
    pages = [-(-length // page_size) for length in kv_lens]
    indptr, indices = _compressed(block_table, [(0, n) for n in pages])
    last = [length - (n - 1) * page_size for length, n in zip(kv_lens, pages, strict=True)]
    return Csr(indptr, indices.int(), torch.tensor(last, dtype=torch.int32, device=indptr.device))


def key_slots(
    block_table: torch.Tensor, lengths: torch.Tensor, page_size: int, window_left: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of each sequence one by one: (indptr `[B + 1]` int32, slots int64).

    window_left  of the last query: keys before it are left out
    """
    ends = lengths.tolist()
    firsts = [max(end - 1 - window_left, 0) if window_left >= 0 else 0 for end in ends]
    pages = block_table[:, : -(-max(ends, default=0) // page_size), None].long()
    slots = pages * page_size + torch.arange(page_size, device=pages.device)
    return _compressed(slots.flatten(1), list(zip(firsts, ends, strict=True)))


def _compressed(
    table: torch.Tensor, spans: list[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of row i the entries of span i: (indptr `[B + 1]` int32, entries)."""
    counts = torch.tensor([0, *(end - first for first, end in spans)])
    entries = torch.cat([table[i, first:end] for i, (first, end) in enumerate(spans)])
    return counts.cumsum(0).to(table.device, torch.int32), entries


def gathered(
    cache: torch.Tensor, block_table: torch.Tensor, kv_lens: tuple[int, ...]
) -> torch.Tensor:
    """A contiguous copy `[B, keys, ..]` of a cache `[blocks, page_size, ..]`; equal lengths."""
    page_size, keys = cache.shape[1], kv_lens[0]
    pages = block_table[: len(kv_lens), : -(-keys // page_size)].long()
    rows: torch.Tensor = cache[pages].flatten(1, 2)[:, :keys]
    return rows.contiguous()

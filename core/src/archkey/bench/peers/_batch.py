# SPDX-License-Identifier: Apache-2.0
"""Batches of sequences over pages, as libraries want them described. Reads lengths: it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.bench.peers._serve import serve

__all__ = ["Batch", "Csr", "attention_batch", "csr", "gathered", "latent_batch"]


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
        serve(len(set(self.q_lens)) == 1 == len(set(self.kv_lens)), "sequences of unequal length")
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
    starts = cu_q.tolist()
    serve(starts[-1] == len(q), "queries past the last sequence, which stay unwritten")
    serve(min(kv_lens, default=0) > 0, "a sequence without keys")
    return Batch(q, cu_q, tuple(b - a for a, b in zip(starts, starts[1:], strict=False)), kv_lens)


def csr(block_table: torch.Tensor, kv_lens: tuple[int, ...], page_size: int) -> Csr:
    """The pages in use."""
    pages = [-(-length // page_size) for length in kv_lens]
    device = block_table.device
    indptr = torch.tensor([0, *pages]).cumsum(0).to(device, torch.int32)
    indices = torch.cat([block_table[i, :n] for i, n in enumerate(pages)]).to(torch.int32)
    last = [length - (n - 1) * page_size for length, n in zip(kv_lens, pages, strict=True)]
    return Csr(indptr, indices, torch.tensor(last, dtype=torch.int32, device=device))


def gathered(
    cache: torch.Tensor, block_table: torch.Tensor, kv_lens: tuple[int, ...]
) -> torch.Tensor:
    """A contiguous copy `[B, keys, ..]` of a cache `[blocks, page_size, ..]`; equal lengths."""
    page_size, keys = cache.shape[1], kv_lens[0]
    pages = block_table[: len(kv_lens), : -(-keys // page_size)].long()
    rows: torch.Tensor = cache[pages].flatten(1, 2)[:, :keys]
    return rows.contiguous()

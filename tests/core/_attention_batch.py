# SPDX-License-Identifier: Apache-2.0
"""A batch over a paged cache whose unused slots and table entries are garbage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from archkey.reference import attention as reference

GARBAGE = 2147480000  # what a padded block-table entry may hold


@dataclass
class Batch:
    """A paged batch whose unused slots hold NaN and whose table tails hold garbage."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seqused_k: torch.Tensor
    block_table: torch.Tensor

    def run(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        options = {"softmax_scale": 0.2, "compute_dtype": torch.float64, **options}
        out, lse = reference.unified_attention(
            self.q,
            self.k,
            self.v,
            self.cu_seqlens_q,
            self.seqused_k,
            self.block_table,
            **options,
        )
        return out.double().numpy(), lse.double().numpy()


def make_batch(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (16, 16),
    page_size: int = 4,
    dtype: torch.dtype = torch.float64,
    padding_rows: int = 0,
    seed: int = 0,
) -> Batch:
    """A batch of (q_len, kv_len) with its pages scattered over a cache twice as large."""
    g = torch.Generator().manual_seed(seed)
    (h, hk), (d, dv) = heads, dims
    q_lens = [n for n, _ in lengths]
    kv_lens = [n for _, n in lengths]
    pages = [-(-n // page_size) for n in kv_lens]
    blocks = 2 * sum(pages) + 1
    order = torch.randperm(blocks, generator=g).tolist()
    k = torch.full((blocks, page_size, hk, d), torch.nan)
    v = torch.full((blocks, page_size, hk, dv), torch.nan)
    table = torch.full((len(lengths), max(pages, default=0) + 2), GARBAGE, dtype=torch.int32)
    for i, (n, length) in enumerate(zip(pages, kv_lens, strict=True)):
        mine = [order.pop() for _ in range(n)]
        table[i, :n] = torch.tensor(mine, dtype=torch.int32)
        for j in range(length):
            k[mine[j // page_size], j % page_size] = torch.randn(hk, d, generator=g)
            v[mine[j // page_size], j % page_size] = torch.randn(hk, dv, generator=g)
    cu = torch.tensor([0, *np.cumsum(q_lens)], dtype=torch.int32)
    q = torch.randn(int(cu[-1]) + padding_rows, h, d, generator=g)
    used = torch.tensor(kv_lens, dtype=torch.int32)
    return Batch(q.to(dtype), k.to(dtype), v.to(dtype), cu, used, table)

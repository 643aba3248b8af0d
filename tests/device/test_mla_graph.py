# SPDX-License-Identifier: Apache-2.0
"""On a card: a captured call of MLA decode serves other lengths, other pages and other values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.device._graphs import captured, near

import archkey
from archkey.reference.mla import mla_decode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]

PAGE, PAGES, TABLE = 64, 400, 40
SCALE = 192**-0.5
LENGTHS = ((2500, 0, 64, 65), (1, 2, 3, 4), (TABLE * PAGE,) * 4, (700, 1999, 0, 127))


def filled(batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Lengths, with pages in no order; of the table, what is past a length names no page."""
    for number, lengths in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(number)
        pages = torch.randperm(PAGES, generator=generator)[: batch * TABLE].view(batch, TABLE)
        past = torch.arange(TABLE)[None, :] * PAGE >= torch.tensor(lengths)[:, None]
        yield torch.tensor(lengths), pages.masked_fill(past, 2147480000)


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("splits", [0, 1, 7])
def test_a_captured_call_serves_other_lengths(heads: int, queries: int, splits: int) -> None:
    batch = len(LENGTHS[0])
    device = torch.device("cuda:0")
    q = torch.empty(batch, queries, heads, 576, device=device, dtype=torch.bfloat16)
    cache = torch.empty(PAGES, PAGE, 576, device=device, dtype=torch.bfloat16)
    table = torch.zeros(batch, TABLE, device=device, dtype=torch.int32)
    lengths = torch.ones(batch, device=device, dtype=torch.int32)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        found = archkey.mla_decode(
            q, cache, table, lengths, softmax_scale=SCALE, return_lse=True, num_splits=splits
        )
        assert isinstance(found, tuple)
        return found

    with torch.inference_mode():
        q.normal_(std=4)
        cache.normal_(std=0.1)
        graph, (out, lse) = captured(call)
        for new, pages in filled(batch):
            q.normal_(std=4)
            cache.normal_(std=0.1)
            lengths.copy_(new)
            table.copy_(pages)
            out.fill_(float("nan"))
            graph.replay()
            want, want_lse = mla_decode(
                q, cache, table, lengths, None, queries, TABLE * PAGE, None, None, SCALE, 512, True,
                -1, compute_dtype=torch.float64,
            )  # fmt: skip
            assert near("mla_decode", "out", out, want, "bfloat16"), new
            assert near("mla_decode", "lse", lse, want_lse, "bfloat16"), new

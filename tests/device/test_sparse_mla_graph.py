# SPDX-License-Identifier: Apache-2.0
"""On a card: a captured call of sparse MLA serves other lists, other lengths and other values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.device._graphs import captured, near

import archkey
from archkey.formats import sparse_kv
from archkey.reference.sparse_mla import sparse_mla_decode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]

PAGE, PAGES, K = 64, 300, 1000
SCALE = 192**-0.5
LENGTHS = ((1000, 0, 64, 65), (1, 2, 3, 4), (K,) * 4, (700, 999, 0, 127))


def filled() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Lengths, and lists with entries outside of the cache; behind a length anything may stand."""
    for number, lengths in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(number)
        lists = torch.randint(-9, PAGES * PAGE + 9, (len(lengths), 1, K), generator=generator)
        past = torch.arange(K) >= torch.tensor(lengths)[:, None, None]
        yield torch.tensor(lengths), lists.masked_fill(past, 2147480000)


@pytest.mark.parametrize("heads", [8, 64, 128])
@pytest.mark.parametrize("kv_format", ["bf16", "fp8_v32"])
def test_a_captured_call_serves_other_lists(heads: int, kv_format: str) -> None:
    device, batch = torch.device("cuda:0"), len(LENGTHS[0])
    q = torch.empty(batch, 1, heads, 576, device=device, dtype=torch.bfloat16)
    rows = torch.empty(PAGES, PAGE, 576, device=device, dtype=torch.bfloat16)
    lists = torch.zeros(batch, 1, K, device=device, dtype=torch.int32)
    lengths = torch.ones(batch, device=device, dtype=torch.int32)
    cache = rows
    if kv_format != "bf16":
        layout = sparse_kv.packed(kv_format)
        cache = sparse_kv.empty_cache(layout, PAGES, PAGE, device=device)

    def fill() -> None:
        q.normal_(std=4)
        rows.normal_(std=0.1)
        if cache is not rows:
            archkey.quantize_sparse_kv(
                rows[..., :512], rows[..., 512:], format=kv_format, out=cache
            )

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        found = archkey.sparse_mla_decode(
            q, cache, lists, softmax_scale=SCALE, kv_format=kv_format, topk_length=lengths,
            return_lse=True,
        )  # fmt: skip
        assert isinstance(found, tuple)
        return found

    with torch.inference_mode():
        fill()
        graph, (out, lse) = captured(call)
        source = "bfloat16" if kv_format == "bf16" else "fp8"
        for new, entries in filled():
            fill()
            lengths.copy_(new)
            lists.copy_(entries)
            out.fill_(float("nan"))
            graph.replay()
            want, want_lse = sparse_mla_decode(
                q, cache, lists, lengths, None, None, None, None, SCALE, 512, kv_format,
                compute_dtype=torch.float64,
            )  # fmt: skip
            assert near("sparse_mla_decode", "out", out, want, source), new
            assert near("sparse_mla_decode", "lse", lse, want_lse, source), new

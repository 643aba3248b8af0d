# SPDX-License-Identifier: Apache-2.0
"""The references that fill, read and index packed caches, against loops and the layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archkey.formats.sparse_kv import PACKED, empty_cache, packed
from archkey.reference.sparse_mla import (
    dequantize_sparse_kv,
    logical_to_physical_indices,
    quantize_sparse_kv,
)

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _int(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", list(PACKED))
def test_quantize_writes_mapped_slots_and_keeps_the_rest(name: str) -> None:
    layout = packed(name)
    mode = "pow2" if layout.planar else "fp32"
    cache = empty_cache(layout, 2, 4).fill_(7)
    before = cache.clone()
    nope = _randn(5, layout.nope_dim)
    rope = _randn(5, layout.rope_dim, seed=1).bfloat16() if layout.rope_dim else None
    mapping = torch.tensor([6, -1, 1, 8, INT_MAX])
    (written,) = quantize_sparse_kv(nope, rope, mapping, cache, name, mode)
    torch.testing.assert_close(cache, before, rtol=0, atol=0)
    (rows,) = dequantize_sparse_kv(written, None, name, compute_dtype=torch.float64)
    (old,) = dequantize_sparse_kv(before, None, name, compute_dtype=torch.float64)
    others = [0, 2, 3, 4, 5, 7]
    torch.testing.assert_close(rows[others], old[others], rtol=0, atol=0, equal_nan=True)
    error = (rows[[6, 1], : layout.nope_dim] - nope[[0, 2]].double()).abs()
    assert error.max() < nope.abs().max() / 16
    if rope is not None:
        torch.testing.assert_close(rows[[6, 1], layout.nope_dim :], rope[[0, 2]].double())


def test_quantize_without_mapping_fills_in_order_and_dequantize_takes_slots() -> None:
    layout = packed("fp8_v32")
    nope, rope = _randn(3, 512), _randn(3, 64, seed=1)
    (cache,) = quantize_sparse_kv(nope, rope, None, empty_cache(layout, 2, 2), "fp8_v32", "fp32")
    (rows,) = dequantize_sparse_kv(cache, torch.tensor([2, -1, 0, 4]), "fp8_v32")
    torch.testing.assert_close(rows[[0, 2], 512:], rope[[2, 0]].bfloat16().float())
    assert (rows[0, :512] - nope[2]).abs().max() < nope.abs().max() / 16
    assert (rows[[1, 3]] == 0).all()


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("shape", [(3, 9), (3, 2, 9)], ids=["B_k", "B_q_k"])
def test_logical_to_physical(page: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(page)
    table = torch.randint(0, 1000, (3, 4), generator=generator, dtype=torch.int32)
    table[1, 2], table[2, 3] = -1, 2147480000  # a hole, and garbage that overflows int32
    indices = torch.randint(0, 4 * page, shape, generator=generator, dtype=torch.int32)
    indices[..., 0], indices[..., 1], indices[..., 2] = -1, 4 * page, INT_MAX
    indices[..., 3], indices[..., 4] = INT_MIN, 4 * page - 1
    (slots,) = logical_to_physical_indices(indices, table, page)
    assert slots.dtype == torch.int32
    assert slots.shape == indices.shape
    rows = zip(indices.reshape(3, -1).tolist(), slots.reshape(3, -1).tolist(), strict=True)
    for b, (logical, physical) in enumerate(rows):
        for i, slot in zip(logical, physical, strict=True):
            expected = -1
            if 0 <= i < 4 * page and table[b, i // page] >= 0:
                expected = int(table[b, i // page]) * page + i % page
            assert slot == (expected if expected <= INT_MAX else -1)


def test_logical_to_physical_of_an_empty_table() -> None:
    (slots,) = logical_to_physical_indices(_int([[0, 5]]), torch.zeros(1, 0).int(), 64)
    assert slots.tolist() == [[-1, -1]]
    (slots,) = logical_to_physical_indices(_int([[0]])[:0], torch.zeros(0, 2).int(), 64)
    assert slots.shape == (0, 1)

# SPDX-License-Identifier: Apache-2.0
"""The sparse MLA references against a float64 loop over rows, heads and listed keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.core._mla import SCALE, brute_row

from archkey.formats import sparse_kv
from archkey.formats.sparse_kv import PACKED, empty_cache, packed
from archkey.reference.sparse_mla import (
    sparse_mla_decode,
    sparse_mla_prefill,
)

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _int(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _brute(
    q: torch.Tensor,
    lists: list[list[np.ndarray]],
    head_dim_v: int,
    sinks: list[float] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row t of `q` `[T, H, d]` attends to the key vectors `lists[t]`."""
    queries = q.double().numpy()
    tokens, heads, _ = queries.shape
    out, top, lse = np.zeros((tokens, heads, head_dim_v)), *np.zeros((2, tokens, heads))
    for t in range(tokens):
        for h in range(heads):
            sink = -math.inf if sinks is None else sinks[h]
            values = np.array([key[:head_dim_v] for key in lists[t]]).reshape(-1, head_dim_v)
            result = brute_row(queries[t, h], lists[t], values, sink)
            out[t, h], top[t, h], lse[t, h] = result
    return out, top, lse


def _keys(pool: torch.Tensor, indices: torch.Tensor, lengths: list[int]) -> list[list[np.ndarray]]:
    """The vectors that each index list names in the flat `pool` `[slots, d]`."""
    rows = pool.double().numpy()
    return [
        [rows[i] for i in entries[:length] if 0 <= i < len(rows)]
        for entries, length in zip(indices.tolist(), lengths, strict=True)
    ]


def _prefill(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "topk_length": None,
        "attn_sink": None,
        "softmax_scale": SCALE,
        "head_dim_v": 24,
        "kv_format": "bf16",
        "compute_dtype": torch.float64,
    }
    return sparse_mla_prefill(q, kv, indices, **(arguments | changes))


def _decode(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, **changes: Any) -> Any:
    extra = {"extra_kv_cache": None, "extra_indices": None, "extra_topk_length": None}
    arguments: dict[str, Any] = {
        "topk_length": None,
        "attn_sink": None,
        "softmax_scale": SCALE,
        "head_dim_v": 24,
        "kv_format": "bf16",
        "compute_dtype": torch.float64,
    }
    return sparse_mla_decode(q, kv, indices, **(arguments | extra | changes))


def _check(actual: Any, expected: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-11, atol=1e-11)


# Every row poisons something: -1, far negative, one past the pool, INT_MAX; duplicates count twice.
WILD = [
    [3, 3, 3, 9, -1, 4],
    [-1, INT_MIN, -123456, 16, INT_MAX, 17],
    [15, INT_MIN, 1, 2, INT_MAX, 16],
    [-1, -1, -1, -1, -1, 7],
]


@pytest.mark.parametrize("page", [1, 4, 16])
def test_prefill_masks_every_index_outside_the_pool(page: int) -> None:
    kv = _randn(16, 32, seed=1).bfloat16()
    kv[0] = torch.nan  # where a kernel that clamps -1 to 0 would read
    kv[10:15] = torch.nan
    q = _randn(4, 3, 32).bfloat16()
    indices = _int(WILD)
    actual = _prefill(q, kv.view(-1, page, 32), indices)
    _check(actual, _brute(q, _keys(kv, indices, [6] * 4), 24))
    out, max_logits, lse = actual
    assert (out[1] == 0).all()
    assert (max_logits[1] == -torch.inf).all()
    assert (lse[1] == -torch.inf).all()


def test_prefill_topk_length_ignores_what_stands_behind_it() -> None:
    kv = _randn(16, 1, 32, seed=1)
    kv[0] = torch.nan
    q = _randn(4, 3, 32)
    indices = _int([[1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [4, 5, 6, 7]])
    lengths = [2, 2, 0, 9]
    actual = _prefill(q, kv, indices, topk_length=_int(lengths))
    _check(actual, _brute(q, _keys(kv[:, 0], indices, lengths), 24))


def test_prefill_longer_lists_than_keys() -> None:
    kv = _randn(3, 1, 32, seed=1)
    q = _randn(2, 3, 32)
    indices = torch.full((2, 64), -1, dtype=torch.int32)
    indices[:, :3] = _int([2, 0, 1])
    actual = _prefill(q, kv, indices)
    _check(actual, _brute(q, _keys(kv[:, 0], indices, [64, 64]), 24))


def test_prefill_sink_scales_the_output_alone() -> None:
    kv, q = _randn(16, 1, 32, seed=1), _randn(4, 5, 32)
    sinks = [-math.inf, math.inf, 0.0, 2.5, -40.0]
    actual = _prefill(q, kv, _int(WILD), attn_sink=torch.tensor(sinks))
    expected = _brute(q, _keys(kv[:, 0], _int(WILD), [6] * 4), 24, sinks)
    _check(actual, expected)
    plain = _prefill(q, kv, _int(WILD))
    assert (actual[0][:, 1] == 0).all()
    torch.testing.assert_close(actual[0][:, 0], plain[0][:, 0], rtol=0, atol=0)
    for a, b in zip(actual[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_prefill_row_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    kv, q = _randn(16, 1, 32, seed=1), _randn(7, 2, 32)
    indices = torch.randint(-2, 18, (7, 5), generator=torch.Generator().manual_seed(0)).int()
    whole = _prefill(q, kv, indices)
    monkeypatch.setattr("archkey.reference.sparse_mla._GATHERED", 11)  # two rows at once
    for a, b in zip(whole, _prefill(q, kv, indices), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("capacity", [0, 16])
def test_prefill_without_rows_or_without_keys(capacity: int) -> None:
    kv = _randn(capacity, 1, 32)
    out, max_logits, lse = _prefill(_randn(0, 3, 32), kv, _int([[1]])[:0])
    assert out.shape == (0, 3, 24)
    assert max_logits.shape == lse.shape == (0, 3)
    out, _, lse = _prefill(_randn(2, 3, 32), kv[:0], _int([[0], [1]]))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("q_len", [1, 2])
@pytest.mark.parametrize("per_row", [False, True], ids=["per_sequence", "per_row"])
def test_decode_topk_length_by_sequence_or_row(q_len: int, per_row: bool) -> None:
    kv = _randn(12, 32, seed=1)
    kv[0] = torch.nan
    q = _randn(3, q_len, 2, 32)
    indices = torch.randint(1, 12, (3, q_len, 7), generator=torch.Generator().manual_seed(1)).int()
    lengths = [3, 0, 7, 1, 6, 2][: 3 * q_len] if per_row else [3, 0, 5]
    rows = lengths if per_row else [n for n in lengths for _ in range(q_len)]
    flat = indices.flatten(0, 1)
    for row, length in enumerate(rows):
        flat[row, length:] = 0
    out, lse = _decode(q, kv.view(4, 3, 32), indices, topk_length=_int(lengths))
    expected = _brute(q.flatten(0, 1), _keys(kv, flat, rows), 24)
    assert out.shape == (3, q_len, 2, 24)
    _check((out.flatten(0, 1), lse), (expected[0], expected[2]))


def test_decode_two_caches_share_one_softmax() -> None:
    kv, extra = _randn(12, 32, seed=1), _randn(10, 32, seed=2)
    kv[0] = extra[0] = torch.nan
    q = _randn(3, 2, 4, 32)
    generator = torch.Generator().manual_seed(3)
    indices = torch.randint(1, 12, (3, 2, 5), generator=generator).int()
    extra_indices = torch.randint(1, 10, (3, 2, 3), generator=generator).int()
    indices[0] = extra_indices[0] = -1  # nothing at all
    indices[1] = 12  # keys in the extra cache alone; 12 is one past the pool
    lengths, extra_lengths, sinks = [5, 5, 2], [3, 1, 3], [0.25, -math.inf, 1.0, math.inf]
    out, lse = _decode(
        q,
        kv.view(3, 4, 32),
        indices,
        topk_length=_int(lengths),
        attn_sink=torch.tensor(sinks),
        extra_kv_cache=extra.view(5, 2, 32),
        extra_indices=extra_indices,
        extra_topk_length=_int(extra_lengths),
    )
    main = _keys(kv, indices.flatten(0, 1), [n for n in lengths for _ in range(2)])
    more = _keys(extra, extra_indices.flatten(0, 1), [n for n in extra_lengths for _ in range(2)])
    lists = [a + b for a, b in zip(main, more, strict=True)]
    expected = _brute(q.flatten(0, 1), lists, 24, sinks)
    _check((out.flatten(0, 1), lse), (expected[0], expected[2]))
    assert (out[0] == 0).all()
    assert (lse[:2] == -torch.inf).all()


def test_decode_of_no_sequences_is_empty() -> None:
    out, lse = _decode(_randn(0, 1, 3, 32), _randn(4, 4, 32), _int([[[1]]])[:0])
    assert out.shape == (0, 1, 3, 24)
    assert lse.shape == (0, 3)


@pytest.mark.parametrize("heads", [1, 64, 128])
@pytest.mark.parametrize("name", list(PACKED))
def test_decode_packed_equals_attention_over_the_unpacked(name: str, heads: int) -> None:
    layout = packed(name)
    blocks, page, k = 3, 4, 6
    cache = empty_cache(layout, blocks, page)
    cache.fill_(0xFF if layout.code_dtype == "float8_e4m3fn" else 0x80)  # NaN codes
    slots = torch.tensor([11, 1, 6, 2, 7])
    nope = _randn(5, layout.nope_dim, seed=1) * torch.tensor([0.7, 3.3, 1.1, 0.013, 9.0])[:, None]
    rope = _randn(5, layout.rope_dim, seed=2) if layout.rope_dim else None
    mode = "pow2" if layout.planar else "fp32"
    sparse_kv.store(cache, slots, nope, rope, layout, mode)
    q = _randn(2, 1, heads, layout.head_dim).bfloat16()
    indices = _int([[[11, 1, 6, -1, 12, 11]], [[2, 7, INT_MIN, INT_MAX, -1, -1]]])
    out, lse = _decode(q, cache, indices, kv_format=name, head_dim_v=layout.nope_dim)
    # `load` is checked byte by byte in test_formats_sparse_kv.py; its scales here are no powers
    # of two where the layout allows it (sglang#22723).
    pool = torch.zeros(blocks * page, layout.head_dim, dtype=torch.float64)
    pool[slots] = sparse_kv.load(cache, slots, layout, dtype=torch.float64)
    exact = _brute(q[:, 0], _keys(pool, indices[:, 0], [k, k]), layout.nope_dim)
    _check((out.flatten(0, 1), lse), (exact[0], exact[2]))

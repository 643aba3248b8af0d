# SPDX-License-Identifier: Apache-2.0
"""The reference of MLA decode against a float64 loop over rows, heads and keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.core._mla import SCALE, brute_row

from archkey.reference.mla import mla_decode

GARBAGE_PAGE = 2147480000


def _brute_decode(
    q: torch.Tensor,
    sequences: list[torch.Tensor],
    q_lens: list[int],
    head_dim_v: int,
    causal: bool = True,
    window_left: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode of ragged `q` `[T, H, d]` over the keys `[L, d]` of each sequence."""
    queries = q.double().numpy()
    out = np.zeros((*queries.shape[:2], head_dim_v))
    lse = np.full(queries.shape[:2], -math.inf)
    token = 0
    for keys, n in zip(sequences, q_lens, strict=True):
        rows = keys.double().numpy()
        for i in range(n):
            position = i + len(rows) - n
            last = position if causal else len(rows) - 1
            first = max(0, position - window_left) if window_left >= 0 else 0
            seen = rows[first : max(first, last + 1)]
            for h in range(queries.shape[1]):
                result = brute_row(queries[token, h], seen, seen[:, :head_dim_v])
                out[token, h], _, lse[token, h] = result
            token += 1
    return out, lse


class _Paged:
    """A poisoned paged cache: whatever no sequence uses is NaN, unused table entries are wild."""

    def __init__(self, lengths: list[int], page: int, d: int, seed: int, dtype: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-length // page) for length in lengths]
        blocks = sum(counts) + 2
        order = torch.randperm(blocks - 1, generator=generator) + 1  # slot 0 stays poisoned
        self.cache = torch.full((blocks, page, d), torch.nan).to(dtype)
        width = max(counts, default=0) + 2
        self.table = torch.full((len(lengths), width), GARBAGE_PAGE, dtype=torch.int32)
        self.sequences = []
        taken = 0
        for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            pages = order[taken : taken + count]
            taken += count
            self.table[b, :count] = pages.int()
            rows = (torch.randn(length, d, generator=generator) / 2).to(dtype)
            for j in range(length):
                self.cache[pages[j // page], j % page] = rows[j]
            self.sequences.append(rows)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)


def _decode(q: torch.Tensor, paged: _Paged, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    arguments: dict[str, Any] = {
        "cu_seqlens_q": None,
        "max_seqlen_q": 0,  # bounds for kernels; the reference does not look
        "max_seqlen_k": 0,
        "q_descale": None,
        "kv_descale": None,
        "softmax_scale": SCALE,
        "head_dim_v": 24,
        "causal": True,
        "window_left": -1,
        "compute_dtype": torch.float64,
    }
    return mla_decode(q, paged.cache, paged.table, paged.lengths, **(arguments | changes))


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-11) -> None:
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("q_len", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_decode_equals_the_loop(page: int, q_len: int, causal: bool) -> None:
    # lengths: empty, shorter than q_len, below a page, a whole page, one more than a page
    lengths = [0, 1, 3, 64, 65, 33]
    paged = _Paged(lengths, page, 32, seed=page, dtype=torch.bfloat16)
    q = _randn(len(lengths), q_len, 3, 32, seed=q_len).bfloat16()
    out, lse = _decode(q, paged, causal=causal)
    expected, expected_lse = _brute_decode(
        q.flatten(0, 1), paged.sequences, [q_len] * len(lengths), 24, causal
    )
    assert out.shape == (6, q_len, 3, 24)
    assert lse.shape == (6 * q_len, 3)
    _close(out.flatten(0, 1), expected)
    _close(lse, expected_lse)


def test_decode_rows_without_keys_are_zero_and_minus_inf() -> None:
    paged = _Paged([2, 0], 16, 32, seed=1, dtype=torch.float32)
    out, lse = _decode(_randn(2, 4, 3, 32), paged)  # q_len 4 > 2 cached: two leading rows empty
    empty = torch.tensor([True, True, False, False] + [True] * 4)
    assert (out.flatten(0, 1)[empty] == 0).all()
    assert (lse[empty] == -torch.inf).all()
    assert lse[~empty].isfinite().all()


@pytest.mark.parametrize("heads", [1, 3, 9, 63])
def test_decode_ragged_queries(heads: int) -> None:
    lengths, q_lens = [7, 0, 20, 5], [2, 1, 0, 3]
    paged = _Paged(lengths, 16, 32, seed=heads, dtype=torch.bfloat16)
    q = _randn(sum(q_lens), heads, 32, seed=2).bfloat16()
    cu = torch.tensor([0, 2, 3, 3, 6], dtype=torch.int32)
    out, lse = _decode(q, paged, cu_seqlens_q=cu)
    expected, expected_lse = _brute_decode(q, paged.sequences, q_lens, 24)
    _close(out, expected)
    _close(lse, expected_lse)


def test_decode_rows_past_the_last_sequence_are_empty() -> None:
    paged = _Paged([7], 16, 32, seed=1, dtype=torch.float32)
    cu = torch.tensor([0, 2], dtype=torch.int32)
    out, lse = _decode(_randn(5, 3, 32), paged, cu_seqlens_q=cu)
    assert (out[2:] == 0).all()
    assert (lse[2:] == -torch.inf).all()
    assert (out[:2] != 0).all()


@pytest.mark.parametrize("window_left", [0, 1, 5, 1000])
@pytest.mark.parametrize("q_len", [1, 3])
def test_decode_window_is_per_row(window_left: int, q_len: int) -> None:
    lengths = [2, 9, 40]
    paged = _Paged(lengths, 4, 32, seed=3, dtype=torch.float32)
    for b, length in enumerate(lengths):  # pages behind every row's window are freed
        for j in range(max(0, length - q_len - window_left) // 4):
            paged.cache[paged.table[b, j]] = torch.nan
            paged.table[b, j] = GARBAGE_PAGE
    q = _randn(3, q_len, 2, 32, seed=4)
    out, lse = _decode(q, paged, window_left=window_left)
    expected, expected_lse = _brute_decode(
        q.flatten(0, 1), paged.sequences, [q_len] * 3, 24, window_left=window_left
    )
    _close(out.flatten(0, 1), expected)
    _close(lse, expected_lse)


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_decode_descales_multiply(fp8: torch.dtype) -> None:
    paged = _Paged([30, 0, 17], 16, 32, seed=5, dtype=fp8)
    q = _randn(3, 1, 4, 32).to(fp8)
    out, lse = _decode(q, paged, q_descale=0.37, kv_descale=torch.tensor(1.9))
    queries = 0.37 * q.double().flatten(0, 1)
    keys = [torch.tensor(1.9) * rows.double() for rows in paged.sequences]
    expected, expected_lse = _brute_decode(queries, keys, [1, 1, 1], 24)
    _close(out.flatten(0, 1), expected, 1e-6)
    _close(lse, expected_lse, 1e-6)


@pytest.mark.parametrize("batch", [0, 2], ids=["B0", "q_len0"])
def test_decode_of_nothing_is_empty(batch: int) -> None:
    paged = _Paged([3] * batch, 16, 32, seed=5, dtype=torch.float32)
    q_len = 1 if batch == 0 else 0
    out, lse = _decode(_randn(batch, q_len, 4, 32), paged)
    assert out.shape == (batch, q_len, 4, 24)
    assert lse.shape == (0, 4)


def test_decode_accepts_strides_and_leaves_arguments_alone() -> None:
    paged = _Paged([30, 5], 16, 32, seed=6, dtype=torch.float32)
    q = _randn(2, 1, 4, 32)
    plain = _decode(q, paged)
    wide = torch.full((*paged.cache.shape[:2], 64), torch.nan)
    wide[..., :32] = paged.cache
    paged.cache = wide[..., :32]
    copies = (q.clone(), wide.clone(), paged.table.clone())
    strided = _decode(q.transpose(1, 2).contiguous().transpose(1, 2), paged)
    for a, b in zip(plain, strided, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(copies, (q, wide, paged.table), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_decode_in_float32_is_near_float64() -> None:
    paged = _Paged([100, 37], 16, 64, seed=7, dtype=torch.bfloat16)
    q = _randn(2, 2, 4, 64).bfloat16()
    for single, double in zip(
        _decode(q, paged, compute_dtype=torch.float32), _decode(q, paged), strict=True
    ):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)

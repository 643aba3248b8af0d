# SPDX-License-Identifier: Apache-2.0
"""The references of MLA prefill and of the merge of two parts, against torch and a float64 loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.core._mla import SCALE, brute_row

from archkey.reference.mla import merge_attn_states, mla_prefill


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _prefill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_seqlen_q": 0,
        "max_seqlen_k": 0,
        "q_descale": None,
        "k_descale": None,
        "v_descale": None,
        "softmax_scale": SCALE,
        "causal": True,
        "compute_dtype": torch.float64,
    }
    return mla_prefill(q, k, v, **(arguments | changes))


def _cu(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_prefill_equals_sdpa(heads: int, kv_heads: int, causal: bool) -> None:
    q_lens, k_lens = [5, 0, 7, 4, 1], [5, 3, 19, 0, 8]
    q = _randn(sum(q_lens), heads, 24, seed=1).double()
    k = _randn(sum(k_lens), kv_heads, 24, seed=2).double()
    v = _randn(sum(k_lens), kv_heads, 16, seed=3).double()
    out, lse = _prefill(q, k, v, cu_seqlens_q=_cu(q_lens), cu_seqlens_k=_cu(k_lens), causal=causal)
    for b, (n, m) in enumerate(zip(q_lens, k_lens, strict=True)):
        rows = slice(sum(q_lens[:b]), sum(q_lens[: b + 1]))
        keys = slice(sum(k_lens[:b]), sum(k_lens[: b + 1]))
        if n == 0 or m == 0:
            assert (out[rows] == 0).all()
            assert (lse[rows] == -torch.inf).all()
            continue
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[rows].transpose(0, 1)[None],
            k[keys].transpose(0, 1)[None],
            v[keys].transpose(0, 1)[None],
            attn_mask=mask,
            scale=SCALE,
            enable_gqa=True,
        )[0].transpose(0, 1)
        torch.testing.assert_close(out[rows], expected, rtol=1e-11, atol=1e-11)


def test_prefill_lse_is_natural_and_early_rows_are_empty() -> None:
    q, k, v = _randn(6, 2, 24), _randn(4, 2, 24, seed=1), _randn(4, 2, 16, seed=2)
    out, lse = _prefill(q, k, v, cu_seqlens_q=_cu([6]), cu_seqlens_k=_cu([4]))
    for i in range(6):
        for h in range(2):
            seen = slice(0, max(0, i - 1))  # position i - 2
            expected, _, expected_lse = brute_row(
                q[i, h].double().numpy(),
                k[seen, h].double().numpy(),
                v[seen, h].double().numpy(),
            )
            np.testing.assert_allclose(out[i, h].numpy(), expected, rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(lse[i, h].item(), expected_lse, rtol=1e-11)
    assert (lse[:2] == -torch.inf).all()


def test_prefill_row_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _randn(21, 2, 24), _randn(30, 2, 24, seed=1), _randn(30, 2, 16, seed=2)
    bounds = {"cu_seqlens_q": _cu([5, 16]), "cu_seqlens_k": _cu([9, 21])}
    whole = _prefill(*arguments, **bounds)
    monkeypatch.setattr("archkey.reference.mla._ROWS", 3)
    for a, b in zip(whole, _prefill(*arguments, **bounds), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_prefill_descales_and_strided_views() -> None:
    kv = _randn(9, 2, 40, seed=1).to(torch.float8_e4m3fn)  # one projection: k then v
    q = _randn(4, 2, 24).to(torch.float8_e4m3fn)
    bounds = {"cu_seqlens_q": _cu([4]), "cu_seqlens_k": _cu([9])}
    scaled = _prefill(
        q, kv[..., :24], kv[..., 24:], q_descale=2.0, k_descale=0.3, v_descale=1.7, **bounds
    )
    real = [2.0 * q.double(), 0.3 * kv[..., :24].double(), 1.7 * kv[..., 24:].double()]
    for a, b in zip(scaled, _prefill(*real, **bounds), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [0, 5])
def test_merge_equals_attention_over_the_union(tokens: int) -> None:
    q, k, v = (_randn(n, 3, 24, seed=n) for n in (tokens, 9, 10))
    v = v[:9]
    cu_q, halves = _cu([tokens]), ((0, 4), (4, 9))
    parts = [
        _prefill(q, k[a:b], v[a:b], cu_seqlens_q=cu_q, cu_seqlens_k=_cu([b - a]), causal=False)
        for a, b in halves
    ]
    whole = _prefill(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=_cu([9]), causal=False)
    merged = merge_attn_states(*parts[0], *parts[1], compute_dtype=torch.float64)
    for a, b in zip(merged, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("empty", [-math.inf, math.inf], ids=["minus_inf", "plus_inf"])
def test_merge_ignores_an_empty_half(empty: float) -> None:
    out_a, out_b = _randn(3, 2, 8), _randn(3, 2, 8, seed=1)
    lse_a, lse_b = _randn(3, 2, seed=2), _randn(3, 2, seed=3)
    lse_a[0], out_a[0] = empty, torch.nan  # an empty half may never have been written
    lse_b[1], out_b[1] = empty, torch.nan
    lse_a[2], lse_b[2] = empty, empty
    out, lse = merge_attn_states(out_a, lse_a, out_b, lse_b)
    torch.testing.assert_close(out[0], out_b[0], rtol=0, atol=0)
    torch.testing.assert_close(out[1], out_a[1], rtol=0, atol=0)
    assert (out[2] == 0).all()
    torch.testing.assert_close(lse[0], lse_b[0])
    torch.testing.assert_close(lse[1], lse_a[1])
    assert (lse[2] == -torch.inf).all()

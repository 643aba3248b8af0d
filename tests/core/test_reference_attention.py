# SPDX-License-Identifier: Apache-2.0
"""The unified attention reference against loops over single rows in float64 numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.core._attention_batch import Batch, make_batch

from archkey.reference import attention as reference


def loop(
    batch: Batch,
    *,
    softmax_scale: float = 0.2,
    window_left: int = -1,
    softcap: float = 0.0,
    descales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    alibi_slopes: Any = None,
    qq_bias: Any = None,
    sinks: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One query row of one head at a time, over a Python list of visible keys."""
    q, k, v = (x.double().numpy() for x in (batch.q, batch.k, batch.v))
    h, hk = q.shape[1], k.shape[2]
    out, lse = np.zeros((len(q), h, v.shape[3])), np.full((len(q), h), -math.inf)
    starts, table = batch.cu_seqlens_q.tolist(), batch.block_table.tolist()
    for i, kv_len in enumerate(batch.seqused_k.tolist()):
        q_len = starts[i + 1] - starts[i]
        for t in range(q_len):
            p = kv_len - q_len + t
            for head in range(h):
                logits, rows = [], []
                for j in range(kv_len):
                    if j > p or (window_left >= 0 and p - j > window_left):
                        continue
                    at = (table[i][j // k.shape[1]], j % k.shape[1], head // (h // hk))
                    s = softmax_scale * descales[0] * descales[1] * (q[starts[i] + t, head] @ k[at])
                    if softcap:
                        s = softcap * math.tanh(s / softcap)
                    if alibi_slopes is not None:
                        s += float(alibi_slopes[head]) * (j - p)
                    if qq_bias is not None and j >= kv_len - q_len:
                        s += float(qq_bias[t, j - (kv_len - q_len)])
                    logits.append(s)
                    rows.append(descales[2] * v[at])
                sink = -math.inf if sinks is None else float(sinks[head])
                top = max([*logits, sink])
                if top == -math.inf:
                    continue
                total = math.fsum(math.exp(s - top) for s in [*logits, sink])
                lse[starts[i] + t, head] = top + math.log(total)
                for s, row in zip(logits, rows, strict=True):
                    out[starts[i] + t, head] += math.exp(s - top) / total * row
    return out, lse


def check(batch: Batch, want: tuple[np.ndarray, np.ndarray], **options: Any) -> None:
    """float64 equals the loop; float32 is near it; empty rows are exact in both."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        out, lse = batch.run(compute_dtype=dtype, **options)
        np.testing.assert_allclose(out, want[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lse, want[1], rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(out[np.isneginf(want[1])], 0)


LENGTHS = {
    "decode": [(1, 13), (1, 1), (1, 8)],
    "prefill": [(7, 7), (5, 5)],
    "chunked": [(5, 18), (3, 11)],
    "mixed": [(1, 9), (6, 17), (1, 1), (4, 4)],
    "queries_beyond_keys": [(7, 4), (2, 9)],
    "empty_queries": [(0, 5), (3, 7), (0, 0)],
    "empty_keys": [(1, 0), (4, 0), (2, 6)],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (5, 1)], ids=str)
def test_equals_a_loop(lengths: list[tuple[int, int]], heads: tuple[int, int]) -> None:
    batch = make_batch(lengths, heads)
    check(batch, loop(batch))


@pytest.mark.parametrize("page_size", [1, 4, 16], ids=lambda n: f"page{n}")
@pytest.mark.parametrize("dims", [(16, 16), (24, 8)], ids=str)
def test_page_sizes_and_dims(page_size: int, dims: tuple[int, int]) -> None:
    batch = make_batch([(3, 18), (1, 5)], dims=dims, page_size=page_size)
    check(batch, loop(batch))


@pytest.mark.parametrize("window_left", [0, 1, 5, 100])
@pytest.mark.parametrize("name", ["mixed", "queries_beyond_keys"])
def test_window(window_left: int, name: str) -> None:
    batch = make_batch(LENGTHS[name])
    check(batch, loop(batch, window_left=window_left), window_left=window_left)


def test_window_does_not_read_keys_that_no_row_sees() -> None:
    batch = make_batch([(2, 16)], page_size=4)
    want = loop(batch, window_left=4)
    for page in batch.block_table[0, :2].tolist():  # the rows at 14 and 15 see keys from 10 on
        batch.k[page], batch.v[page] = torch.nan, torch.nan
    check(batch, want, window_left=4)


def test_queries_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([(9, 14), (3, 3)])
    monkeypatch.setattr(reference, "QUERY_ROWS", 4)
    check(batch, loop(batch))
    check(batch, loop(batch, window_left=2), window_left=2)


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_softcap(softcap: float) -> None:
    batch = make_batch(LENGTHS["mixed"])
    check(batch, loop(batch, softcap=softcap), softcap=softcap)


def test_softcap_of_huge_logits_is_finite() -> None:  # exp(2 s / c) overflows, vllm#56579
    batch = make_batch([(2, 6)])
    out, lse = batch.run(softcap=1.0, softmax_scale=1e6, compute_dtype=torch.float32)
    assert np.isfinite(out).all() and np.isfinite(lse).all()


def test_alibi_counts_from_the_query() -> None:
    batch = make_batch(LENGTHS["mixed"])
    slopes = torch.tensor([0.5, 0.25, 0.125, 1.0])
    check(batch, loop(batch, alibi_slopes=slopes), alibi_slopes=slopes)


@pytest.mark.parametrize("name", ["mixed", "queries_beyond_keys"])
def test_query_bias(name: str) -> None:
    batch = make_batch(LENGTHS[name])
    bias = torch.randn(9, 9, generator=torch.Generator().manual_seed(1))
    check(batch, loop(batch, qq_bias=bias), qq_bias=bias)


def test_query_bias_as_a_tree_mask() -> None:
    batch = make_batch([(3, 8)])
    bias = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, -torch.inf, 0]])  # token 2 skips token 1
    check(batch, loop(batch, qq_bias=bias), qq_bias=bias)


@pytest.mark.parametrize("name", ["mixed", "queries_beyond_keys", "empty_keys"])
def test_sinks_count_in_the_denominator_and_in_lse(name: str) -> None:
    batch = make_batch(LENGTHS[name])
    sinks = torch.tensor([0.3, -2.0, 40.0, -torch.inf])
    want = loop(batch, sinks=sinks)
    out, lse = batch.run(sinks=sinks)
    np.testing.assert_allclose(out, want[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lse, want[1], rtol=1e-12)
    unseen = np.isneginf(loop(batch)[1])
    np.testing.assert_array_equal(out[unseen], 0)
    np.testing.assert_allclose(lse[unseen], sinks.double().expand(lse.shape)[unseen])


def test_infinite_sink_takes_everything() -> None:
    batch = make_batch([(2, 5)])
    out, lse = batch.run(sinks=torch.full((4,), torch.inf))
    assert (out == 0).all() and np.isposinf(lse).all()


def test_all_options_together() -> None:
    batch = make_batch(LENGTHS["mixed"], heads=(8, 2))
    options: dict[str, Any] = {
        "window_left": 6,
        "softcap": 2.0,
        "alibi_slopes": torch.linspace(0.1, 0.8, 8),
        "qq_bias": torch.randn(6, 6, generator=torch.Generator().manual_seed(2)),
        "sinks": torch.linspace(-1, 1, 8),
    }
    check(batch, loop(batch, **options), **options)


@pytest.mark.parametrize("kind", ["float", "scalar", "one_element", "per_head"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3fnuz"])
def test_descales(kind: str, dtype: str) -> None:
    batch = make_batch(LENGTHS["mixed"], dtype=getattr(torch, dtype))
    values = (0.75, 0.5, 0.25)
    given: list[Any] = list(values)
    if kind != "float":
        shape = {"scalar": (), "one_element": (1,), "per_head": (4, 2)}[kind]
        given = [torch.full(shape, x) for x in values]
    names = ("q_descale", "k_descale", "v_descale")
    check(batch, loop(batch, descales=values), **dict(zip(names, given, strict=True)))


def test_descales_belong_to_sequence_and_kv_head() -> None:
    batch = make_batch([(2, 7), (1, 5)], heads=(4, 2))
    scale = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    out, lse = batch.run(q_descale=scale, k_descale=0.5, v_descale=scale.flip(1))
    for i, rows in ((0, slice(0, 2)), (1, slice(2, 3))):
        for kv_head, heads in ((0, slice(0, 2)), (1, slice(2, 4))):
            factors = (float(scale[i, kv_head]), 0.5, float(scale[i, 1 - kv_head]))
            want = loop(batch, descales=factors)
            np.testing.assert_allclose(out[rows, heads], want[0][rows, heads], rtol=1e-12)
            np.testing.assert_allclose(lse[rows, heads], want[1][rows, heads], rtol=1e-12)


def test_output_scale_divides_and_saturates() -> None:
    batch = make_batch([(3, 6)])
    plain, lse = batch.run()
    for scale in (0.01, torch.tensor(0.01)):
        scaled, same = batch.run(output_scale=scale, out_limit=50.0)
        np.testing.assert_allclose(scaled, np.clip(plain / 0.01, -50, 50), rtol=1e-7)
        np.testing.assert_array_equal(same, lse)
    assert np.abs(plain / 0.01).max() > 50


def test_rows_past_the_last_sequence_are_written() -> None:
    batch = make_batch([(2, 5)], padding_rows=3)
    out, lse = batch.run()
    assert (out[2:] == 0).all() and np.isneginf(lse[2:]).all()


def test_equals_torch_sdpa() -> None:
    batch = make_batch([(6, 6)], heads=(8, 2), page_size=1)
    table = batch.block_table[0, :6].long()
    q, k, v = batch.q, batch.k[table, 0], batch.v[table, 0]
    want = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1),
        is_causal=True, scale=0.2, enable_gqa=True,
    )  # fmt: skip
    np.testing.assert_allclose(batch.run()[0], want.transpose(0, 1).numpy(), rtol=1e-12)


def test_strided_inputs_and_no_mutation() -> None:
    batch = make_batch(LENGTHS["mixed"])
    want = batch.run()
    hnd = Batch(
        torch.stack([batch.q, batch.q], 2)[:, :, 0],
        batch.k.transpose(1, 2).contiguous().transpose(1, 2),
        batch.v.transpose(1, 2).contiguous().transpose(1, 2),
        batch.cu_seqlens_q.long(),
        batch.seqused_k,
        torch.cat([batch.block_table, batch.block_table], 1)[:, : batch.block_table.shape[1]],
    )
    before = [x.clone() for x in vars(hnd).values()]
    for got, expected in zip(hnd.run(sinks=None), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    for old, new in zip(before, vars(hnd).values(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)

# SPDX-License-Identifier: Apache-2.0
"""The gate operators and the layout of chunks on the CPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.core._kda import BF16, CU, TYPE, VALUE

from archkey.ops.kda_gate import chunk_layout, kda_gate, kda_gate_chunk_cumsum
from archkey.reference import kda as reference


def test_gates() -> None:
    g, a_log, bias = torch.randn(1, 100, 4, 16), torch.randn(4), torch.randn(4, 16)
    (want,) = reference.kda_gate(g, a_log, bias)
    assert torch.equal(kda_gate(g, a_log, bias), want)
    out = torch.empty_like(g, dtype=BF16)
    assert kda_gate(g[0], a_log, bias, output_dtype=BF16, out=out[0]).dtype == BF16
    assert torch.equal(out, want.to(BF16))
    sums = kda_gate_chunk_cumsum(g, a_log, 32, dt_bias=bias, unit="log2")
    torch.testing.assert_close(sums[0, 32:40], (want[0, 32:40] / 0.6931471805599453).cumsum(0))
    packed = kda_gate_chunk_cumsum(g, a_log, 32, dt_bias=bias, cu_seqlens=CU)
    torch.testing.assert_close(packed[0, 30:40], want[0, 30:40].cumsum(0))
    assert (packed[0, 66:] == 0).all()


def test_chunk_layout_keeps_the_sequences_numbers() -> None:
    cu = torch.tensor([0, 0, 100, 100, 200, 300, 300])
    pairs, offsets = chunk_layout(cu, 300, 64)
    assert pairs.tolist() == [[n, c] for n in (1, 3, 4) for c in range(2)]  # sglang#24271
    assert offsets.tolist() == [0, 0, 2, 2, 4, 6, 6]
    assert pairs.dtype == offsets.dtype == torch.int32
    padded, same = chunk_layout(cu, 300, 64, rows=9)
    assert padded[:6].equal(pairs) and (padded[6:] == -1).all() and same.equal(offsets)


@pytest.mark.parametrize("lengths", [[1] * 9, [64, 64], [65, 0, 1], [0], [3]], ids=str)
def test_chunk_layout_without_the_host_is_padded(lengths: list[int]) -> None:
    """On a device the number of chunks is unknown; a meta tensor stands for one here."""
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    exact, offsets = chunk_layout(cu, sum(lengths), 64)
    pairs, _ = chunk_layout(cu.to("meta"), sum(lengths), 64)
    assert pairs.shape[0] >= exact.shape[0] == int(offsets[-1])
    assert pairs.shape[0] == max(-(-sum(lengths) // 64) + len(lengths) - 1, 0)


def test_gate_refusals() -> None:
    g, a_log = torch.zeros(1, 8, 4, 16), torch.zeros(4)
    bad: list[tuple[type[Exception], str, Any]] = [
        (VALUE, "[..., HV, K]", lambda: kda_gate(torch.zeros(4), a_log)),
        (VALUE, "A_log must be given", lambda: kda_gate(g, None)),
        (VALUE, "out must be", lambda: kda_gate(g, a_log, output_dtype=BF16, out=g.clone())),
        (VALUE, "chunk_size must be", lambda: kda_gate_chunk_cumsum(g, a_log, 16)),
        (VALUE, "unit must be", lambda: kda_gate_chunk_cumsum(g, a_log, unit="e")),
        (TYPE, "g must be", lambda: kda_gate(g.int(), a_log)),
    ]
    for error, text, call in bad:
        with pytest.raises(error, match=re.escape(text)):
            call()

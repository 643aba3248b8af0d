# SPDX-License-Identifier: Apache-2.0
"""chunk_kda, fused_recurrent_kda and kda_packed_decode on the CPU: results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._kda import BF16, BOTH, CU, states, tokens

from archkey.ops.kda import chunk_kda, fused_recurrent_kda, kda_packed_decode
from archkey.ops.kda_gate import kda_gate
from archkey.reference import kda as reference


@BOTH
def test_outputs_are_made_or_written_in_place(function: Any) -> None:
    x = tokens(2, 20)
    want, last = reference.fused_recurrent_kda(**x, initial_state=states(2))
    o, final = function(**x, initial_state=states(2), output_final_state=True)
    assert o.dtype == BF16 and final.dtype == torch.float32
    torch.testing.assert_close(o, want.to(BF16))
    torch.testing.assert_close(final, last)
    assert function(**x)[1] is None

    out, buffer = torch.full_like(x["v"], torch.nan), states(2).to(BF16)
    o2, final2 = function(**x, initial_state=buffer, out=out, final_state=buffer)
    assert o2 is out and final2 is buffer
    want, last = reference.fused_recurrent_kda(**x, initial_state=states(2).to(BF16))
    torch.testing.assert_close(out, want.to(BF16))
    torch.testing.assert_close(buffer, last.to(BF16))


@BOTH
def test_out_may_be_v(function: Any) -> None:
    x = tokens()
    want, _ = function(**x)
    o, _ = function(**x, out=x["v"])
    assert o is x["v"] and torch.equal(o, want)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("indices", [torch.int32, torch.int64], ids=str)
def test_pool_is_updated_in_place(function: Any, dtype: torch.dtype, indices: torch.dtype) -> None:
    x = tokens()
    pool = states(6, dtype, v_first=True)
    before = pool.clone()
    slots = torch.tensor([[4], [2], [-1]], dtype=indices)
    o, final = function(
        **x, initial_state=pool, initial_state_indices=slots, cu_seqlens=CU, state_v_first=True
    )
    assert final is pool
    want, last = reference.fused_recurrent_kda(
        **x,
        initial_state=before,
        state_indices=slots,
        cu_seqlens=CU,
        state_v_first=True,
        inplace_final_state=True,
    )
    torch.testing.assert_close(o, want.to(BF16))
    torch.testing.assert_close(pool, last.to(dtype))
    assert torch.equal(pool[[0, 1, 2, 3, 5]], before[[0, 1, 2, 3, 5]])
    assert not torch.equal(pool[4], before[4])
    assert (o[:, 30:] == 0).all()


def test_recurrent_slots_are_only_read_unless_in_place() -> None:
    x, pool = tokens(), states(5)
    slots = torch.tensor([3, 0, 1])
    common = {"initial_state": pool, "ssm_state_indices": slots, "cu_seqlens": CU}
    o, none = fused_recurrent_kda(**x, **common)
    assert none is None and torch.equal(pool, states(5))
    o2, final = fused_recurrent_kda(**x, **common, output_final_state=True)
    assert torch.equal(o, o2) and final.shape == (3, 4, 16, 8) and torch.equal(pool, states(5))
    assert torch.equal(final[1], pool[0])  # an empty sequence keeps its state
    _, same = fused_recurrent_kda(**x, **common, inplace_final_state=True)
    assert same is pool
    torch.testing.assert_close(pool[[3, 0, 1]], final)


def test_recurrent_in_place_without_slots() -> None:
    x, given = tokens(2, 3), states(2)
    _, final = fused_recurrent_kda(**x, initial_state=given, inplace_final_state=True)
    want = fused_recurrent_kda(**x, initial_state=states(2), output_final_state=True)[1]
    assert final is given and torch.equal(given, want)


def test_speculative_slots() -> None:
    x, pool = tokens(2, 3), states(8)
    slots = torch.tensor([[0, 1, 2], [5, 6, 7]], dtype=torch.int32)
    accepted = torch.tensor([2, 1], dtype=torch.int32)
    o, final = fused_recurrent_kda(
        **x,
        initial_state=pool,
        ssm_state_indices=slots,
        num_accepted_tokens=accepted,
        inplace_final_state=True,
    )
    assert final is pool
    for n, first in ((0, 1), (1, 5)):
        state = states(8)[first : first + 1]
        for t in range(3):
            part = {name: y[n : n + 1, t : t + 1] for name, y in x.items()}
            want, state = fused_recurrent_kda(**part, initial_state=state, output_final_state=True)
            torch.testing.assert_close(pool[slots[n, t]], state[0])
            torch.testing.assert_close(o[n, t], want[0, 0])


@pytest.mark.parametrize("on_host", [False, True], ids=["device_lengths", "host_lengths"])
def test_states_of_chunks_and_snapshots(on_host: bool) -> None:
    x = tokens(1, 200)
    cu = torch.tensor([0, 100, 100, 190], dtype=torch.int32)
    track = torch.full((3, 4, 16, 8), 7.0)
    o, final, h = chunk_kda(
        **x,
        cu_seqlens=cu,
        cu_seqlens_cpu=cu if on_host else None,
        chunk_size=32,
        output_final_state=True,
        track_state=track,
        track_chunk_idx=torch.tensor([3, 0, 9], dtype=torch.int32),
        return_intermediate_states=True,
    )
    assert h.dtype == BF16 and h.shape == (1, 7, 4, 16, 8)
    part = {name: y[:, :96] for name, y in x.items()}
    _, want = chunk_kda(**part, output_final_state=True)
    torch.testing.assert_close(track[0], want[0])
    torch.testing.assert_close(h[0, 3], want[0].to(BF16))
    assert (track[1:] == 7).all() and (h[0, [0, 4]] == 0).all()
    assert (o[:, 190:] == 0).all() and final.shape == (3, 4, 16, 8)


def test_activations_in_the_kernel() -> None:
    x = tokens(g=torch.randn(1, 70, 4, 16), beta=torch.randn(1, 70, 4))
    a_log, bias = torch.randn(1, 1, 4, 1), torch.randn(64)
    options = {
        "A_log": a_log,
        "dt_bias": bias,
        "lower_bound": -5.0,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "use_qk_l2norm_in_kernel": True,
        "allow_neg_eigval": True,
    }
    want, _ = reference.fused_recurrent_kda(**x, **options, scale=0.5)
    for function in (chunk_kda, fused_recurrent_kda):
        o, _ = function(**x, **options, scale=0.5, safe_gate=True)
        torch.testing.assert_close(o, want.to(BF16), rtol=2e-2, atol=1e-3)
    outside = dict(x, g=kda_gate(x["g"], a_log, bias, -5.0), beta=2 * x["beta"].sigmoid())
    o, _ = chunk_kda(**outside, use_qk_l2norm_in_kernel=True, scale=0.5)
    torch.testing.assert_close(o, want.to(BF16), rtol=2e-2, atol=1e-3)


@BOTH
def test_empty_batches(function: Any) -> None:
    o, final = function(**tokens(0, 5), output_final_state=True)
    assert o.shape == (0, 5, 4, 8) and final.shape == (0, 4, 16, 8)
    given = states(2)
    cu = torch.zeros(3, dtype=torch.int32)
    o, final = function(**tokens(1, 0), initial_state=given, output_final_state=True, cu_seqlens=cu)
    assert o.shape == (1, 0, 4, 8) and torch.equal(final, given)
    o, _ = function(**tokens(1, 3), cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert (o == 0).all()


def test_packed_decode() -> None:
    gen = torch.Generator().manual_seed(3)
    mixed = torch.randn(3, 2 * 2 * 16 + 4 * 8, generator=gen).to(BF16)
    a = torch.randn(3, 64, generator=gen).to(BF16)
    b = torch.randn(3, 4, generator=gen).to(BF16)
    pool, slots = states(5, v_first=True), torch.tensor([4, -1, 0], dtype=torch.int32)
    options = {"A_log": torch.randn(4, generator=gen), "dt_bias": None, "scale": None}
    out = torch.full((3, 1, 4, 8), torch.nan, dtype=BF16)
    want, last = reference.kda_packed_decode(
        mixed, a, b, initial_state=pool, ssm_state_indices=slots, **options
    )
    got = kda_packed_decode(
        mixed, a, b, initial_state=pool, ssm_state_indices=slots, out=out, **options
    )
    assert got is out and torch.equal(out, want.to(BF16)) and torch.equal(pool, last)
    assert (out[1] == 0).all()

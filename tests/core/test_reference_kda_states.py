# SPDX-License-Identifier: Apache-2.0
"""States of the KDA references: pools, slots of each token, chunks, packed decode; and gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.core._kda_loop import F64, both, close, cumulative, loop, make

from archkey.reference import kda as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("v_first", [False, True], ids=["KV", "VK"])
def test_pool_is_read_and_written_by_slot(dtype: torch.dtype, v_first: bool) -> None:
    lengths = [5, 20, 0, 7]
    cu = cumulative(lengths)
    x = make((1, 32))
    gen = torch.Generator().manual_seed(2)
    pool = torch.randn(9, 4, *((6, 8) if v_first else (8, 6)), generator=gen).to(dtype)
    pool[[0, 2, 4, 5, 6, 8]] = torch.nan  # slots of nobody
    pool[[2]] = 1e30
    slots = torch.tensor([7, -1, 3, 1], dtype=torch.int32)
    before = pool.clone()
    states = np.stack(
        [
            (pool[max(s, 1)].mT if v_first else pool[max(s, 1)]).double().numpy()
            for s in slots.tolist()
        ]
    )
    want = loop(x, states, list(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)))
    want[:, 5:25] = 0
    options = {
        "initial_state": pool,
        "state_indices": slots,
        "cu_seqlens": cu,
        "state_v_first": v_first,
    }
    for o, final in both(x, **options, inplace_final_state=True):
        close(o, want)
        assert final.shape == pool.shape
        got = final.mT if v_first else final
        for n, s in enumerate(slots.tolist()):
            if s >= 0:
                close(got[s], states[n])
        rest = [s for s in range(9) if s not in (7, 1)]
        torch.testing.assert_close(
            final[rest].to(dtype), before[rest], rtol=0, atol=0, equal_nan=True
        )
    torch.testing.assert_close(pool, before, rtol=0, atol=0, equal_nan=True)

    o, last = reference.fused_recurrent_kda(**x, **options, compute_dtype=F64)  # pool only read
    close(o, want)
    assert last.shape == (4, *pool.shape[1:])
    got = last.mT if v_first else last
    assert (got[1] == 0).all()
    for n in (0, 2, 3):
        close(got[n], states[n])


def test_speculative_decoding_keeps_a_state_for_each_token() -> None:
    """Slots [N, 1 + S]: start from the last accepted token's, store after every token."""
    x = make((1, 10), (2, 2), (8, 8))
    cu = torch.tensor([0, 4, 4, 7, 10])
    slots = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [-1, 8, 9, 10], [11, -1, 12, 13]])
    accepted = torch.tensor([3, 2, 1, 0], dtype=torch.int32)  # 0 counts as 1
    gen = torch.Generator().manual_seed(4)
    pool = torch.randn(16, 2, 8, 8, generator=gen)
    o, final = reference.fused_recurrent_kda(
        **x,
        initial_state=pool,
        state_indices=slots,
        num_accepted_tokens=accepted,
        cu_seqlens=cu,
        inplace_final_state=True,
        compute_dtype=F64,
    )
    want = pool.double().numpy().copy()
    want_o = np.zeros(o.shape)
    for n, first in ((0, 2), (3, 11)):
        state = pool[first].double().numpy().copy()[None]
        for t in range(int(cu[n]), int(cu[n + 1])):
            want_o[0, t] = loop(x, state, [(t, t + 1)])[0, t]
            slot = int(slots[n, t - int(cu[n])])
            if slot >= 0:
                want[slot] = state[0]
    close(o, want_o)
    close(final, want)
    assert torch.equal(final[13], pool[13].double())  # its token did not come


def test_one_column_of_slots_is_the_same_as_a_vector() -> None:
    x = make((3, 4))
    pool = torch.randn(5, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    slots = torch.tensor([4, 0, 2])
    options = {"initial_state": pool, "inplace_final_state": True}
    vector = both(x, state_indices=slots, **options)
    column = both(x, state_indices=slots[:, None], **options)
    for a, b in zip(vector, column, strict=True):
        for got, want in zip(a, b, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("chunk_size", [32, 64])
@pytest.mark.parametrize("v_first", [False, True], ids=["KV", "VK"])
def test_states_before_each_chunk(chunk_size: int, v_first: bool) -> None:
    lengths = [70, 0, 1, 64]
    cu = cumulative(lengths)
    x = make((1, 135))
    counts = [-(-n // chunk_size) for n in lengths]
    pairs = [(n, c) for n, count in enumerate(counts) for c in range(count)]
    padded = torch.tensor([*pairs, (-1, -1), (-1, -1)], dtype=torch.int32)
    state = (4, 6, 8) if v_first else (4, 8, 6)
    given = torch.randn(4, *state, generator=torch.Generator().manual_seed(1))
    track = torch.full((4, *state), 7.0)
    wanted = torch.tensor([1, 0, 1, 0], dtype=torch.int32)  # 1 is no chunk of the third sequence
    for indices in (None, padded):
        _, _, h, tracked = reference.chunk_kda(
            **x,
            initial_state=given,
            cu_seqlens=cu,
            chunk_indices=indices,
            track_state=track,
            track_chunk_idx=wanted,
            state_v_first=v_first,
            chunk_size=chunk_size,
            return_intermediate_states=True,
        )
        assert h is not None and tracked is not None
        assert h.shape == (1, len(pairs) + (0 if indices is None else 2), *state)
        assert (h[0, len(pairs) :] == 0).all()
        for row, (n, chunk) in enumerate(pairs):
            start = int(cu[n])
            states = given[n : n + 1].double()
            states = (states.mT if v_first else states).numpy().copy()
            loop(x, states, [(start, start + chunk * chunk_size)])
            close(h[0, row].mT if v_first else h[0, row], states[0], 1e-6)
            if chunk == wanted[n]:
                assert torch.equal(tracked[n], h[0, row])
        assert (tracked[1] == 7).all() and (tracked[2] == 7).all() and (track == 7).all()


def test_states_before_each_chunk_of_a_batch() -> None:
    x = make((2, 65))
    _, _, h, _ = reference.chunk_kda(**x, return_intermediate_states=True)
    assert h is not None and h.shape == (2, 2, 4, 8, 6)
    states = np.zeros((2, 4, 8, 6))
    loop(x, states, [(0, 64), (65, 129)])
    close(h[:, 1], states, 1e-6)
    assert (h[:, 0] == 0).all()


def test_packed_decode_is_the_recurrence_of_one_token() -> None:
    gen = torch.Generator().manual_seed(6)
    batch, h, hv, kd, vd = 4, 2, 4, 8, 6
    mixed = torch.randn(batch, 2 * h * kd + hv * vd, generator=gen)
    a, b = torch.randn(batch, hv * kd, generator=gen), torch.randn(batch, hv, generator=gen)
    a_log, bias = torch.randn(hv, generator=gen), torch.randn(hv * kd, generator=gen)
    pool = torch.randn(6, hv, vd, kd, generator=gen)
    slots = torch.tensor([5, -1, 0, 3], dtype=torch.int32)
    out, final = reference.kda_packed_decode(
        mixed, a, b, a_log, bias, pool, slots, 0.3, -5.0, compute_dtype=F64
    )
    want_pool = pool.double().numpy().copy()
    want = np.zeros((batch, 1, hv, vd))
    for n, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        row = mixed[n].double().numpy()
        for head in range(hv):
            src = head // (hv // h) * kd
            q, k = row[src : src + kd], row[h * kd + src : h * kd + src + kd]
            q, k = (y / math.sqrt(float(y @ y) + 1e-6) for y in (q, k))
            v = row[2 * h * kd + head * vd : 2 * h * kd + (head + 1) * vd]
            part = slice(head * kd, (head + 1) * kd)
            x = a[n, part].double().numpy() + bias[part].double().numpy()
            gate = -5.0 / (1 + np.exp(-math.exp(float(a_log[head])) * x))
            state = want_pool[slot, head].T * np.exp(gate)[:, None]
            state = state + np.outer(k, v - state.T @ k) / (1 + math.exp(-float(b[n, head])))
            want_pool[slot, head] = state.T
            want[n, 0, head] = 0.3 * state.T @ q
    close(out, want)
    close(final, want_pool)


@pytest.mark.parametrize("unit", ["ln", "log2"])
@pytest.mark.parametrize("lower_bound", [None, -5.0], ids=str)
def test_gate_sums_start_anew_in_each_chunk(unit: str, lower_bound: float | None) -> None:
    gen = torch.Generator().manual_seed(7)
    raw = 20 * torch.randn(1, 150, 3, 5, generator=gen)
    a_log, bias = torch.randn(3, generator=gen), torch.randn(15, generator=gen)
    (gate,) = reference.kda_gate(raw, a_log, bias, lower_bound, compute_dtype=F64)
    assert (gate <= 0).all()
    cu = torch.tensor([0, 33, 33, 140])
    (got,) = reference.kda_gate_chunk_cumsum(
        raw, a_log, bias, cu, None, lower_bound, 32, unit, compute_dtype=F64
    )
    want = np.zeros((1, 150, 3, 5))
    for start, stop in ((0, 33), (33, 140)):
        total = np.zeros((3, 5))
        for t in range(start, stop):
            total = gate[0, t].numpy() + (total if (t - start) % 32 else 0)
            want[0, t] = total / (math.log(2) if unit == "log2" else 1)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


def test_gate_without_decay_rate() -> None:
    raw = torch.linspace(-30, 30, 40).reshape(5, 2, 4)
    (gate,) = reference.kda_gate(raw, None, None, -4.0, compute_dtype=F64)
    np.testing.assert_allclose(gate.numpy(), -4 / (1 + np.exp(-raw.double().numpy())), rtol=1e-12)


def test_bfloat16_inputs_are_computed_in_float32() -> None:
    x = make((1, 70), dtype=torch.bfloat16)
    o, final, _, _ = reference.chunk_kda(**x)
    want, last = reference.fused_recurrent_kda(**x, compute_dtype=F64)
    close(o, want.numpy(), 1e-6)
    close(final, last.numpy(), 1e-6)

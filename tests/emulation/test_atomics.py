# SPDX-License-Identifier: Apache-2.0
"""Atomics: lanes that meet at one address, what is returned, and what is out of range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.emulation.machine import LANE, run, wave
from tests.emulation.test_memory import address, resource, room

from archkey.conformance.emulation.faults import Fault

VALUE = np.random.default_rng(8).integers(-1000, 1000, 64)


def test_lanes_that_meet_follow_one_another() -> None:
    out = np.zeros(16, np.int32)
    place = LANE % 4 * 4
    on = wave(rooms=(room(out),), v1=VALUE, **address(out, place))
    run(on, "global_atomic_add v0, v[2:3], v1, off sc0")
    for n in range(4):
        mine = VALUE[n::4]
        assert out[n] == mine.sum()
        np.testing.assert_array_equal(on.i32[0][n::4], np.cumsum(mine) - mine)


@pytest.mark.parametrize(
    ("name", "want"),
    [("smax", VALUE.max()), ("smin", VALUE.min()), ("or", np.bitwise_or.reduce(VALUE))],
)
def test_without_a_result(name: str, want: int) -> None:
    out = np.full(1, 0 if name == "or" else VALUE[0], np.int32)
    on = wave(rooms=(room(out),), v1=VALUE, **address(out, LANE * 0))
    run(on, f"global_atomic_{name} v[2:3], v1, off")
    assert out[0] == want


def test_compare_and_swap() -> None:
    """v[4:5]: the new value, and what must be there. The first lane wins."""
    out = np.zeros(2, np.uint32)
    on = wave(rooms=(room(out),), v4=LANE + 10, v5=0, **address(out, LANE * 0))
    run(on, "global_atomic_cmpswap v0, v[2:3], v[4:5], off sc0")
    assert out.tolist() == [10, 0]
    assert on.u32[0].tolist() == [0] + [10] * 63


def test_buffers_and_packed_sums() -> None:
    out = np.zeros(64, np.float32)
    on = wave(rooms=(room(out),), v0=np.float32(1.5), v2=LANE % 8 * 4, **resource(out, 16))
    run(on, "buffer_atomic_add_f32 v0, v2, s[4:7], 0 offen")
    assert out.tolist() == [12.0] * 4 + [0.0] * 60  # past num_records nothing is added
    pair = torch.tensor([1.25, -3.0]).bfloat16()
    bits = int(pair.view(torch.int32)[0]) & 0xFFFFFFFF
    out[:] = 0
    on = wave(exec_mask=7, rooms=(room(out),), v1=bits, **address(out, LANE * 0))
    run(on, "global_atomic_pk_add_bf16 v[2:3], v1, off")
    assert torch.from_numpy(out[:1]).view(torch.bfloat16).tolist() == [3.75, -9.0]


def test_an_atomic_outside_is_a_fault() -> None:
    out = np.zeros(4, np.uint32)
    on = wave(rooms=(room(out),), v1=1, **address(out, LANE * 4))
    with pytest.raises(Fault, match="4 bytes past the end of data"):
        run(on, "global_atomic_add v[2:3], v1, off")

# SPDX-License-Identifier: Apache-2.0
"""Values that move between lanes: the tables are written out from the ISA reference."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulation.machine import LANE, one, run, wave

NONE = -1
VALUE = (LANE + 100).astype(np.uint32)
OLD = (LANE + 1000).astype(np.uint32)


def in_rows(*pattern: int) -> list[int]:
    """The lanes of one row of 16, repeated for all four."""
    return [NONE if at == NONE else 16 * row + at for row in range(4) for at in pattern]


ROW = list(range(16))
PATTERNS = {
    "quad_perm:[1,0,3,2]": in_rows(*(at ^ 1 for at in ROW)),
    "quad_perm:[0,0,0,0]": in_rows(*(at - at % 4 for at in ROW)),
    "row_shr:1": in_rows(NONE, *ROW[:15]),
    "row_shr:8": in_rows(*[NONE] * 8, *ROW[:8]),
    "row_shl:4": in_rows(*ROW[4:], *[NONE] * 4),
    "row_ror:4": in_rows(*ROW[12:], *ROW[:12]),
    "row_mirror": in_rows(*ROW[::-1]),
    "row_half_mirror": in_rows(*ROW[7::-1], *ROW[:7:-1]),
    "row_newbcast:5": in_rows(*[5] * 16),
    "row_bcast:15": [NONE] * 16 + [15] * 16 + [31] * 16 + [47] * 16,
    "row_bcast:31": [NONE] * 32 + [31] * 32,
    "wave_shr:1": [NONE, *range(63)],
    "wave_shl:1": [*range(1, 64), NONE],
    "wave_ror:1": [63, *range(63)],
    "wave_rol:1": [*range(1, 64), 0],
}


@pytest.mark.parametrize("control", PATTERNS)
def test_dpp(control: str) -> None:
    lanes = PATTERNS[control]
    kept = [OLD[n] if at == NONE else VALUE[at] for n, at in enumerate(lanes)]
    zero = [0 if at == NONE else VALUE[at] for at in lanes]
    tail = "row_mask:0xf bank_mask:0xf"
    line = f"v_mov_b32_dpp v0, v1 {control} {tail}"
    assert one(line, v0=OLD, v1=VALUE).tolist() == kept
    assert one(f"{line} bound_ctrl:1", v0=OLD, v1=VALUE).tolist() == zero


def test_dpp_writes_some_rows_and_banks() -> None:
    line = "v_add_u32_dpp v0, v1, v2 quad_perm:[0,1,2,3] row_mask:0xa bank_mask:0x3"
    found = one(line, v0=OLD, v1=VALUE, v2=VALUE)
    written = ((LANE // 16) % 2 == 1) & (LANE % 16 < 8)
    np.testing.assert_array_equal(found, np.where(written, 2 * VALUE, OLD))


def test_dpp_reads_nothing_from_lanes_that_do_not_work() -> None:
    odd = 0xAAAAAAAAAAAAAAAA
    line = "v_mov_b32_dpp v0, v1 row_shr:1 row_mask:0xf bank_mask:0xf"
    on = run(wave(exec_mask=odd, v0=OLD, v1=VALUE), line)
    np.testing.assert_array_equal(on.u32[0], OLD)
    on = run(wave(exec_mask=odd, v0=OLD, v1=VALUE), f"{line} bound_ctrl:1")
    np.testing.assert_array_equal(on.u32[0], np.where(LANE % 2, 0, OLD))


def test_a_sum_over_the_wave() -> None:
    """The sequence that LLVM writes; the total is in the last lane."""
    tail = "row_mask:0xf bank_mask:0xf bound_ctrl:1"
    on = wave(v0=VALUE.astype(np.float32))
    for by in (8, 4, 2, 1):
        run(on, f"v_add_f32_dpp v0, v0, v0 row_shr:{by} {tail}")
    run(on, "v_mov_b32_e32 v1, v0")
    run(on, "v_mov_b32_dpp v1, v1 row_bcast:15 row_mask:0xa bank_mask:0xf bound_ctrl:1")
    run(on, "v_add_f32_e32 v0, v0, v1")
    run(on, f"v_add_f32_dpp v0, v0, v0 row_bcast:31 {tail}", "v_readlane_b32 s0, v0, 63")
    assert np.array(on.s[0], np.uint32).view(np.float32) == VALUE.sum()


SWIZZLES = {
    "offset:swizzle(SWAP,16)": [n ^ 16 for n in range(64)],
    "offset:swizzle(REVERSE,8)": [n ^ 7 for n in range(64)],
    "offset:swizzle(BROADCAST,4,2)": [n // 4 * 4 + 2 for n in range(64)],
    "offset:swizzle(QUAD_PERM,1,0,3,2)": [n ^ 1 for n in range(64)],
    'offset:swizzle(BITMASK_PERM,"01pip")': [
        n & 32 | 8 | n & 4 | (n & 2 ^ 2) | n & 1 for n in range(64)
    ],
    "offset:0x401f": [n ^ 16 for n in range(64)],
    "offset:0x80b1": [n ^ 1 for n in range(64)],
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_swizzle(pattern: str) -> None:
    found = one(f"ds_swizzle_b32 v0, v1 {pattern}", v1=VALUE)
    assert found.tolist() == [VALUE[at] for at in SWIZZLES[pattern]]


def test_permutes() -> None:
    other = np.random.default_rng(1).permutation(64).astype(np.uint32)
    pulled = one("ds_bpermute_b32 v0, v2, v1", v1=VALUE, v2=4 * other)
    np.testing.assert_array_equal(pulled, VALUE[other])
    pushed = one("ds_permute_b32 v0, v2, v1", v1=VALUE, v2=4 * other)
    np.testing.assert_array_equal(pushed[other], VALUE)
    shifted = one("ds_bpermute_b32 v0, v2, v1 offset:4", v1=VALUE, v2=4 * LANE)
    np.testing.assert_array_equal(shifted, np.roll(VALUE, -1))


@pytest.mark.parametrize("size", [16, 32])
def test_swaps_of_lanes(size: int) -> None:
    """The upper half of the first goes to the lower half of the second, and back."""
    line = f"v_permlane{size}_swap_b32_e32 v0, v1"
    on = run(wave(v0=OLD, v1=VALUE), line, target="gfx950")
    upper = LANE // size % 2 == 1
    np.testing.assert_array_equal(on.u32[0], np.where(upper, np.roll(VALUE, size), OLD))
    np.testing.assert_array_equal(on.u32[1], np.where(upper, VALUE, np.roll(OLD, -size)))


def test_single_lanes() -> None:
    on = wave(exec_mask=0xF0, v1=VALUE, v2=OLD, s3=5)
    run(on, "v_readfirstlane_b32 s0, v1", "v_readlane_b32 s1, v1, s3", "v_writelane_b32 v2, s1, 9")
    assert on.s[:2] == [104, 105]
    assert on.u32[2][9] == 105
    assert (np.delete(on.u32[2], 9) == np.delete(OLD, 9)).all()


def test_lanes_below() -> None:
    on = run(
        wave(s0=0xFFFFFFFF, s1=0x0000FFFF),
        "v_mbcnt_lo_u32_b32 v0, s0, 0",
        "v_mbcnt_hi_u32_b32 v0, s1, v0",
    )
    np.testing.assert_array_equal(on.u32[0], np.minimum(LANE, 48))

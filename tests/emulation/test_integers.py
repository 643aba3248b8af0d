# SPDX-License-Identifier: Apache-2.0
"""Instructions on integers, against Python's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.emulation.machine import LANE, one, run, wave

RANDOM = np.random.default_rng(11)
A, B, C = (RANDOM.integers(0, 1 << 32, 64, dtype=np.uint32) for _ in range(3))
A[:6] = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678]
B[3:9] = [0, 1, 31, 32, 0x80000000, 0xFFFFFFFF]
M = 0xFFFFFFFF


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def reverse(value: int) -> int:
    return int(f"{value:032b}"[::-1], 2)


def perm(a: int, b: int, selector: int) -> int:
    """By the table of V_PERM_B32: 0 to 3 of b, 4 to 7 of a, 8 to 11 signs, 12 zero, more ones."""
    pool = [*b.to_bytes(4, "little"), *a.to_bytes(4, "little")]
    pool += [0xFF * (pool[n] >> 7) for n in (1, 3, 5, 7)] + [0] + [0xFF] * 243
    return int.from_bytes(bytes(pool[s] for s in selector.to_bytes(4, "little")), "little")


ROWS: dict[str, Callable[[int, int, int], int]] = {
    "v_add_u32_e32 v0, v1, v2": lambda a, b, c: a + b,
    "v_sub_u32_e32 v0, v1, v2": lambda a, b, c: a - b,
    "v_subrev_u32_e32 v0, v1, v2": lambda a, b, c: b - a,
    "v_sub_u32_e64 v0, v1, v2 clamp": lambda a, b, c: max(a - b, 0),
    "v_add_i32 v0, v1, v2 clamp": lambda a, b, c: min(
        max(signed(a) + signed(b), -(1 << 31)), (1 << 31) - 1
    ),
    "v_mul_lo_u32 v0, v1, v2": lambda a, b, c: a * b,
    "v_mul_hi_u32 v0, v1, v2": lambda a, b, c: a * b >> 32,
    "v_mul_hi_i32 v0, v1, v2": lambda a, b, c: signed(a) * signed(b) >> 32,
    "v_mul_u32_u24_e32 v0, v1, v2": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mul_i32_i24_e32 v0, v1, v2": lambda a, b, c: signed(a, 24) * signed(b, 24),
    "v_mad_u32_u24 v0, v1, v2, v3": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_and_b32_e32 v0, v1, v2": lambda a, b, c: a & b,
    "v_and_b32_e32 v0, -4, v2": lambda a, b, c: M - 3 & b,
    "v_not_b32_e32 v0, v1": lambda a, b, c: ~a,
    "v_bfrev_b32_e32 v0, v1": lambda a, b, c: reverse(a),
    "v_ffbh_u32_e32 v0, v1": lambda a, b, c: 32 - a.bit_length() if a else M,
    "v_ffbl_b32_e32 v0, v1": lambda a, b, c: (a & -a).bit_length() - 1 if a else M,
    "v_bcnt_u32_b32 v0, v1, v2": lambda a, b, c: a.bit_count() + b,
    "v_lshlrev_b32_e32 v0, v2, v1": lambda a, b, c: a << (b & 31),
    "v_lshrrev_b32_e32 v0, v2, v1": lambda a, b, c: a >> (b & 31),
    "v_ashrrev_i32_e32 v0, v2, v1": lambda a, b, c: signed(a) >> (b & 31),
    "v_lshlrev_b16_e32 v0, v2, v1": lambda a, b, c: (a & 0xFFFF) << (b & 15) & 0xFFFF,
    "v_bfe_u32 v0, v1, 3, 7": lambda a, b, c: a >> 3 & 0x7F,
    "v_bfe_i32 v0, v1, 3, 7": lambda a, b, c: signed(a >> 3, 7),
    "v_bfe_i32 v0, v1, 0, 16": lambda a, b, c: signed(a, 16),
    "v_bfe_u32 v0, v1, 3, 0": lambda a, b, c: 0,
    "v_bfi_b32 v0, v1, v2, v3": lambda a, b, c: a & b | ~a & c,
    "v_perm_b32 v0, v1, v2, v3": perm,
    "v_alignbit_b32 v0, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_alignbyte_b32 v0, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_add3_u32 v0, v1, v2, v3": lambda a, b, c: a + b + c,
    "v_lshl_add_u32 v0, v1, 5, v3": lambda a, b, c: (a << 5) + c,
    "v_add_lshl_u32 v0, v1, v2, 2": lambda a, b, c: (a + b) << 2,
    "v_lshl_or_b32 v0, v1, 8, v3": lambda a, b, c: a << 8 | c,
    "v_and_or_b32 v0, v1, v2, v3": lambda a, b, c: a & b | c,
    "v_or3_b32 v0, v1, v2, v3": lambda a, b, c: a | b | c,
    "v_xad_u32 v0, v1, v2, v3": lambda a, b, c: (a ^ b) + c,
    "v_min_i32_e32 v0, v1, v2": lambda a, b, c: min(signed(a), signed(b)),
    "v_max_u32_e32 v0, v1, v2": lambda a, b, c: max(a, b),
    "v_max3_i32 v0, v1, v2, v3": lambda a, b, c: max(signed(a), signed(b), signed(c)),
    "v_med3_i32 v0, v1, v2, v3": lambda a, b, c: sorted(map(signed, (a, b, c)))[1],
    "v_bitop3_b32 v0, v1, v2, v3 bitop3:0x36": lambda a, b, c: (a | c) ^ b,
    "v_pk_add_u16 v0, v1, v2": lambda a, b, c: (
        (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16
    ),
}


@pytest.mark.parametrize("line", ROWS)
def test_arithmetic(line: str) -> None:
    want = [ROWS[line](*map(int, row)) & M for row in zip(A, B, C, strict=True)]
    found = one(line, target="gfx950" if "bitop3" in line else "gfx942", v1=A, v2=B, v3=C)
    assert found.tolist() == want


@pytest.mark.parametrize("table", [0x36, 0xEC, 0xFE, 0x01, 0x80])
def test_the_table_of_three_bits(table: int) -> None:
    """Bit 4a + 2b + c of the table, for every bit."""
    found = one(f"v_bitop3_b32 v0, v1, v2, v3 bitop3:{table}", target="gfx950", v1=A, v2=B, v3=C)
    for bit in range(32):
        at = 4 * (A >> bit & 1) + 2 * (B >> bit & 1) + (C >> bit & 1)
        np.testing.assert_array_equal(found >> bit & 1, table >> at & 1)


def test_64_bits() -> None:
    given = {"v2": A, "v3": B, "v4": C, "v5": A}
    wide = A.astype(object) | B.astype(object) << 32
    other = C.astype(object) | A.astype(object) << 32
    for line, want in (
        ("v_lshlrev_b64 v[0:1], 7, v[2:3]", wide << 7),
        ("v_lshl_add_u64 v[0:1], v[2:3], 2, v[4:5]", (wide << 2) + other),
        ("v_mad_u64_u32 v[0:1], s[4:5], v2, v3, v[4:5]", A.astype(object) * B + other),
    ):
        on = run(wave(**given), line)
        found = on.u32[0].astype(object) | on.u32[1].astype(object) << 32
        assert (found == want % (1 << 64)).all(), line


def test_sums_with_carry() -> None:
    on = run(
        wave(v2=A, v3=B, v4=C, v5=B),
        "v_add_co_u32_e32 v0, vcc, v2, v4",
        "v_addc_co_u32_e32 v1, vcc, v3, v5, vcc",
    )
    low = A.astype(object) | B.astype(object) << 32
    total = low + (C.astype(object) | B.astype(object) << 32)
    assert (on.u32[0] == total % (1 << 32)).all()
    assert (on.u32[1] == (total >> 32) % (1 << 32)).all()
    assert on.get64(106) == sum(int(t >> 64) << n for n, t in enumerate(total))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("v_sub_co_u32_e32 v0, vcc, v2, v4", "v_subb_co_u32_e32 v1, vcc, v3, v5, vcc"),
        ("v_subrev_co_u32_e32 v0, vcc, v4, v2", "v_subbrev_co_u32_e32 v1, vcc, v5, v3, vcc"),
    ],
)
def test_differences_with_borrow(low: str, high: str) -> None:
    on = run(wave(v2=A, v3=B, v4=C, v5=A), low, high)
    left = A.astype(object) | B.astype(object) << 32
    total = left - (C.astype(object) | A.astype(object) << 32)
    assert (on.u32[0] == total % (1 << 32)).all()
    assert (on.u32[1] == (total >> 32) % (1 << 32)).all()
    assert on.get64(106) == sum(int(t < 0) << n for n, t in enumerate(total))


def test_lanes_that_do_not_work_keep_their_value() -> None:
    on = run(wave(exec_mask=0xFF, v0=C, v1=A), "v_mov_b32_e32 v0, v1")
    np.testing.assert_array_equal(on.u32[0], np.where(LANE < 8, A, C))


def test_choosing_by_a_mask() -> None:
    on = run(wave(v1=A, v2=B, vcc=0xF0F0), "v_cndmask_b32_e32 v0, v1, v2, vcc")
    chosen = (0xF0F0 >> LANE.astype(object) & 1).astype(bool)
    np.testing.assert_array_equal(on.u32[0], np.where(chosen, B, A))


@pytest.mark.parametrize(
    ("line", "want"),
    [
        (
            "v_or_b32_sdwa v0, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD "
            "src0_sel:BYTE_1 src1_sel:WORD_1",
            lambda a, b, c: a >> 8 & 0xFF | b >> 16,
        ),
        (
            "v_mov_b32_sdwa v0, v1 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:WORD_0",
            lambda a, b, c: (a & 0xFFFF) << 16 | c & 0xFFFF,
        ),
        (
            "v_mov_b32_sdwa v0, v1 dst_sel:BYTE_1 dst_unused:UNUSED_PAD src0_sel:BYTE_3",
            lambda a, b, c: a >> 24 << 8,
        ),
        (
            "v_mov_b32_sdwa v0, sext(v1) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_0",
            lambda a, b, c: signed(a, 8) & M,
        ),
    ],
)
def test_parts_of_registers(line: str, want: Callable[[int, int, int], int]) -> None:
    on = run(wave(v0=C, v1=A, v2=B), line)
    assert on.u32[0].tolist() == [want(*map(int, row)) for row in zip(A, B, C, strict=True)]


@pytest.mark.parametrize(
    ("line", "given", "want", "scc"),
    [
        ("s_add_i32 s0, s1, s2", (0x7FFFFFFF, 1), 0x80000000, 1),
        ("s_add_u32 s0, s1, s2", (0xFFFFFFFF, 2), 1, 1),
        ("s_sub_u32 s0, s1, s2", (1, 2), 0xFFFFFFFF, 1),
        ("s_sub_i32 s0, s1, s2", (1, 2), 0xFFFFFFFF, 0),
        ("s_ashr_i32 s0, s1, s2", (0x80000000, 4), 0xF8000000, 1),
        ("s_bfe_u32 s0, s1, 0x80004", (0x12345678, 0), 0x67, 1),
        ("s_bfe_i32 s0, s1, 0x40000", (0x8, 0), 0xFFFFFFF8, 1),
        ("s_min_i32 s0, s1, s2", (0xFFFFFFFF, 1), 0xFFFFFFFF, 1),
        ("s_max_u32 s0, s1, s2", (1, 0xFFFFFFFF), 0xFFFFFFFF, 0),
        ("s_and_b32 s0, s1, s2", (0xF0, 0x0F), 0, 0),
        ("s_andn2_b32 s0, s1, s2", (0xFF, 0x0F), 0xF0, 1),
        ("s_lshl2_add_u32 s0, s1, s2", (0x40000000, 1), 1, 1),
        ("s_pack_ll_b32_b16 s0, s1, s2", (0x12345678, 0x9ABCDEF0), 0xDEF05678, None),
        ("s_mul_hi_u32 s0, s1, s2", (0x80000000, 6), 3, None),
        ("s_movk_i32 s0, 0x8000", (0, 0), 0xFFFF8000, None),
        ("s_ff1_i32_b32 s0, s1", (0x50, 0), 4, None),
        ("s_flbit_i32_b32 s0, s1", (0x50, 0), 25, None),
        ("s_sext_i32_i16 s0, s1", (0x8001, 0), 0xFFFF8001, None),
        ("s_brev_b32 s0, s1", (0x1, 0), 0x80000000, None),
        ("s_bcnt1_i32_b32 s0, s1", (0xF0F, 0), 8, 1),
    ],
)
def test_scalars(line: str, given: tuple[int, int], want: int, scc: int | None) -> None:
    on = run(wave(s1=given[0], s2=given[1]), line)
    assert on.s[0] == want
    assert scc is None or on.scc == scc


def test_scalar_pairs_and_comparisons() -> None:
    on = wave(s2=0xFFFFFFFF, s3=0, s4=1, s5=0)
    run(on, "s_add_u32 s0, s2, s4", "s_addc_u32 s1, s3, s5")
    assert on.get64(0) == 1 << 32
    run(on, "s_lshl_b64 s[0:1], s[2:3], 8")
    assert on.get64(0) == 0xFFFFFFFF00
    run(on, "s_cmp_lt_i32 s2, s4", "s_cselect_b64 s[0:1], -1, 0")
    assert on.get64(0) == (1 << 64) - 1  # -1 is less than 1
    run(on, "s_cmp_lt_u32 s2, s4", "s_cselect_b32 s0, s4, 7")
    assert on.s[0] == 7
    run(on, "s_cmpk_gt_i32 s4, 0xfff0")
    assert on.scc == 1  # 1 is more than -16


def test_the_execution_mask() -> None:
    on = run(wave(s2=0xFF, s3=0), "s_and_saveexec_b64 s[0:1], s[2:3]")
    assert (on.exec, on.get64(0), on.scc) == (0xFF, (1 << 64) - 1, 1)
    assert on.mask.sum() == 8
    run(on, "s_andn2_b64 exec, exec, s[2:3]")
    assert (on.exec, on.scc) == (0, 0)
    run(on, "s_or_b64 exec, exec, s[0:1]")
    assert on.full

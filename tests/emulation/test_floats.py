# SPDX-License-Identifier: Apache-2.0
"""Instructions on floats, against numpy and the rules of IEEE 754."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulation.machine import EDGES, LANE, bits, numbers, one, one_float, run, wave

A, B, C = numbers(1, 20), numbers(2, 20), numbers(3, 20)
A[: len(EDGES)] = EDGES
B[10 : 10 + len(EDGES)] = EDGES


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("v_add_f32_e32 v0, v1, v2", lambda a, b: a + b),
        ("v_sub_f32_e32 v0, v1, v2", lambda a, b: a - b),
        ("v_subrev_f32_e32 v0, v1, v2", lambda a, b: b - a),
        ("v_mul_f32_e64 v0, -v1, |v2|", lambda a, b: -a * abs(b)),
        ("v_mul_f32_e64 v0, v1, v2 mul:2", lambda a, b: a * b * 2),
        ("v_rcp_f32_e32 v0, v1", lambda a, b: np.float32(1) / a),
        ("v_sqrt_f32_e32 v0, v1", lambda a, b: np.sqrt(a)),
        ("v_floor_f32_e32 v0, v1", lambda a, b: np.floor(a)),
        ("v_rndne_f32_e32 v0, v1", lambda a, b: np.rint(a)),
        ("v_exp_f32_e32 v0, v1", lambda a, b: np.exp2(a.astype("f8")).astype("f4")),
        ("v_log_f32_e32 v0, v1", lambda a, b: np.log2(a.astype("f8")).astype("f4")),
        ("v_ldexp_f32 v0, v1, 3", lambda a, b: a * 8),
        ("v_add_f32_e32 v0, 0.5, v1", lambda a, b: a + np.float32(0.5)),
        ("v_add_f32_e32 v0, 0x40490fdb, v1", lambda a, b: a + np.float32(np.pi)),
        ("v_add_f32_e32 v0, s3, v1", lambda a, b: a + np.float32(2.5)),
    ],
)
def test_arithmetic(line: str, want: object) -> None:
    with np.errstate(all="ignore"):
        expected = want(A, B)  # type: ignore[operator]
    found = one_float(line, v1=A, v2=B, s3=0x40200000)
    np.testing.assert_array_equal(found, expected)


def test_the_least_and_the_greatest() -> None:
    """A number goes before NaN, -0 before +0; a signalling NaN makes a quiet one."""
    for name, pick in (("max", np.fmax), ("min", np.fmin)):
        np.testing.assert_array_equal(
            one_float(f"v_{name}_f32_e32 v0, v1, v2", v1=A, v2=B), pick(A, B)
        )
    zeros = {"v1": np.float32(-0.0), "v2": np.float32(0.0)}
    assert not np.signbit(one_float("v_max_f32_e32 v0, v1, v2", **zeros)).any()
    assert np.signbit(one_float("v_min_f32_e32 v0, v1, v2", **zeros)).all()
    signalling = np.full(64, 0x7F800001, np.uint32)
    found = one("v_max_f32_e32 v0, v1, v2", v1=signalling, v2=np.float32(1))
    assert set(found.tolist()) == {0x7FC00001}


def test_the_middle() -> None:
    found = one_float("v_med3_f32 v0, v1, v2, v3", v1=numbers(4), v2=numbers(5), v3=numbers(6))
    want = np.median(np.stack([numbers(4), numbers(5), numbers(6)]), axis=0)
    np.testing.assert_array_equal(found, want)
    clamped = one_float("v_med3_f32 v0, v1, v2, v3", v1=A, v2=np.float32(-2), v3=np.float32(2))
    finite = ~np.isnan(A)
    np.testing.assert_array_equal(clamped[finite], np.clip(A, -2, 2)[finite])
    assert (clamped[~finite] == -2).all()  # the least of the others


def test_a_negative_zero() -> None:
    """LLVM writes neg(0), since -0 is 0."""
    found = one("v_fma_f32 v0, v1, v2, neg(0)", v1=np.float32(-1), v2=np.float32(0))
    assert set(found.tolist()) == {0x80000000}
    assert one_float("v_add_f32_e64 v0, neg(1.0), v1", v1=np.float32(3))[0] == 2


def test_clamp_turns_nan_into_zero() -> None:
    found = one_float("v_add_f32_e64 v0, v1, 0 clamp", v1=A)
    np.testing.assert_array_equal(found, np.where(np.isnan(A), 0, np.clip(A, 0, 1)))


def test_fused_products_into_the_destination() -> None:
    on = run(wave(v0=C, v1=A, v2=B), "v_fmac_f32_e32 v0, v1, v2")
    other = run(wave(v1=A, v2=B, v3=C), "v_fma_f32 v0, v1, v2, v3")
    np.testing.assert_array_equal(on.f32[0], other.f32[0])
    constant = run(wave(v1=A, v2=B), "v_fmamk_f32 v0, v1, 0x40000000, v2")
    plain = run(wave(v1=A, v2=B), "v_fma_f32 v0, v1, 2.0, v2")
    np.testing.assert_array_equal(constant.f32[0], plain.f32[0])


@pytest.mark.parametrize("name", ["lt", "eq", "le", "gt", "ge", "lg", "neq", "o", "u", "nlt"])
def test_comparisons(name: str) -> None:
    nan = np.isnan(A) | np.isnan(B)
    want = {
        **{"lt": A < B, "eq": A == B, "le": A <= B, "gt": A > B, "ge": A >= B},
        **{"lg": (A != B) & ~nan, "neq": A != B, "o": ~nan, "u": nan, "nlt": ~(A < B)},
    }[name]
    on = run(wave(v1=A, v2=B), f"v_cmp_{name}_f32_e64 s[8:9], v1, v2")
    assert [on.get64(8) >> lane & 1 for lane in LANE.tolist()] == want.astype(int).tolist()


def test_a_comparison_of_lanes_that_do_not_work_is_0() -> None:
    on = run(wave(exec_mask=0xF0, v1=A), "v_cmp_eq_u32_e32 vcc, v1, v1")
    assert on.get64(106) == 0xF0


def test_packed_floats() -> None:
    given = {"v2": A, "v3": B, "v4": B, "v5": C}
    on = run(wave(**given), "v_pk_mul_f32 v[0:1], v[2:3], v[4:5] op_sel_hi:[0,1] neg_lo:[1,0]")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(on.f32[0], -A * B)
        np.testing.assert_array_equal(on.f32[1], A * C)
    on = run(wave(s4=0x3F800000, s5=0x40000000, **given), "v_pk_add_f32 v[0:1], s[4:5], v[2:3]")
    np.testing.assert_array_equal(on.f32[0], A + 1)
    np.testing.assert_array_equal(on.f32[1], B + 2)


def test_packed_halves() -> None:
    low, high = numbers(7).astype("f2"), numbers(8).astype("f2")
    pair = bits(low) | bits(high) << 16
    found = one("v_pk_add_f16 v0, v1, v1 op_sel:[0,1] op_sel_hi:[1,0]", v1=pair)
    want = bits(low + high) | bits(high + low) << 16
    np.testing.assert_array_equal(found, want)


def test_mixed_products() -> None:
    """v_fma_mix_f32: the first source is the upper half of a register."""
    low, high = numbers(7).astype("f2"), numbers(8).astype("f2")
    pair = bits(low) | bits(high) << 16
    line = "v_fma_mix_f32 v0, v1, v2, v3 op_sel:[1,0,0] op_sel_hi:[1,0,0]"
    found = one_float(line, v1=pair, v2=numbers(9), v3=numbers(10))
    want = high.astype("f8") * numbers(9) + numbers(10)
    np.testing.assert_allclose(found, want, rtol=1e-7)


DIVISION = (
    "v_div_scale_f32 v10, s[0:1], v2, v2, v1",
    "v_rcp_f32_e32 v11, v10",
    "v_fma_f32 v12, -v10, v11, 1.0",
    "v_fmac_f32_e32 v11, v12, v11",
    "v_div_scale_f32 v12, vcc, v1, v2, v1",
    "v_mul_f32_e32 v13, v12, v11",
    "v_fma_f32 v14, -v10, v13, v12",
    "v_fmac_f32_e32 v13, v14, v11",
    "v_fma_f32 v10, -v10, v13, v12",
    "v_div_fmas_f32 v10, v10, v11, v13",
    "v_div_fixup_f32 v0, v10, v2, v1",
)
"""What LLVM writes for a / b of float32."""


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = []
    for start in range(0, len(a), 64):
        on = run(wave(v1=a[start : start + 64], v2=b[start : start + 64]), *DIVISION)
        found.append(on.f32[0].copy())
    return np.concatenate(found)


def test_division_is_exact() -> None:
    random = np.random.default_rng(5)
    whole = random.integers(0, 1 << 32, (2, 64 * 200), dtype=np.uint32).view(np.float32)
    edges = np.array(np.meshgrid(EDGES, EDGES)).reshape(2, -1)[:, : 64 * 9]
    near = random.uniform(0.5, 2, (2, 64 * 100)).astype(np.float32)
    for a, b in (whole, edges, near):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(quotient(a, b), a / b)

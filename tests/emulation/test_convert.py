# SPDX-License-Identifier: Apache-2.0
"""Conversions between formats, against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.emulation.machine import EDGES, numbers, one, one_float, run, wave

from archkey.conformance.emulation.convert import FP8
from archkey.conformance.emulation.device import TARGETS

VALUES = numbers(1, 12)
VALUES[: len(EDGES)] = EDGES
KINDS = {
    "gfx942": (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    "gfx950": (torch.float8_e4m3fn, torch.float8_e5m2),
}
CODES = [np.arange(64, dtype=np.uint32) + 64 * n for n in range(4)]


def test_the_targets_are_those_with_fp8() -> None:
    assert {f"rocm_{name}" for name in FP8} == {name for name in TARGETS if "rocm" in name}


def test_to_integers() -> None:
    """Toward zero, clamped; NaN is 0."""
    wide = VALUES.astype(np.float64)
    for line, kind in (("v_cvt_i32_f32_e32", np.int32), ("v_cvt_u32_f32_e32", np.uint32)):
        limits = np.iinfo(kind)
        want = np.clip(np.trunc(np.nan_to_num(wide, nan=0.0)), limits.min, limits.max)
        found = one(f"{line} v0, v1", v1=VALUES).view(kind)
        np.testing.assert_array_equal(found, want.astype(kind))


def test_from_integers() -> None:
    bits = VALUES.view(np.uint32)
    found = one_float("v_cvt_f32_i32_e32 v0, v1", v1=bits)
    np.testing.assert_array_equal(found, bits.view(np.int32).astype(np.float32))
    found = one_float("v_cvt_f32_ubyte2_e32 v0, v1", v1=bits)
    np.testing.assert_array_equal(found, (bits >> 16 & 0xFF).astype(np.float32))


def test_float16_and_bfloat16() -> None:
    with np.errstate(over="ignore"):
        half = VALUES.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(one("v_cvt_f16_f32_e32 v0, v1", v1=VALUES), half)
    back = one_float("v_cvt_f32_f16_e32 v0, v1", v1=half.astype(np.uint32))
    np.testing.assert_array_equal(back, half.view(np.float16).astype(np.float32))
    other = VALUES[::-1].copy()
    found = one("v_cvt_pk_bf16_f32 v0, v1, v2", target="gfx950", v1=VALUES, v2=other)
    for shift, source in ((0, VALUES), (16, other)):
        want = torch.from_numpy(source.copy()).bfloat16().float().numpy()
        got = ((found >> shift & 0xFFFF) << 16).view(np.float32)
        np.testing.assert_array_equal(got, want)


def test_float16_toward_zero() -> None:
    given = [1 + 2**-11, -1 - 2**-11, 65535.0, 2.0**-25, np.inf, 1 - 2**-12]
    want = [1, -1, 65504, 0, np.inf, 1 - 2**-11]
    values = np.zeros(64, np.float32)
    values[:6] = given
    found = one("v_cvt_pkrtz_f16_f32 v0, v1, v1", v1=values)
    got = (found & 0xFFFF).astype(np.uint16).view(np.float16)[:6]
    np.testing.assert_array_equal(got, np.float16(want))


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("which", [0, 1])
def test_every_fp8_code(target: str, which: int) -> None:
    name, kind = ("fp8", "bf8")[which], KINDS[target][which]
    for codes in CODES:
        want = torch.from_numpy(codes.astype(np.uint8)).view(kind).float().numpy()
        upper = f"v_cvt_f32_{name}_sdwa v0, v1 src0_sel:BYTE_2"
        found = one_float(upper, target=target, v1=codes << 16)
        np.testing.assert_array_equal(found, want)
        pair = f"v_cvt_pk_f32_{name}_e32 v[0:1], v2"
        on = run(wave(v2=codes | (codes ^ 1) << 8), pair, target=target)
        np.testing.assert_array_equal(on.f32[0], want)
        sdwa = f"v_cvt_pk_f32_{name}_sdwa v[0:1], v2 src0_sel:WORD_1"
        on = run(wave(v2=codes << 24), sdwa, target=target)
        np.testing.assert_array_equal(on.f32[1], want)


@pytest.mark.parametrize("target", KINDS)
def test_to_fp8(target: str) -> None:
    kind = KINDS[target][0]
    limit = torch.finfo(kind).max
    values = np.clip(numbers(2, 12), -limit, limit)
    want = torch.from_numpy(values).to(kind).view(torch.uint8).numpy().astype(np.uint32)
    line = "v_cvt_pk_fp8_f32 v0, v1, v2 op_sel:[0,0,1]"
    found = one(line, target=target, v0=0x1234, v1=values, v2=-values[::-1])
    mirrored = torch.from_numpy(-values[::-1].copy()).to(kind).view(torch.uint8).numpy()
    np.testing.assert_array_equal(found, 0x1234 | want << 16 | mirrored.astype(np.uint32) << 24)


def test_the_mode_says_what_an_overflow_becomes() -> None:
    on = run(wave(v1=np.float32(1e6)), "v_cvt_pk_fp8_f32 v0, v1, v1", target="gfx942")
    assert set((on.u32[0] & 0xFFFF).tolist()) == {0x8080}
    run(on, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1", "v_cvt_pk_fp8_f32 v0, v1, v1")
    assert set((on.u32[0] & 0xFFFF).tolist()) == {0x7F7F}


def test_conversions_with_a_scale() -> None:
    """Down: divided by the scale's power of two. Up: multiplied."""
    values = np.clip(numbers(3, 4), -12, 12)
    kind = torch.float8_e4m3fn
    want = torch.from_numpy(values / 4).to(kind)
    line = "v_cvt_scalef32_pk_fp8_f32 v0, v1, v2, 4.0 op_sel:[0,0,0,1]"
    found = one(line, target="gfx950", v0=0x55, v1=values, v2=0)
    codes = want.view(torch.uint8).numpy().astype(np.uint32)
    np.testing.assert_array_equal(found, 0x55 | codes << 16)
    up = one_float(
        "v_cvt_scalef32_pk_f32_fp8 v[0:1], v2, 4.0 op_sel:[1,0]", target="gfx950", v2=found
    )
    np.testing.assert_array_equal(up, 4 * want.float().numpy())


def test_fp4_with_a_scale() -> None:
    sizes = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = np.arange(64, dtype=np.uint32) % 16
    values = np.where(codes >> 3, -1, 1) * sizes[codes & 7]
    line = "v_cvt_scalef32_pk_fp4_f32 v0, v1, v2, 0.5 op_sel:[0,0,0,1]"
    found = one(line, target="gfx950", v0=0, v1=values / 2, v2=values[::-1] / 2)
    np.testing.assert_array_equal(found >> 16, codes | codes[::-1] << 4)
    line = "v_cvt_scalef32_pk_bf16_fp4 v0, v1, 2.0 op_sel:[0,1,0]"
    widened = one(line, target="gfx950", v1=found)
    low, high = ((widened >> s << 16).view(np.float32) for s in (0, 16))
    np.testing.assert_array_equal(low, 2 * values)
    np.testing.assert_array_equal(high, 2 * values[::-1])

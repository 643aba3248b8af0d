# SPDX-License-Identifier: Apache-2.0
"""FP8 and MXFP4 against ml_dtypes and exact rational arithmetic, code by code."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from archkey import formats

FP8 = tuple(formats.FP8_MAX)
MODES = ("floor", "even", "rceil", "ceil")


def _bytes(codes: torch.Tensor) -> np.ndarray:
    return codes.view(torch.uint8).numpy()


def _around(points: np.ndarray) -> np.ndarray:
    """Each point, the float32 on either side of it, and the negatives of all three."""
    points = points.astype(np.float32)
    both = np.concatenate(
        [
            points,
            np.nextafter(points, np.float32(np.inf)),
            np.nextafter(points, np.float32(-np.inf)),
        ]
    )
    return np.concatenate([both, -both])


def _thresholds(dtype: type) -> np.ndarray:
    """Every finite value of an ml_dtypes type below its maximum, and every midpoint."""
    bits = 4 if dtype is ml_dtypes.float4_e2m1fn else 8
    values = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    values = np.unique(np.abs(values[np.isfinite(values)]))
    return np.concatenate([values, (values[1:] + values[:-1]) / 2])


# --- FP8 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_decodes_all_256_codes(dtype: str) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    got = formats.decode_fp8(every.view(getattr(torch, dtype))).numpy()
    want = every.numpy().view(getattr(ml_dtypes, dtype)).astype(np.float32)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_encodes_around_every_threshold(dtype: str) -> None:
    values = _around(_thresholds(getattr(ml_dtypes, dtype)))
    got = _bytes(formats.encode_fp8(torch.from_numpy(values), dtype))
    limit = formats.fp8_max(dtype)
    want = np.clip(values, -limit, limit).astype(getattr(ml_dtypes, dtype)).view(np.uint8)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("dtype", "top"), list(zip(FP8, (0x7E, 0x7F, 0x7B, 0x7F), strict=True)))
def test_fp8_saturates_and_keeps_nan(dtype: str, top: int) -> None:
    limit = formats.fp8_max(dtype)
    assert limit == torch.finfo(getattr(torch, dtype)).max
    values = torch.tensor([limit, limit * 1.07, 1e30, math.inf, -1e30, -math.inf])
    codes = _bytes(formats.encode_fp8(values, dtype))
    np.testing.assert_array_equal(codes, [top] * 4 + [top | 0x80] * 2)
    assert formats.encode_fp8(torch.tensor([math.nan]), dtype).isnan().all()


@pytest.mark.parametrize(("fnuz", "ocp"), [(FP8[1], FP8[0]), (FP8[3], FP8[2])])
def test_fp8_fnuz_flushes_negative_underflow_to_plus_zero(fnuz: str, ocp: str) -> None:
    least = formats.decode_fp8(torch.ones(1, dtype=torch.uint8).view(getattr(torch, fnuz))).item()
    values = torch.tensor([-0.0, -1e-9, -least / 2])  # half the least value: ties to even
    np.testing.assert_array_equal(_bytes(formats.encode_fp8(values, fnuz)), 0)
    np.testing.assert_array_equal(_bytes(formats.encode_fp8(values, ocp)), 0x80)


def test_fp8_scale_pow2_is_the_least_power_of_two_that_does_not_saturate() -> None:
    amax = torch.from_numpy(_around(448 * 2.0 ** np.arange(-30, 31))).abs()
    for value, scale in zip(
        amax.tolist(), formats.fp8_scale(amax, "float8_e4m3fn", "pow2").tolist(), strict=True
    ):
        exact = Fraction(float(np.float32(value) / np.float32(448)))
        assert math.frexp(scale)[0] == 0.5
        assert Fraction(scale) >= exact > Fraction(scale) / 2


@pytest.mark.parametrize("rounding", formats.SCALE_ROUNDINGS)
@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("group", [None, 128, 8], ids=["token", "group128", "group8"])
def test_fp8_quantize_equals_a_loop(dtype: str, group: int | None, rounding: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 256) * torch.tensor([1e-3, 1.0, 1e3]).unsqueeze(-1)
    codes, scale = formats.quantize_fp8(x, dtype, group, rounding)
    size = group or 256
    want = np.empty((3, 256), np.uint8)
    for t in range(3):
        for g in range(256 // size):
            run = x[t, g * size : (g + 1) * size].numpy()
            s = np.float32(np.abs(run).max() / np.float32(formats.fp8_max(dtype)))
            if rounding == "pow2":
                s = np.float32(2.0 ** math.ceil(math.log2(s)))
            assert scale[t, g].item() == s
            want[t, g * size : (g + 1) * size] = (
                (run / s).astype(getattr(ml_dtypes, dtype)).view(np.uint8)
            )
    np.testing.assert_array_equal(_bytes(codes), want)
    error = (formats.dequantize_fp8(codes, scale) - x).abs() / x.abs().amax(-1, keepdim=True)
    assert error.max() <= (2**-3 if "e5m2" in dtype else 2**-4)  # half a step of the largest


@pytest.mark.parametrize("rounding", formats.SCALE_ROUNDINGS)
@pytest.mark.parametrize("dtype", FP8)
def test_fp8_zero_row_is_zero_and_nan_row_is_nan(dtype: str, rounding: str) -> None:
    x = torch.zeros(2, 64)
    x[1, 5] = math.nan
    codes, scale = formats.quantize_fp8(x, dtype, None, rounding)
    back = formats.dequantize_fp8(codes, scale)
    assert (back[0] == 0).all() and 0 < scale[0, 0] < 1e-9
    assert back[1].isnan().all()


# --- e2m1, e8m0, MXFP4 ----------------------------------------------------------------------------


def test_e2m1_decodes_all_16_codes() -> None:
    every = torch.arange(16, dtype=torch.uint8)
    want = every.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    got = formats.decode_e2m1(every).numpy()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def test_e2m1_encodes_around_every_threshold() -> None:
    values = _around(np.append(_thresholds(ml_dtypes.float4_e2m1fn), [7.0, 1e30, np.inf]))
    got = formats.encode_e2m1(torch.from_numpy(values)).numpy()
    want = np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("tie", "value"),
    [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)],
)
def test_e2m1_ties_go_to_the_even_code(tie: float, value: float) -> None:
    codes = formats.encode_e2m1(torch.tensor([tie, -tie]))
    assert formats.decode_e2m1(codes).tolist() == [value, -value]


def test_e2m1_nan_becomes_the_largest_value() -> None:
    nan = torch.tensor([math.nan]).copysign(torch.tensor([-1.0]))
    assert formats.encode_e2m1(nan).tolist() == [7]


def test_e2m1_packs_the_even_column_low() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    packed = formats.pack_e2m1(codes)
    assert packed[:2].tolist() == [0x10, 0x32]
    assert formats.unpack_e2m1(packed).tolist() == codes.tolist()


def test_e8m0_decodes_all_256_codes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    want = every.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(formats.decode_e8m0(every).numpy(), want)


def _e8m0_by_definition(amax: float, mode: str, element: str = "float4_e2m1fn") -> int:
    """The byte from the rule in words, in exact arithmetic."""
    if amax == 0:
        return 0
    # emax, the largest number over 2^emax, and from where on a mantissa of m bits rounds to 2.
    emax, most, to_two = {
        "float4_e2m1fn": (2, Fraction(6, 4), Fraction(7, 4)),
        "float8_e4m3fn": (8, Fraction(448, 256), Fraction(31, 16)),
        "float8_e5m2": (15, Fraction(57344, 32768), Fraction(15, 8)),
    }[element]
    low = math.frexp(amax)[1] - 1  # floor(log2(amax))
    mantissa = Fraction(amax) / Fraction(2) ** low
    up = {
        "floor": False,
        "even": mantissa >= to_two,
        "rceil": mantissa > most,
        "ceil": mantissa > 1,
    }
    return max(low - emax + up[mode] + 127, 0)


@pytest.mark.parametrize("element", formats.MX_ELEMENTS)
@pytest.mark.parametrize("mode", formats.SCALE_MODES)
def test_e8m0_scale_follows_its_definition(mode: str, element: str) -> None:
    powers = 2.0 ** np.arange(-149, 128)
    points = np.concatenate([powers * m for m in (1.0, 1.25, 1.5, 1.75, 1.875, 1.9375)])
    amax = np.abs(_around(np.append(points[points < 3.3e38], 3.4e38)))
    got = formats.e8m0_scale(torch.from_numpy(amax), mode, element).tolist()
    assert got == [_e8m0_by_definition(float(a), mode, element) for a in amax]


@pytest.mark.parametrize("mode", formats.SCALE_MODES)
def test_e8m0_scale_of_nan_and_inf_is_nan(mode: str) -> None:
    assert formats.e8m0_scale(torch.tensor([math.nan, math.inf, 0.0]), mode).tolist() == [
        255,
        255,
        0,
    ]


@pytest.mark.parametrize(
    ("element", "mode", "most"),
    [
        *(("float4_e2m1fn", m, r / 6) for m, r in zip(MODES, (8, 7, 6, 4), strict=True)),
        *(("float8_e4m3fn", m, r / 448) for m, r in zip(MODES, (512, 496, 448, 256), strict=True)),
        *(("float8_e5m2", m, r / 56) for m, r in zip(MODES, (64, 60, 56, 32), strict=True)),
    ],
)
def test_mx_clips_as_much_as_its_mode_allows(element: str, mode: str, most: float) -> None:
    amax = torch.linspace(1.0, 2.0, 4097)[:-1]
    scale = formats.decode_e8m0(formats.e8m0_scale(amax, mode, element))
    ratio = amax / (formats.MX_ELEMENTS[element].most * scale)
    assert ratio.max().item() == pytest.approx(most, rel=1e-3)
    assert ratio.max() <= most * (1 + 1e-6)


@pytest.mark.parametrize("mode", formats.SCALE_MODES)
@pytest.mark.parametrize("width", [32, 200, 18, 7168])
def test_mxfp4_quantize_equals_a_loop(width: int, mode: str) -> None:
    torch.manual_seed(width)
    x = torch.randn(2, width) * 2.0 ** torch.randint(-20, 20, (2, 1))
    packed, scale = formats.quantize_mxfp4(x, mode)
    blocks = -(-width // 32)
    assert packed.shape == (2, width // 2) and scale.shape == (2, blocks)
    for t in range(2):
        codes = np.empty(width, np.uint8)
        for b in range(blocks):
            block = x[t, b * 32 : (b + 1) * 32].numpy()
            byte = _e8m0_by_definition(float(np.abs(block).max()), mode)
            assert scale[t, b].item() == byte
            scaled = np.clip(block.astype(np.float64) / 2.0 ** (byte - 127), -6, 6)
            codes[b * 32 : b * 32 + block.size] = scaled.astype(ml_dtypes.float4_e2m1fn).view(
                np.uint8
            )
        np.testing.assert_array_equal(packed[t].numpy(), codes[0::2] | codes[1::2] << 4)
    # The gap 4..6 loses a sixth of the amax, and clipping at most a quarter of it.
    error = (formats.dequantize_mxfp4(packed, scale) - x).abs().amax() / x.abs().amax()
    assert error <= 0.26


@pytest.mark.parametrize("mode", formats.SCALE_MODES)
def test_mxfp4_zero_nan_and_extreme_blocks(mode: str) -> None:
    x = torch.zeros(1, 128)
    x[0, 32], x[0, 64], x[0, 96] = math.nan, 1e-44, 2.9e38
    packed, scale = formats.quantize_mxfp4(x, mode)
    back = formats.dequantize_mxfp4(packed, scale)[0]
    assert scale[0, :3].tolist() == [0, 255, 0]
    assert (back[:32] == 0).all() and (back[64:96] == 0).all()
    assert back[32:64].isnan().all()
    assert back[96].item() == pytest.approx(2.9e38, rel=0.26)


@pytest.mark.parametrize(("rows", "blocks"), [(1, 4), (33, 7), (256, 8), (300, 224)])
def test_gfx950_shuffle_places_every_scale(rows: int, blocks: int) -> None:
    torch.manual_seed(0)
    scale = torch.randint(1, 255, (rows, blocks), dtype=torch.uint8)
    shuffled = formats.shuffle_gfx950(scale)
    height, width = -(-rows // 256) * 256, -(-blocks // 8) * 8
    assert shuffled.shape == (height, width)
    want = np.zeros(height * width, np.uint8)
    for m in range(rows):
        for k in range(blocks):
            tile = (m // 32) * (width // 8) + k // 8
            inside = (k % 4) * 64 + (m % 16) * 4 + (k % 8 // 4) * 2 + m % 32 // 16
            want[tile * 256 + inside] = scale[m, k]
    np.testing.assert_array_equal(shuffled.flatten().numpy(), want)
    assert torch.equal(formats.unshuffle_gfx950(shuffled, rows, blocks), scale)

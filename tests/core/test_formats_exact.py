# SPDX-License-Identifier: Apache-2.0
"""Encoders on all inputs of 16 bits and on all float32 near a threshold, against ml_dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archkey import formats

FP8 = tuple(formats.FP8_MAX)
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _all(dtype: str) -> torch.Tensor:
    """Every number of a 16-bit type: NaNs, infinities and both zeros as well."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(HALVES[dtype])


def _dense(dtype: type, ulps: int) -> torch.Tensor:
    """All float32 within `ulps` of a value of an ml_dtypes type, or of the midpoint of two."""
    bits = ml_dtypes.finfo(dtype).bits
    values = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    values = np.unique(np.abs(values[np.isfinite(values)]))
    above = 2 * values[-1] - values[-2]  # what would come next, were there more exponents
    values = np.append(values, np.float32(above))
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2]).view(np.int32)
    near = points[:, None] + np.arange(-ulps, ulps + 1, dtype=np.int32)
    near = near[(near >= 0) & (near < 0x7F800000)]
    return torch.from_numpy(np.concatenate([near, near | np.int32(-(2**31))]).view(np.float32))


def _check_fp8(values: torch.Tensor, dtype: str) -> None:
    limit = formats.fp8_max(dtype)
    got = formats.encode_fp8(values, dtype)
    assert str(got.dtype) == f"torch.{dtype}"
    exact = values.float().numpy()
    with np.errstate(invalid="ignore"):
        want = np.clip(exact, -limit, limit).astype(getattr(ml_dtypes, dtype))
    nan = np.isnan(exact)
    assert np.isnan(want[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(got.float().isnan().numpy(), nan)
    np.testing.assert_array_equal(
        got.view(torch.uint8).numpy()[~nan], want.view(np.uint8)[~nan], strict=True
    )


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("given", HALVES)
def test_fp8_of_every_16_bit_number(given: str, dtype: str) -> None:
    _check_fp8(_all(given), dtype)


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_of_every_float32_near_a_threshold(dtype: str) -> None:
    _check_fp8(_dense(getattr(ml_dtypes, dtype), ulps=1000), dtype)


@pytest.mark.parametrize("dtype", FP8)
@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=200, max_size=200))
@settings(max_examples=20, deadline=None)
def test_fp8_of_any_float32(dtype: str, bits: list[int]) -> None:
    _check_fp8(torch.tensor(bits, dtype=torch.int32).view(torch.float32), dtype)


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_codes_are_what_their_values_encode_to(dtype: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype))
    values = formats.decode_fp8(every)
    finite = values.isfinite()
    back = formats.encode_fp8(values, dtype)
    assert torch.equal(back.view(torch.uint8)[finite], every.view(torch.uint8)[finite])


def _check_e2m1(values: torch.Tensor) -> None:
    exact = values.float().numpy()
    want = np.clip(np.nan_to_num(exact, nan=6.0), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(formats.encode_e2m1(values).numpy(), want.view(np.uint8))


def test_e2m1_of_every_16_bit_number_and_float32_near_a_threshold() -> None:
    for name in HALVES:
        _check_e2m1(_all(name))
    _check_e2m1(_dense(ml_dtypes.float4_e2m1fn, ulps=20_000))


def test_e2m1_packs_all_pairs() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    codes = formats.unpack_e2m1(every)
    assert codes.tolist() == [nibble for byte in range(256) for nibble in (byte % 16, byte // 16)]
    assert torch.equal(formats.pack_e2m1(codes), every)
    assert torch.equal(formats.unpack_e2m1(every.view(torch.float4_e2m1fn_x2)), codes)


# ---- e8m0


def _scale_bytes(amax: np.ndarray, mode: str, element: str) -> np.ndarray:
    """The rules on mantissa and exponent, in float64, where all of it is exact."""
    emax, bits, most = formats.MX_ELEMENTS[element]
    half, exponent = np.frexp(amax.astype(np.float64))
    mantissa = 2 * half
    up = {
        "floor": np.zeros_like(mantissa, bool),
        "even": mantissa >= 2 - 2.0 ** -(bits + 1),
        "rceil": mantissa > most / 2.0**emax,
        "ceil": mantissa > 1,
    }[mode]
    byte = np.where(amax == 0, 0, np.maximum(exponent - 1 + up - emax + 127, 0))
    return np.where(np.isfinite(amax), byte, 255)


@pytest.mark.parametrize("element", formats.MX_ELEMENTS)
@pytest.mark.parametrize("mode", formats.SCALE_MODES)
def test_e8m0_scale_of_every_16_bit_amax(mode: str, element: str) -> None:
    for name in HALVES:
        amax = _all(name).abs()
        with np.errstate(invalid="ignore"):
            want = _scale_bytes(amax.float().numpy(), mode, element)
        np.testing.assert_array_equal(formats.e8m0_scale(amax, mode, element).numpy(), want)


def test_e8m0_encodes_what_it_decodes_and_rounds_up_between() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = formats.decode_e8m0(every)
    assert torch.equal(formats.encode_e8m0(values), every)
    as_torch = values[:255].to(torch.float8_e8m0fnu)
    assert torch.equal(formats.decode_e8m0(as_torch), values[:255])
    above = values[:255].nextafter(torch.tensor(math.inf))
    assert formats.encode_e8m0(above).tolist() == [*range(1, 255), 254]
    below = values[:255].nextafter(torch.tensor(0.0))
    assert formats.encode_e8m0(below).tolist() == [0, *range(1, 255)]
    odd = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, -1.0, math.inf, -math.inf, math.nan])
    assert formats.encode_e8m0(odd).tolist() == [0, 0, 0, 254, 255, 255, 255, 255]
    for name in HALVES:
        got = formats.encode_e8m0(_all(name))
        assert torch.equal(got, formats.encode_e8m0(_all(name).float()))


def test_e8m0_holds_the_power_of_two_scales_of_fp8() -> None:
    torch.manual_seed(0)
    amax = torch.rand(4096).exp2() * 2.0 ** torch.arange(-40, 24).repeat(64)
    scale = formats.fp8_scale(amax, "float8_e4m3fn", "pow2")
    assert torch.equal(formats.decode_e8m0(formats.encode_e8m0(scale)), scale)


# ---- e4m3fn and e4m3fnuz


@pytest.mark.parametrize("scale", [1.0, 0.0371, 2.0**-120])
def test_e4m3fn_as_e4m3fnuz_is_exact_for_every_code(scale: float) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    before = every.view(torch.uint8).clone()
    given = torch.tensor([scale])
    codes, doubled = formats.normalize_e4m3fn_to_e4m3fnuz(every, given)
    assert codes.dtype == torch.float8_e4m3fnuz and doubled.item() == 2 * given.item()
    want = formats.dequantize_fp8(every, given)
    torch.testing.assert_close(
        formats.dequantize_fp8(codes, doubled), want, rtol=0, atol=0, equal_nan=True
    )
    assert codes.view(torch.uint8)[0x80] == 0, "byte 0x80, which was -0, would be NaN"
    assert codes.view(torch.uint8)[[0x7F, 0xFF]].tolist() == [0x80, 0x80], "NaN stays NaN"
    assert torch.equal(every.view(torch.uint8), before) and given.item() == np.float32(scale)


def test_e4m3fnuz_as_e4m3fn_is_exact_or_refused() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    held = every[(every & 0x7F) != 0x7F].view(torch.float8_e4m3fnuz)
    scale = torch.tensor([0.0371])
    codes, halved = formats.normalize_e4m3fnuz_to_e4m3fn(held, scale)
    assert codes.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(
        formats.dequantize_fp8(codes, halved),
        formats.dequantize_fp8(held, scale),
        rtol=0,
        atol=0,
        equal_nan=True,
    )
    for largest in (0x7F, 0xFF):  # 240, which would be 480
        data = torch.tensor([1, largest], dtype=torch.uint8).view(torch.float8_e4m3fnuz)
        with pytest.raises(ValueError, match=r"found 1 of ±240. Round them anew: quantize_fp8"):
            formats.normalize_e4m3fnuz_to_e4m3fn(data, scale)


def test_there_and_back_is_the_same() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    kept = every[((every & 0x7F) != 0x7F) & (every != 0x80)].view(torch.float8_e4m3fn)
    scale = torch.tensor([3.0])
    back, same = formats.normalize_e4m3fnuz_to_e4m3fn(
        *formats.normalize_e4m3fn_to_e4m3fnuz(kept, scale)
    )
    assert torch.equal(back.view(torch.uint8), kept.view(torch.uint8)) and torch.equal(same, scale)

# SPDX-License-Identifier: Apache-2.0
"""MXFP8 against numpy and ml_dtypes, block by block."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from archkey import formats

ELEMENTS = formats.MXFP8_ELEMENTS
MODES = tuple(formats.SCALE_MODES)


def _block(block: np.ndarray, mode: str, element: str) -> tuple[int, np.ndarray]:
    """Scale byte and codes of one block, from the rules in words."""
    most = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}[element]
    amax = float(np.abs(block).max())
    if amax == 0:
        return 0, np.zeros(block.size, np.uint8) | (np.signbit(block) * np.uint8(0x80))
    exponent = {
        "floor": lambda: math.floor(math.log2(amax)),
        "ceil": lambda: math.ceil(math.log2(amax)),
        # What the element's own rounding makes of the mantissa, with one exponent more.
        "even": lambda: math.floor(math.log2(_rounded(amax, element))),
        "rceil": lambda: math.ceil(math.log2(amax / most)) + math.floor(math.log2(most)),
    }[mode]()
    byte = max(exponent - math.floor(math.log2(most)) + 127, 0)
    scaled = np.clip(block.astype(np.float64) / 2.0 ** (byte - 127), -most, most)
    return byte, scaled.astype(getattr(ml_dtypes, element)).view(np.uint8)


def _rounded(amax: float, element: str) -> float:
    """amax to the mantissa of the element, halves up."""
    step = 2.0 ** (math.floor(math.log2(amax)) - {"float8_e4m3fn": 3, "float8_e5m2": 2}[element])
    return math.floor(amax / step + 0.5) * step


def _rows(width: int, element: str) -> torch.Tensor:
    """Normal rows of any size, and rows whose amax is on, or next to, where a rule changes."""
    torch.manual_seed(width)
    plain = torch.randn(4, width) * 2.0 ** torch.randint(-40, 40, (4, 1))
    at = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375])
    tops = torch.cat([at, at.nextafter(torch.tensor(2.0)), at.nextafter(torch.tensor(0.0))])
    rows = torch.randn(len(tops), width).clamp(-0.9, 0.9)
    rows[:, 0::32] = -tops[:, None]
    return torch.cat([plain, rows, rows * 2.0**-126, rows * 2.0**100])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("width", [32, 200, 111])
def test_mxfp8_quantize_equals_a_loop(width: int, element: str, mode: str) -> None:
    x = _rows(width, element)
    codes, scale = formats.quantize_mxfp8(x, mode, element)
    blocks = -(-width // 32)
    assert codes.shape == x.shape and str(codes.dtype) == f"torch.{element}"
    assert scale.shape == (len(x), blocks) and scale.dtype == torch.uint8
    for t, row in enumerate(x.numpy()):
        for b in range(blocks):
            at = slice(b * 32, b * 32 + 32)
            byte, want = _block(row[at], mode, element)
            assert scale[t, b].item() == byte
            np.testing.assert_array_equal(codes[t, at].view(torch.uint8).numpy(), want)


@pytest.mark.parametrize("element", ELEMENTS)
def test_mxfp8_dequantises_every_code_and_scale(element: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    scale = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 8)
    got = formats.dequantize_mxfp8(codes.view(getattr(torch, element)), scale)
    with np.errstate(over="ignore"):
        elements = codes.numpy().view(getattr(ml_dtypes, element)).astype(np.float64)
        factors = scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        want = (elements * factors.repeat(32, axis=1)).astype(np.float32)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_mxfp8_zero_nan_and_extreme_blocks(element: str, mode: str) -> None:
    x = torch.zeros(1, 192)
    x[0, 1] = -0.0
    x[0, 32], x[0, 64], x[0, 96], x[0, 128] = math.nan, -math.inf, 1e-45, 2.9e38
    x[0, 160:162] = torch.tensor([1.0, 1e-30])
    codes, scale = formats.quantize_mxfp8(x, mode, element)
    back = formats.dequantize_mxfp8(codes, scale)[0]
    assert scale[0, :4].tolist() == [0, 255, 255, 0]
    assert codes.view(torch.uint8)[0, :2].tolist() == [0, 0x80], "a zero keeps its sign"
    assert (back[:32] == 0).all() and back[32:96].isnan().all()
    # 2^-149 over 2^-127 is 2^-22: below half of the least element of either type.
    assert (back[96:128] == 0).all()
    assert back[128].item() == pytest.approx(2.9e38, rel=0.13)
    assert back[160].item() == pytest.approx(1.0, rel=0.13) and back[161] == 0


def test_mxfp8_saturates_where_the_rule_clips() -> None:
    x = torch.full((1, 32), 1.9)  # floor: 1.9 * 256 = 486, of which e4m3fn has no code
    for mode, top in (("floor", 1.75), ("even", 1.75), ("rceil", 1.875), ("ceil", 1.875)):
        back = formats.dequantize_mxfp8(*formats.quantize_mxfp8(x, mode))
        assert back.unique().tolist() == [top], mode


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_mxfp8_takes_any_float(given: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64).to(given)
    codes, scale = formats.quantize_mxfp8(x, "rceil")
    want, want_scale = formats.quantize_mxfp8(x.float(), "rceil")
    assert torch.equal(codes.view(torch.uint8), want.view(torch.uint8))
    assert torch.equal(scale, want_scale)
    assert torch.equal(
        formats.dequantize_mxfp8(codes, scale.view(torch.float8_e8m0fnu)),
        formats.dequantize_mxfp8(codes, scale),
    )


def test_mxfp8_even_with_the_threshold_of_fp4_is_rceil_but_for_full_blocks() -> None:
    """aiter's MXFP8 rounds amax as if for FP4; e4m3fn's largest number has the same mantissa."""
    torch.manual_seed(0)
    bits = torch.randint(0x10000000, 0x7E800000, (100_000,), dtype=torch.int32)
    amax = torch.cat([bits, (bits & 0x7F800000) | 0x600000]).view(torch.float32)
    of_fp4 = formats.e8m0_scale(amax, "even").int() - 6  # emax 8 instead of 2
    rceil = formats.e8m0_scale(amax, "rceil", "float8_e4m3fn").int()
    full = amax.frexp().mantissa == 0.875
    assert torch.equal(of_fp4, rceil + full)

# SPDX-License-Identifier: Apache-2.0
"""MXFP8 (OCP Microscaling 1.0) in plain torch: FP8 elements, one e8m0 scale per 32 columns.

    value = element * 2^(b - 127)

Elements are e4m3fn or e5m2. The rules for scales are those of `archkey.formats.mx`.
"""

from __future__ import annotations

import torch

from archkey.formats._checks import check_codes, check_rows, check_scales
from archkey.formats.fp8 import decode_fp8, encode_fp8
from archkey.formats.mx import MX_BLOCK, MX_ELEMENTS, scaled_blocks, spread_scales
from archkey.ops._checks import bad_type

__all__ = ["MXFP8_ELEMENTS", "dequantize_mxfp8", "quantize_mxfp8"]

MXFP8_ELEMENTS = tuple(name for name in MX_ELEMENTS if name.startswith("float8"))
"""The standard has these two; the fnuz types are no MX elements."""


def quantize_mxfp8(
    values: torch.Tensor, scale_mode: str, element: str = "float8_e4m3fn"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements `[..., N]` of dtype `element` and scales `[..., ceil(N / 32)]`, uint8.

    values      `[..., N]`, bfloat16, float16, float32, or float64, which is rounded to float32
    scale_mode  "floor", "even", "rceil" or "ceil"

    Elements saturate, as the standard says; those of a block with a NaN or an infinity are NaN. A
    last block of fewer than 32 columns takes its amax over those alone.
    """
    op = "quantize_mxfp8"
    check_rows(op, values)
    if element not in MXFP8_ELEMENTS:
        bad_type(op, "element", " or ".join(MXFP8_ELEMENTS), repr(element))
    scaled, scale = scaled_blocks(values, scale_mode, element)
    return encode_fp8(scaled, element), scale


def dequantize_mxfp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 `[..., N]` of elements `[..., N]` and row-major scales `[..., ceil(N / 32)]`.

    codes  float8_e4m3fn or float8_e5m2
    scale  uint8 or float8_e8m0fnu
    """
    op = "dequantize_mxfp8"
    check_codes(op, "codes", codes, MXFP8_ELEMENTS)
    *lead, width = codes.shape
    check_scales(op, scale, ("uint8", "float8_e8m0fnu"), (*lead, -(-width // MX_BLOCK)))
    return decode_fp8(codes) * spread_scales(scale, width)

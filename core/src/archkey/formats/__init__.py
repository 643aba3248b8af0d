# SPDX-License-Identifier: Apache-2.0
"""Number formats: encode, decode, scales and scale layouts, exact and in plain torch.

These are the definitions that kernels are tested against; they run on any device.
"""

from __future__ import annotations

from archkey.formats.fp8 import (
    AMAX_FLOOR,
    FP8_MAX,
    SCALE_ROUNDINGS,
    decode_fp8,
    dequantize_fp8,
    encode_fp8,
    fp8_max,
    fp8_scale,
    normalize_e4m3fn_to_e4m3fnuz,
    normalize_e4m3fnuz_to_e4m3fn,
    quantize_fp8,
)
from archkey.formats.mx import (
    MX_BLOCK,
    MX_ELEMENTS,
    decode_e8m0,
    e8m0_scale,
    encode_e8m0,
)
from archkey.formats.mxfp4 import (
    E2M1_VALUES,
    MXFP4_BLOCK,
    SCALE_MODES,
    decode_e2m1,
    dequantize_mxfp4,
    encode_e2m1,
    pack_e2m1,
    quantize_mxfp4,
    shuffle_gfx950,
    unpack_e2m1,
    unshuffle_gfx950,
)
from archkey.formats.mxfp8 import MXFP8_ELEMENTS, dequantize_mxfp8, quantize_mxfp8
from archkey.formats.nvfp4 import (
    NVFP4_BLOCK,
    dequantize_nvfp4,
    quantize_nvfp4,
    swizzle_128x4,
    unswizzle_128x4,
)

__all__ = [
    "AMAX_FLOOR",
    "E2M1_VALUES",
    "FP8_MAX",
    "MXFP4_BLOCK",
    "MXFP8_ELEMENTS",
    "MX_BLOCK",
    "MX_ELEMENTS",
    "NVFP4_BLOCK",
    "SCALE_MODES",
    "SCALE_ROUNDINGS",
    "decode_e2m1",
    "decode_e8m0",
    "decode_fp8",
    "dequantize_fp8",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "e8m0_scale",
    "encode_e2m1",
    "encode_e8m0",
    "encode_fp8",
    "fp8_max",
    "fp8_scale",
    "normalize_e4m3fn_to_e4m3fnuz",
    "normalize_e4m3fnuz_to_e4m3fn",
    "pack_e2m1",
    "quantize_fp8",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "shuffle_gfx950",
    "swizzle_128x4",
    "unpack_e2m1",
    "unshuffle_gfx950",
    "unswizzle_128x4",
]

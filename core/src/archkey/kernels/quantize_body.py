# SPDX-License-Identifier: Apache-2.0
"""Triton pieces that turn float32 into codes and scales; bodies that quantise inline them.

Each is the device's form of a definition in `archkey.formats`, bit for bit. Codes and e8m0 scales
are bytes here (uint8), whatever the tensor is called in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "amax_bits",
    "e8m0_byte",
    "e8m0_inverse",
    "encode_e2m1",
    "encode_fp8",
    "fp8_scale",
    "pack_e2m1",
    "scale_offset",
]

_NAN: tl.constexpr = tl.constexpr(0x7FC00000)
_INFINITY: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def amax_bits(value, AXIS: tl.constexpr):
    """Bits of the largest magnitude along AXIS, int32: as integers, where a NaN is the largest."""
    return tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=AXIS)


@triton.jit
def fp8_scale(bits, LIMIT: tl.constexpr, POW2: tl.constexpr):
    """`archkey.formats.fp8_scale` of the magnitude whose bits are given; LIMIT is FP8's largest."""
    floor = 0x2EDBE6FF  # 1e-10, AMAX_FLOOR
    scale = tl.div_rn(tl.maximum(bits, floor).to(tl.float32, bitcast=True), LIMIT * 1.0)
    if POW2:
        power = (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        scale = tl.where(scale < float("inf"), power.to(tl.float32, bitcast=True), scale)
    return scale


@triton.jit
def encode_fp8(value, FNUZ: tl.constexpr, BY_BITS: tl.constexpr):
    """e4m3 codes: e4m3fnuz or e4m3fn. To nearest even, saturating, NaN stays NaN.

    BY_BITS  with integers, where the converter lacks the type: Triton's interpreter does
    """
    LIMIT: tl.constexpr = 240.0 if FNUZ else 448.0
    value = tl.clamp(value, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if BY_BITS:
        code = _e4m3_bits(value, FNUZ)
    elif FNUZ:
        code = value.to(tl.float8e4b8).to(tl.uint8, bitcast=True)
    else:
        code = value.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    return code


@triton.jit
def _e4m3_bits(value, FNUZ: tl.constexpr):
    """Codes of values that are within the range."""
    BIAS: tl.constexpr = 8 if FNUZ else 7
    signed = value.to(tl.int32, bitcast=True)
    code = _round_magnitude(signed & 0x7FFFFFFF, 3, BIAS)
    nan = value != value
    if FNUZ:
        # There is no -0: its byte is the NaN.
        code = tl.where(nan, 0x80, tl.where(code == 0, 0, code | ((signed >> 24) & 0x80)))
    else:
        code = tl.where(nan, 0x7F, code | ((signed >> 24) & 0x80))
    return code.to(tl.uint8)


@triton.jit
def _round_magnitude(bits, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """Nearest-even code of a magnitude in a small float with MANTISSA bits and exponent BIAS.

    bits  of the float32 magnitude, int32
    """
    DROPPED: tl.constexpr = 23 - MANTISSA
    even = (bits >> DROPPED) & 1
    normal = ((bits + ((1 << (DROPPED - 1)) - 1) + even) >> DROPPED) - ((127 - BIAS) << MANTISSA)
    # One unit in the last place of this number is the least step of the small float, so that the
    # addition rounds a subnormal for us.
    MAGIC: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23
    step = tl.full([], MAGIC, tl.int32).to(tl.float32, bitcast=True)
    tiny = (bits.to(tl.float32, bitcast=True) + step).to(tl.int32, bitcast=True) - MAGIC
    return tl.where(bits < ((128 - BIAS) << 23), tiny, normal)


@triton.jit
def encode_e2m1(value, keep_sign):
    """e2m1 codes 0..15, uint8, saturating at 6. NaN becomes 7 where keep_sign is 0.

    keep_sign  8, or 0 for the blocks that hold a NaN
    """
    signed = value.to(tl.int32, bitcast=True)
    magnitude = tl.minimum(signed & 0x7FFFFFFF, 0x40C00000)  # 6.0
    code = _round_magnitude(magnitude, 1, 1)
    return (code | ((signed >> 28) & keep_sign)).to(tl.uint8)


@triton.jit
def pack_e2m1(code):
    """Two codes a byte, the even column's in the low nibble: `[.., N]` to `[.., N / 2]`, 3-D."""
    A: tl.constexpr = code.shape[0]
    B: tl.constexpr = code.shape[1]
    C: tl.constexpr = code.shape[2]
    even, odd = tl.split(tl.reshape(code, [A, B, C // 2, 2]))
    return even | (odd << 4)


@triton.jit
def e8m0_byte(bits, CARRY: tl.constexpr):
    """The e8m0 scale, int32, of a block whose largest magnitude has these bits.

    CARRY  the rule for rounding, of `archkey.formats.mxfp4.SCALE_MODES`
    """
    exponent = (bits + CARRY) >> 23
    return tl.where(bits < _INFINITY, tl.maximum(exponent - 2, 0), 255)


@triton.jit
def e8m0_inverse(byte):
    """1 / 2^(byte - 127), exact for scales of finite blocks; NaN for 255."""
    bits = tl.where(byte == 255, _NAN, (254 - byte) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scale_offset(row, block, pitch, LAYOUT: tl.constexpr):
    """Where the scale of a block of a row lies in a padded layout of `archkey.formats` [bytes].

    pitch  padded number of blocks of a row
    """
    if LAYOUT == "shuffled_gfx950":
        tile = (row // 32).to(tl.int64) * pitch * 32 + (block // 8) * 256
        within = (block % 4) * 64 + (row % 16) * 4 + (block % 8 // 4) * 2 + row % 32 // 16
    else:
        tl.static_assert(LAYOUT == "swizzled_128x4")
        tile = (row // 128).to(tl.int64) * pitch * 128 + (block // 4) * 512
        within = (row % 32) * 16 + (row % 128 // 32) * 4 + block % 4
    return tile + within

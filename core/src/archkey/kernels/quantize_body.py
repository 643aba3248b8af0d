# SPDX-License-Identifier: Apache-2.0
"""Triton pieces that turn float32 into codes and scales; bodies that quantise inline them.

Each is the device's form of a definition in `archkey.formats`, bit for bit. Codes and e8m0 scales
are bytes here (uint8), whatever the tensor is called in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "amax_of",
    "e4m3fn_value",
    "e8m0_byte",
    "e8m0_inverse",
    "encode_e2m1",
    "encode_fp8",
    "fp8_scale",
    "pack_e2m1",
    "ratio",
    "rounded",
    "scale_offset",
]

_NAN: tl.constexpr = tl.constexpr(0x7FC00000)
_LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)
_ALL: tl.constexpr = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def amax_of(value, AXIS: tl.constexpr):
    """The largest magnitude along AXIS. Compared as integers, where a NaN is the largest."""
    bits = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=AXIS)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def ratio(value, scale):
    """value / scale, for numbers to be multiplied with. Finite, so that 0 times it is 0.

    A quotient of each number is four times the work of all the rest, to move it by its last bit.
    """
    return tl.minimum(tl.div_rn(value, scale), _LARGEST, propagate_nan=_ALL)


@triton.jit
def rounded(value, like, BY_BITS: tl.constexpr):
    """Float32 `value` rounded to the dtype that `like` points to, nearest even.

    BY_BITS  with integers, where bfloat16 would be cut off: Triton's interpreter does
    """
    if BY_BITS and like.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        result = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    else:
        result = value.to(like.dtype.element_ty).to(tl.float32)
    return result


@triton.jit
def fp8_scale(amax, LIMIT: tl.constexpr, POW2: tl.constexpr):
    """`archkey.formats.fp8_scale`; LIMIT is the largest number of the FP8 type."""
    scale = tl.div_rn(tl.maximum(amax, 1e-10, propagate_nan=_ALL), LIMIT)  # 1e-10: AMAX_FLOOR
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
    value = tl.clamp(value, -LIMIT, LIMIT, propagate_nan=_ALL)
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
    bits = signed & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - BIAS) << 3)
    # One unit in the last place of this number is the least step, so that the addition rounds a
    # subnormal for us.
    MAGIC: tl.constexpr = (127 + 21 - BIAS) << 23
    step = tl.full([], MAGIC, tl.int32).to(tl.float32, bitcast=True)
    tiny = (bits.to(tl.float32, bitcast=True) + step).to(tl.int32, bitcast=True) - MAGIC
    code = tl.where(bits < ((128 - BIAS) << 23), tiny, normal)
    sign = (signed >> 24) & 0x80
    if FNUZ:
        # There is no -0: its byte is the NaN.
        code = tl.where(value != value, 0x80, tl.where(code == 0, 0, code | sign))
    else:
        code = tl.where(value != value, 0x7F, code | sign)
    return code.to(tl.uint8)


@triton.jit
def e4m3fn_value(code):
    """Float32 value of e4m3fn codes 0..127."""
    code = code.to(tl.int32)
    # As bits of a float32 whose exponent is too small by 120; the product is exact.
    value = (code << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    return tl.where(code == 0x7F, float("nan"), value)


@triton.jit
def encode_e2m1(value, keep_sign):
    """e2m1 codes 0..15, int32, to nearest even, saturating at 6. NaN is 7 where keep_sign is 0.

    keep_sign  8, or 0 for the blocks that hold a NaN
    """
    sign = (value.to(tl.uint32, bitcast=True) >> 28).to(tl.int32) & keep_sign
    value = tl.clamp(value, -6.0, 6.0, propagate_nan=_ALL)
    exponent = tl.maximum(value.to(tl.int32, bitcast=True) & 0x7F800000, 0x3F800000)
    # One unit in the last place of this number is the step between codes (0.5 below 2, then 1 and
    # 2), so that the addition rounds for us.
    magic = exponent.to(tl.float32, bitcast=True) * 6291456.0  # 1.5 * 2^22
    rounded = (value + magic) - magic
    # As a float32 with the smallest exponents, 0.5 becomes subnormal: bits are then those of e2m1.
    small = (rounded * 1.1754943508222875e-38).to(tl.int32, bitcast=True)  # 2^-126
    return ((small >> 22) & 7) | sign


@triton.jit
def pack_e2m1(code):
    """Two codes a byte, uint8, the even one in the low nibble: `[A, B, N]` to `[A, B, N / 2]`.

    Packed as int32: registers have no bytes.
    """
    A: tl.constexpr = code.shape[0]
    B: tl.constexpr = code.shape[1]
    C: tl.constexpr = code.shape[2]
    even, odd = tl.split(tl.reshape(code, [A, B, C // 2, 2]))
    return (even | (odd << 4)).to(tl.uint8)


@triton.jit
def e8m0_byte(amax, CARRY: tl.constexpr):
    """`archkey.formats.e8m0_scale`, int32.

    CARRY  the rule for rounding, of `archkey.formats.SCALE_MODES`
    """
    exponent = (amax.to(tl.int32, bitcast=True) + CARRY) >> 23
    return tl.where(amax < float("inf"), tl.maximum(exponent - 2, 0), 255)


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

# SPDX-License-Identifier: Apache-2.0
"""Triton pieces of sparse MLA: a cache's rows by their slots, packed ones unpacked.

A packed latent is `code * scale` in float32, rounded once to the bfloat16 that is multiplied. No
scale is rounded, to a power of two least of all (sglang#22723).
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import real

__all__ = ["LATENT", "rows_of"]

LATENT: tl.constexpr = tl.constexpr(512)
_SCALES: tl.constexpr = tl.constexpr(8)  # bytes of a planar token's scales


@triton.jit
def rows_of(
    kv,  # [blocks, PAGE, row]: bfloat16, FP8 codes, or bytes if INTERPRETED
    slot,  # [KEYS] int32 from 0 on
    there,  # [KEYS]: whether the row is read
    block_stride,  # [UNIT elements of kv]
    slot_stride,
    D: tl.constexpr,  # columns of an unpacked row
    PAGE: tl.constexpr,
    UNIT: tl.constexpr,  # 1: of an alignment that is not known
    FP8: tl.constexpr,  # flavour of codes, "none" for rows of bfloat16
    NOPE: tl.constexpr,  # of a packed row: columns that are codes, then scales, then bfloat16
    SCALES: tl.constexpr,  # of LATENT columns
    PLANAR: tl.constexpr,  # scales are bytes behind all rows of a block; otherwise float32 in a row
    KEYS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(latent [KEYS, LATENT], key [KEYS, D - LATENT]); rows that are not there are 0.

    bfloat16, INTERPRETED float32. The second is of no meaning if D is LATENT: a Triton function
    cannot return None.
    """
    d = tl.arange(0, LATENT)[None, :]
    r = tl.arange(0, D - LATENT if D > LATENT else 16)[None, :]
    wanted = there[:, None]
    block = (slot if PAGE == 1 else slot // PAGE).to(tl.int64) * block_stride
    offset = tl.zeros_like(slot) if PAGE == 1 else slot % PAGE
    place = ((block + offset * slot_stride) * UNIT)[:, None]
    if FP8 == "none":
        latent = tl.load(kv + place + d, wanted, other=0.0)
        if D > LATENT:
            key = tl.load(kv + place + LATENT + r, wanted, other=0.0)
    else:
        if NOPE < LATENT:
            codes = tl.load(kv + place + d, wanted & (d < NOPE), other=0.0)
        else:
            codes = tl.load(kv + place + d, wanted, other=0.0)
        s = tl.arange(0, SCALES)[None, :]
        if PLANAR:
            behind = (block * UNIT + PAGE * (2 * D - NOPE))[:, None] + offset[:, None] * _SCALES
            exponent = tl.load(bytes_of(kv) + behind + s, wanted & (s < SCALES - 1), other=0)
            scale = power_of_two(exponent)
        else:
            scale = float32_at(kv, place + NOPE, s, wanted, UNIT)
        value = real(codes, FP8, tl.float32, INTERPRETED)
        value = tl.reshape(value, [KEYS, SCALES, LATENT // SCALES])
        latent = tl.reshape(value * scale[:, :, None], [KEYS, LATENT])
        if not INTERPRETED:
            latent = latent.to(tl.bfloat16)
        if PLANAR:
            rest = bfloat16_at(kv, place + NOPE, d - NOPE, wanted & (d >= NOPE), UNIT)
            latent = tl.where(d < NOPE, latent, rest.to(latent.dtype))
        elif D > LATENT:
            key = bfloat16_at(kv, place + NOPE + 4 * SCALES, r, wanted, UNIT)
    if INTERPRETED:
        latent = real(latent, "none", tl.float32, True)
        key = real(key, "none", tl.float32, True) if D > LATENT else latent
    return latent, (key if D > LATENT else latent)


@triton.jit
def power_of_two(exponent):
    """float32 of ue8m0 bytes: 2^(byte - 127), of which the least is subnormal; 255 is NaN."""
    bits = exponent.to(tl.int32) << 23
    bits = tl.where(exponent == 0, 0x00400000, bits)
    bits = tl.where(exponent == 255, 0x7FC00000, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def bytes_of(kv):
    """A pointer to the bytes of a packed cache."""
    return kv.to(tl.pointer_type(tl.uint8), bitcast=True)


@triton.jit
def float32_at(kv, place, i, there, UNIT: tl.constexpr):
    """float32 number i behind byte `place`; byte by byte where a load of four may not begin."""
    if UNIT == 1:
        bits = tl.zeros_like(place + i).to(tl.int32)
        for n in tl.static_range(4):
            byte = tl.load(bytes_of(kv) + place + 4 * i + n, there, other=0)
            bits |= byte.to(tl.int32) << (8 * n)
        number = bits.to(tl.float32, bitcast=True)
    else:
        words = tl.multiple_of(kv.to(tl.pointer_type(tl.float32), bitcast=True), 16)
        number = tl.load(words + (place >> 2) + i, there, other=0.0)
    return number


@triton.jit
def bfloat16_at(kv, place, i, there, UNIT: tl.constexpr):
    """bfloat16 number i behind byte `place`, as `float32_at`."""
    if UNIT == 1:
        low = tl.load(bytes_of(kv) + place + 2 * i, there, other=0)
        high = tl.load(bytes_of(kv) + place + 2 * i + 1, there, other=0)
        bits = (low.to(tl.int32) << 16) | (high.to(tl.int32) << 24)
        number = bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        halves = tl.multiple_of(kv.to(tl.pointer_type(tl.bfloat16), bitcast=True), 16)
        number = tl.load(halves + (place >> 1) + i, there, other=0.0)
    return number

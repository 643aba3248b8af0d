# SPDX-License-Identifier: Apache-2.0
"""Triton bodies that pack rows into a sparse-KV cache, unpack them, and turn positions into slots.

A program takes a few tokens, each with its tiles, `[TOKENS, TILES, TILE]`: what shares a scale lies
along the last axis. A packed row is addressed in bytes; the layouts are in
`archkey.ops._sparse_kv`. Slots are read on the device, so a graph that replays follows them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import real
from archkey.kernels.quantize_body import amax_of, encode_fp8, fp8_scale, rounded

__all__ = ["dequantize_sparse_kv_body", "logical_to_physical_body", "quantize_sparse_kv_body"]

_INT32_MAX: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def _put(place, value, mask, ALIGNED: tl.constexpr):
    """Store `value` `[A, N]` where row i begins at the byte pointer `place[i, 0]`.

    ALIGNED  as numbers; else byte by byte, wherever they lie
    """
    SIZE: tl.constexpr = value.dtype.primitive_bitwidth // 8
    column = tl.arange(0, value.shape[1])[None, :]
    if ALIGNED or SIZE == 1:
        tl.store(place.to(tl.pointer_type(value.dtype)) + column, value, mask)
    else:
        bits = value.to(tl.int16 if SIZE == 2 else tl.int32, bitcast=True)
        for byte in tl.static_range(SIZE):
            tl.store(place + column * SIZE + byte, (bits >> (8 * byte)).to(tl.uint8), mask)


@triton.jit
def _take(place, mask, N: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """What `_put` stored, `[A, N]` of DTYPE; 0 where not `mask`."""
    SIZE: tl.constexpr = DTYPE.primitive_bitwidth // 8
    column = tl.arange(0, N)[None, :]
    if ALIGNED or SIZE == 1:
        value = tl.load(place.to(tl.pointer_type(DTYPE)) + column, mask, other=0)
    else:
        place += column * SIZE
        bits = tl.load(place, mask, other=0).to(tl.int32)
        for byte in tl.static_range(1, SIZE):
            bits |= tl.load(place + byte, mask, other=0).to(tl.int32) << (8 * byte)
        value = bits.to(tl.int16 if SIZE == 2 else tl.int32).to(DTYPE, bitcast=True)
    return value


@triton.jit
def _quotient(value, scale, INTERPRETED: tl.constexpr):
    """value / scale, rounded once, for `value` of `[A, B, C]` and a scale `[A, B]` of each row.

    A division of every number is most of the work. From 1 / scale, rounded once, two steps with
    exact remainders come to the same number (P. Markstein, IA-64 and Elementary Functions, 2000,
    chapter 8) as long as these do not underflow: above 2^-11 they do not, as a scale is no smaller
    than 2^-42, and below it the code is 0 in any case.

    INTERPRETED  divide: Triton's interpreter rounds the product of an fma
    """
    if INTERPRETED:
        result = tl.div_rn(value, tl.broadcast_to(scale[:, :, None], value.shape))
    else:
        inverse = tl.div_rn(1.0, scale)[:, :, None]
        # Of an infinite scale the inverse is 0 and all quotients are, but of infinities: NaN.
        less = -tl.where(scale < float("inf"), scale, 0.0)[:, :, None]
        inverse = tl.broadcast_to(inverse, value.shape)
        less = tl.broadcast_to(less, value.shape)
        near = value * inverse
        near = tl.fma(tl.fma(near, less, value), inverse, near)
        near = tl.fma(tl.fma(near, less, value), inverse, near)
        # -0 + 0 is 0, and the code of -0 is another.
        sign = value.to(tl.int32, bitcast=True) & -0x80000000
        result = (near.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return result


@triton.jit
def _slots_of(slot_mapping, token, tokens, capacity):
    """(slot of each token, whether there is a token, whether the cache has its slot).

    Slot 0 stands for one that the cache has not.
    """
    given = token < tokens
    inside = given
    if slot_mapping is None:
        slot = token
    else:
        slot = tl.load(slot_mapping + token, given, other=-1)
        inside = given & (slot >= 0) & (slot < capacity)
    return tl.where(inside, slot, 0), given, inside


@triton.jit
def _rows_of(
    cache,
    slot,
    block_stride,
    PAGE: tl.constexpr,
    PITCH: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_PITCH: tl.constexpr,
):
    """Byte pointers to the codes of each slot, and to its scales."""
    block = cache + (slot // PAGE).to(tl.int64) * block_stride
    offset = (slot % PAGE).to(tl.int64)
    return block + offset * PITCH, block + SCALES + offset * SCALE_PITCH


@triton.jit
def quantize_sparse_kv_body(
    k_nope,  # [T, COUNT * TILE], last stride 1
    k_rope,  # [T, ROPE], last stride 1, or None
    slot_mapping,  # [T], or None: token t goes to slot t
    cache,  # bytes, [blocks, PAGE, row]
    tokens,
    capacity,  # slots of the cache
    k_nope_stride,  # [UNIT elements] from token to token
    k_rope_stride,
    block_stride,  # [BYTES bytes] from block to block
    PAGE: tl.constexpr,
    PITCH: tl.constexpr,  # [bytes] from codes to codes of a block
    SCALES: tl.constexpr,  # [bytes] from the beginning of a block to its first scale
    SCALE_PITCH: tl.constexpr,  # [bytes] from token to token
    ROPE_AT: tl.constexpr,  # [bytes] from the codes of a token to its rope
    COUNT: tl.constexpr,  # tiles of a token
    TILES: tl.constexpr,  # the least power of two that is not below COUNT
    TILE: tl.constexpr,  # values that share a scale
    ROPE: tl.constexpr,
    POW2: tl.constexpr,  # scales are rounded up to powers of two
    E8M0: tl.constexpr,  # and stored as exponent bytes; else as float32
    FNUZ: tl.constexpr,  # codes are e4m3fnuz
    UNIT: tl.constexpr,
    BYTES: tl.constexpr,
    ALIGNED: tl.constexpr,  # rope and scales of the cache lie at multiples of their sizes
    TOKENS: tl.constexpr,  # tokens of a program, a power of two
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
    INTERPRETED: tl.constexpr,
):
    """Grid: ceil(tokens / TOKENS). A token whose slot the cache lacks is not kept."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # this early: see rmsnorm_body
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot, given, inside = _slots_of(slot_mapping, token, tokens, capacity)
    codes, scales = _rows_of(cache, slot, block_stride * BYTES, PAGE, PITCH, SCALES, SCALE_PITCH)
    token = token.to(tl.int64)
    tile = tl.arange(0, TILES)[None, :]
    column = tile[:, :, None] * TILE + tl.arange(0, TILE)[None, None, :]
    here, live = given[:, None], inside[:, None]
    if TILES != COUNT:
        here, live = here & (tile < COUNT), live & (tile < COUNT)

    # Tokens are read whatever their slots are, so that all loads are under way at once.
    row = k_nope + token * (k_nope_stride * UNIT)
    value = tl.load(row[:, None, None] + column, here[:, :, None], other=0).to(tl.float32)
    if ROPE:
        turned = k_rope + (token * (k_rope_stride * UNIT))[:, None] + tl.arange(0, ROPE)[None, :]
        key = tl.load(turned, given[:, None], other=0)
    LIMIT: tl.constexpr = 240.0 if FNUZ else 448.0
    scale = fp8_scale(amax_of(value, 2), LIMIT, POW2)
    if POW2:
        # Exact: a power of two, and no smaller than 2^-42, has an inverse.
        value *= tl.div_rn(1.0, scale)[:, :, None]
    else:
        value = _quotient(value, scale, INTERPRETED)
    code = encode_fp8(value, FNUZ, INTERPRETED)
    tl.store(codes[:, None, None] + column, code, live[:, :, None])
    if E8M0:
        scale = (scale.to(tl.int32, bitcast=True) >> 23).to(tl.uint8)  # NaN and infinity: 255
    _put(scales[:, None], scale, live, ALIGNED)
    if ROPE:
        if key.dtype != tl.bfloat16:
            like = cache.to(tl.pointer_type(tl.bfloat16))
            key = rounded(key.to(tl.float32), like, INTERPRETED).to(tl.bfloat16)
        _put((codes + ROPE_AT)[:, None], key, inside[:, None], ALIGNED)


@triton.jit
def dequantize_sparse_kv_body(
    cache,  # bytes, [blocks, PAGE, row]
    slot_mapping,  # [T], or None: every slot in order
    out,  # [T, COUNT * TILE + ROPE], contiguous
    tokens,
    capacity,  # slots of the cache
    block_stride,  # [BYTES bytes] from block to block
    PAGE: tl.constexpr,  # from here to ROPE as in quantize_sparse_kv_body
    PITCH: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_PITCH: tl.constexpr,
    ROPE_AT: tl.constexpr,
    COUNT: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    ROPE: tl.constexpr,
    E8M0: tl.constexpr,  # scales are exponent bytes; else float32
    FNUZ: tl.constexpr,  # codes are e4m3fnuz
    BYTES: tl.constexpr,
    ALIGNED: tl.constexpr,
    TOKENS: tl.constexpr,
    USE_PDL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid: ceil(tokens / TOKENS). A slot that the cache lacks is not read: its row is zeros."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # this early: see rmsnorm_body
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot, given, inside = _slots_of(slot_mapping, token, tokens, capacity)
    codes, scales = _rows_of(cache, slot, block_stride * BYTES, PAGE, PITCH, SCALES, SCALE_PITCH)
    tile = tl.arange(0, TILES)[None, :]
    column = tile[:, :, None] * TILE + tl.arange(0, TILE)[None, None, :]
    here, live = given[:, None], inside[:, None]
    if TILES != COUNT:
        here, live = here & (tile < COUNT), live & (tile < COUNT)

    code = tl.load(codes[:, None, None] + column, live[:, :, None], other=0)
    if E8M0:
        byte = _take(scales[:, None], live, TILES, tl.uint8, ALIGNED).to(tl.int32)
        # 2^-127 is no normal number, and 255 is NaN.
        bits = tl.where(byte == 0, 0x400000, tl.where(byte == 255, 0x7FC00000, byte << 23))
        scale = tl.where(live, bits.to(tl.float32, bitcast=True), 0.0)
    else:
        scale = _take(scales[:, None], live, TILES, tl.float32, ALIGNED)
    if ROPE:
        key = _take((codes + ROPE_AT)[:, None], inside[:, None], ROPE, tl.bfloat16, ALIGNED)
    if not INTERPRETED:
        code = code.to(tl.float8e4b8 if FNUZ else tl.float8e4nv, bitcast=True)
    value = real(code, "e4m3fnuz" if FNUZ else "e4m3fn", tl.float32, INTERPRETED)
    value = rounded(value * scale[:, :, None], out, INTERPRETED).to(out.dtype.element_ty)
    row = out + token.to(tl.int64) * (COUNT * TILE + ROPE)
    tl.store(row[:, None, None] + column, value, here[:, :, None])
    if ROPE:
        turned = row[:, None] + COUNT * TILE + tl.arange(0, ROPE)[None, :]
        if out.dtype.element_ty != tl.bfloat16:
            key = key.to(tl.float32).to(out.dtype.element_ty)
        tl.store(turned, key, given[:, None])


@triton.jit
def logical_to_physical_body(
    indices,  # [B, q_len, K], last stride 1
    block_table,  # [B, pages], last stride 1
    out,  # like indices
    q_len,
    pages,
    indices_stride,  # [elements] from sequence to sequence, and from query to query
    indices_query_stride,
    block_table_stride,
    out_stride,
    out_query_stride,
    K: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,  # entries of a program, a power of two
):
    """Grid (B * q_len, ceil(K / BLOCK)); see `archkey.ops.sparse_kv`."""
    row = tl.program_id(0)
    sequence, query = (row // q_len).to(tl.int64), (row % q_len).to(tl.int64)
    indices += sequence * indices_stride + query * indices_query_stride
    out += sequence * out_stride + query * out_query_stride
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < K
    index = tl.load(indices + column, live, other=-1)
    at = index // PAGE
    known = (index >= 0) & (at < pages)
    page = tl.load(block_table + sequence * block_table_stride + at, known, other=-1)
    slot = page.to(tl.int64) * PAGE + index % PAGE
    known &= (page >= 0) & (slot <= _INT32_MAX)
    tl.store(out + column, tl.where(known, slot, -1).to(tl.int32), live)

# SPDX-License-Identifier: Apache-2.0
"""How the rows that a list names come into shared memory, in Gluon for Hopper's warp groups.

Both loaders fill a ring of tiles. `left` and `right` are halves of the latent, `turned` is the
rotated key, `hidden` is 0 for an entry that names a key and -inf for one that names none; whose row
is zeros then, and read from nowhere. A tile's `full` counts the arrivals of its asynchronous copies
and one more when everything else is there.

Entries are asked for a tile before they are looked at: a row's address waits for its entry.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

__all__ = ["SHIFT", "load_codes", "load_rows"]

SHIFT: gl.constexpr = gl.constexpr(1073741824.0)
"""2^30: what keys that were codes lack, see `_values`."""

_HALF: gl.constexpr = gl.constexpr(256)
_ROPE: gl.constexpr = gl.constexpr(64)
_TILE: gl.constexpr = gl.constexpr(128)
_BIAS: gl.constexpr = gl.constexpr(1.2379400392853803e27)  # 2^90
_WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))
_NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
_NARROW_8: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0]))
_CODES: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 16], [4, 8], [8, 1], [1, 0]))
_LINES: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 1], [4, 8], [8, 1], [1, 0]))


@gluon.jit
def _entries(entries, step, stop, KEYS: gl.constexpr, LAYOUT: gl.constexpr):
    """A tile's entries as they are, -1 past the end."""
    j = step + gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT))
    return gl.load(entries + j, j < stop, other=-1)


@gluon.jit
def _rows(
    kv, slot, last, block_stride, slot_stride, PAGE: gl.constexpr, UNIT: gl.constexpr
):  # fmt: skip
    """Addresses [KEYS, 1] of the rows of entries, and which of these [KEYS] name a key."""
    there = (slot >= 0) & (slot <= last)
    slot = gl.where(there, slot, 0)
    offset = (slot // PAGE).to(gl.int64) * block_stride
    if PAGE > 1:
        offset += (slot % PAGE).to(gl.int64) * slot_stride
    return kv + gl.expand_dims(offset * UNIT, 1), there


@gluon.jit
def load_rows(
    kv, entries, start, stop, last, block_stride, slot_stride, left, right, turned, hidden, full,
    empty, PAGE: gl.constexpr, UNIT: gl.constexpr, ROPE: gl.constexpr,
):  # fmt: skip
    """Rows of bfloat16 as they are, by four warps."""
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    wide = gl.expand_dims(gl.arange(0, _HALF, gl.SliceLayout(0, _WIDE)), 0)
    narrow = gl.expand_dims(gl.arange(0, _ROPE, gl.SliceLayout(0, _NARROW)), 0)
    slot = _entries(entries, start, stop, KEYS, _WIDE)
    near = _entries(entries, start, stop, KEYS, _NARROW)
    for i in range(gl.cdiv(stop - start, KEYS)):
        buffer, step = i % BUFFERS, start + (i + 1) * KEYS
        row, there = _rows(kv, slot, last, block_stride, slot_stride, PAGE, UNIT)
        place, named = _rows(kv, near, last, block_stride, slot_stride, PAGE, UNIT)
        slot = _entries(entries, step, stop, KEYS, _WIDE)
        near = _entries(entries, step, stop, KEYS, _NARROW)
        mbarrier.wait(empty.index(buffer), ((i // BUFFERS) & 1) ^ 1)
        there = gl.expand_dims(there, 1)
        async_copy.async_copy_global_to_shared(left.index(buffer), row + wide, there)
        async_copy.async_copy_global_to_shared(right.index(buffer), row + (_HALF + wide), there)
        if ROPE:
            place = place + (2 * _HALF + narrow)
            async_copy.async_copy_global_to_shared(
                turned.index(buffer), place, gl.expand_dims(named, 1)
            )
        async_copy.mbarrier_arrive(full.index(buffer), increment_count=False)
        hidden.index(buffer).store(gl.where(named, 0.0, float("-inf")))
        gl.thread_barrier()
        mbarrier.arrive(full.index(buffer), count=1)


@gluon.jit
def _fetch(row, there, ROW: gl.constexpr):
    """Lines of packed rows into L2, so that the loads that come for them soon are short."""
    line = 128 * gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(0, _LINES)), 0)
    place = (row + gl.minimum(line, ROW - 1)).to(gl.int64)
    place = gl.where(gl.expand_dims(there, 1), place, 0)
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u64 p, $1, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l", [place], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _chunk(row, there, T: gl.constexpr):
    """(codes [KEYS, 128], scales [KEYS, 1]) of tile T of packed rows' latents."""
    column = gl.expand_dims(gl.arange(0, _TILE, gl.SliceLayout(0, _CODES)), 0)
    there = gl.expand_dims(there, 1)
    code = gl.load(row + (T * _TILE + column), there, other=0)
    scale = (row + (4 * _TILE + 4 * T)).to(gl.pointer_type(gl.float32))
    return code, gl.load(scale, there, other=0.0)


@gluon.jit
def _pair(x):
    """x as bfloat16, twice in 32 bits."""
    half = x.to(gl.bfloat16).to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    return half | (half << 16)


@gluon.jit
def _values(code, scale):
    """code * scale / SHIFT, rounded once to bfloat16, whatever float32 the scale is.

    A code's bits, moved to their places in a bfloat16, are its value by 2^-120: subnormal ones
    too. The scale, by 2^90, is the sum of two bfloat16: of their products with a code only the last
    sum is rounded to what counts. Two instructions an element, where float32 takes four.
    A scale is 2^37 at most. A NaN among codes counts as 480: whoever writes one writes it with a
    scale of NaN, since the scale is a maximum over the tile.
    """
    scale *= _BIAS
    high = scale.to(gl.bfloat16).to(gl.float32)
    high, code = gl.broadcast(_pair(high), code)
    low, code = gl.broadcast(_pair(scale - scale.to(gl.bfloat16).to(gl.float32)), code)
    return gl.inline_asm_elementwise(
        """{ .reg .b32 x, y, t, u;
        prmt.b32 x, $2, 0, 0x1404; prmt.b32 y, $2, 0, 0x3424;
        and.b32 t, x, 0x80008000; and.b32 u, y, 0x80008000;
        shr.u32 x, x, 4; shr.u32 y, y, 4;
        lop3.b32 x, x, 0x07f007f0, t, 0xEA; lop3.b32 y, y, 0x07f007f0, u, 0xEA;
        mul.rn.bf16x2 t, x, $7; mul.rn.bf16x2 u, y, $7;
        fma.rn.bf16x2 $0, x, $3, t; fma.rn.bf16x2 $1, y, $3, u; }""",
        "=r,=r,r,r,r,r,r,r,r,r,r", [code, high, low], dtype=gl.bfloat16, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def load_codes(
    kv, entries, start, stop, last, block_stride, slot_stride, left, right, turned, hidden, full,
    empty, PAGE: gl.constexpr, UNIT: gl.constexpr, ROPE: gl.constexpr,
):  # fmt: skip
    """Packed rows of e4m3fn, four scales a row, decoded to bfloat16 by eight warps.

    Two of a tile's four parts are on their way to registers at a time; more do not fit there, and
    were slower.
    """
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    kv = kv.to(gl.pointer_type(gl.uint8))
    narrow = gl.expand_dims(gl.arange(0, _ROPE, gl.SliceLayout(0, _NARROW_8)), 0)
    near = _entries(entries, start, stop, KEYS, _NARROW_8)
    slot = _entries(entries, start, stop, KEYS, _CODES)
    row, there = _rows(kv, slot, last, block_stride, slot_stride, PAGE, UNIT)
    code, scale = _chunk(row, there, 0)
    next_code, next_scale = _chunk(row, there, 1)
    slot = _entries(entries, start + KEYS, stop, KEYS, _CODES)
    later = _entries(entries, start + 2 * KEYS, stop, KEYS, _LINES)
    for i in range(gl.cdiv(stop - start, KEYS)):
        buffer, step = i % BUFFERS, start + (i + 1) * KEYS
        far, named = _rows(kv, later, last, block_stride, slot_stride, PAGE, UNIT)
        _fetch(far, named, 4 * _TILE + 16 + 2 * ROPE)
        later = _entries(entries, step + 2 * KEYS, stop, KEYS, _LINES)
        place, named = _rows(kv, near, last, block_stride, slot_stride, PAGE, UNIT)
        mbarrier.wait(empty.index(buffer), ((i // BUFFERS) & 1) ^ 1)
        if ROPE:
            place = (place + (4 * _TILE + 16)).to(gl.pointer_type(gl.bfloat16)) + narrow
            async_copy.async_copy_global_to_shared(
                turned.index(buffer), place, gl.expand_dims(named, 1)
            )
        async_copy.mbarrier_arrive(full.index(buffer), increment_count=False)
        hidden.index(buffer).store(gl.where(named, 0.0, float("-inf")))
        near = _entries(entries, step, stop, KEYS, _NARROW_8)
        for t in gl.static_range(4):
            value = _values(code, scale)
            code, scale = next_code, next_scale
            if t == 2:
                row, there = _rows(kv, slot, last, block_stride, slot_stride, PAGE, UNIT)
                slot = _entries(entries, step + KEYS, stop, KEYS, _CODES)
            next_code, next_scale = _chunk(row, there, (t + 2) % 4)
            side = left if t < 2 else right
            side.index(buffer).slice(t % 2 * _TILE, _TILE, 1).store(value)
        # No fence here: it would wait for the loads under way. Who multiplies has one.
        gl.thread_barrier()
        mbarrier.arrive(full.index(buffer), count=1)

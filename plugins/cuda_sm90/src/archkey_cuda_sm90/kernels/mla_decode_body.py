# SPDX-License-Identifier: Apache-2.0
"""MLA decode for Hopper's warp groups, in Gluon: two multiply, a third loads.

A tile is 64 rows (queries with their heads) of a sequence, as of the shared body. Its sums, 64 by
512 in float32, fill the registers of two warp groups: each has half of the values' columns, and
both compute all scores, so that neither waits for the other's. That is a third more products than
need be, and no exchange of weights, maxima and sums between the groups at every step.

They take turns at the scores: while one group's products run, the other is at its exponentials.
The third group copies rows of the latent cache, of any page size, into two buffers of 64 keys.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

__all__ = ["mla_decode_body"]

_HALF: gl.constexpr = gl.constexpr(256)
_ROPE: gl.constexpr = gl.constexpr(64)
_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_LN2: gl.constexpr = gl.constexpr(0.6931471805599453)
_WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))
_NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


@gluon.jit
def _griddepcontrol(ASM: gl.constexpr):
    """Wait for the kernel before, or let the next one start: Gluon has no name for either."""
    gl.inline_asm_elementwise(ASM, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _row_offsets(
    table, step, last, block_stride, slot_stride, PAGE: gl.constexpr, UNIT: gl.constexpr,
    KEYS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Offsets [KEYS, 1] of a step's rows in the cache, and which of them there are."""
    lane = gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT))
    j = step + lane
    there = j < last
    if PAGE % KEYS == 0:  # one page, and one slot after the other
        page = gl.load(table + step // PAGE).to(gl.int64)
        offset = (page * block_stride + (step % PAGE + lane).to(gl.int64) * slot_stride) * UNIT
    else:
        page = gl.load(table + j // PAGE, there, other=0).to(gl.int64)
        offset = (page * block_stride + (j % PAGE).to(gl.int64) * slot_stride) * UNIT
    return gl.expand_dims(offset, 1), gl.expand_dims(there, 1)


@gluon.jit
def _load(
    kv_cache, table, start, stop, last, block_stride, slot_stride, left, right, turned, full, empty,
    PAGE: gl.constexpr, UNIT: gl.constexpr, ROPE: gl.constexpr,
):  # fmt: skip
    """The third group: rows of keys, a step at a time, into the buffer that is free."""
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    wide = gl.expand_dims(gl.arange(0, _HALF, gl.SliceLayout(0, _WIDE)), 0)
    narrow = gl.expand_dims(gl.arange(0, _ROPE, gl.SliceLayout(0, _NARROW)), 0)
    for i in range(gl.cdiv(stop - start, KEYS)):
        step, buffer = start + i * KEYS, i % BUFFERS
        offset, there = _row_offsets(
            table, step, last, block_stride, slot_stride, PAGE, UNIT, KEYS, _WIDE
        )
        mbarrier.wait(empty.index(buffer), ((i // BUFFERS) & 1) ^ 1)
        row = kv_cache + offset
        async_copy.async_copy_global_to_shared(left.index(buffer), row + wide, there)
        async_copy.async_copy_global_to_shared(right.index(buffer), row + (_HALF + wide), there)
        if ROPE:
            offset, there = _row_offsets(
                table, step, last, block_stride, slot_stride, PAGE, UNIT, KEYS, _NARROW
            )
            place = kv_cache + offset + (2 * _HALF + narrow)
            async_copy.async_copy_global_to_shared(turned.index(buffer), place, there)
        async_copy.commit_group()
        async_copy.wait_group(0)
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(full.index(buffer), count=1)


@gluon.jit
def _fill(
    room, q, q_stride, q_head_stride, row, count, first, HEADS: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """The tile's queries from column `first` on, as many as shared memory `room` has."""
    rows = row + gl.arange(0, room.shape[0], gl.SliceLayout(1, LAYOUT))
    column = first + gl.expand_dims(gl.arange(0, room.shape[1], gl.SliceLayout(0, LAYOUT)), 0)
    place = (rows // HEADS).to(gl.int64) * q_stride + (rows % HEADS).to(gl.int64) * q_head_stride
    live = gl.expand_dims(rows < count, 1)
    room.store(gl.load(q + gl.expand_dims(place, 1) + column, live, other=0.0))


@gluon.jit
def _write(
    value, room, place, row, count, t_stride, head_stride, HEADS: gl.constexpr
):  # fmt: skip
    """Rows of `value` to `place`, through shared memory, so that a warp writes whole lines."""
    ROWS: gl.constexpr = value.shape[0]
    WIDTH: gl.constexpr = value.shape[1]
    PER_THREAD: gl.constexpr = 128 // value.dtype.primitive_bitwidth
    LINES: gl.constexpr = gl.BlockedLayout([1, PER_THREAD], [1, 32], [4, 1], [1, 0])
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(PER_THREAD, 1, 8, [1, 0])
    staged = room._reinterpret(value.dtype, [ROWS, WIDTH], SHARED)
    staged.store(value)
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, LINES))
    offset = (rows // HEADS).to(gl.int64) * t_stride + (rows % HEADS).to(gl.int64) * head_stride
    column = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, LINES)), 0)
    live = gl.expand_dims(rows < count, 1)
    gl.store(place + gl.expand_dims(offset, 1) + column, staged.load(LINES), live)


@gluon.jit
def _attend(
    q, q_stride, q_head_stride, q_left, q_right, q_turned, left, right, turned, ready, full, empty,
    mine, other, start, stop, last, context, row, count, factor, out, lse, part_total, part_top,
    part_mass, part, segments, out_stride, out_head_stride, lse_stride, lse_head_stride,
    SIDE: gl.constexpr, HEADS: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr,
    ROPE: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    """A multiplying group: all scores, and the values' columns of its side."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    PER_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    ROWS: gl.constexpr = q_left.shape[0]
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    own_q = q_left if SIDE == 0 else q_right
    _fill(own_q, q, q_stride, q_head_stride, row, count, SIDE * _HALF, HEADS, _WIDE)
    if ROPE and SIDE == 0:
        _fill(q_turned, q, q_stride, q_head_stride, row, count, 2 * _HALF, HEADS, _NARROW)
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.arrive(ready, count=1)
    mbarrier.wait(ready, 0)

    rows = row + gl.arange(0, ROWS, PER_ROW)
    lane = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    limit = gl.full([ROWS], last, gl.int32, PER_ROW)
    open_until = last
    if CAUSAL:
        limit = gl.minimum(limit, context + rows // HEADS + 1)
        open_until = gl.minimum(last, context + row // HEADS + 1)
    total = gl.zeros([ROWS, _HALF], gl.float32, SUMS)
    nothing = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    top = gl.full([ROWS], float("-inf"), gl.float32, PER_ROW)
    mass = gl.zeros([ROWS], gl.float32, PER_ROW)
    for i in range(gl.cdiv(stop - start, KEYS)):
        step, buffer = start + i * KEYS, i % BUFFERS
        phase = (i // BUFFERS) & 1
        mbarrier.wait(full.index(buffer), phase)
        mbarrier.wait(mine, (i & 1) ^ (1 - SIDE))
        score = warpgroup_mma(
            q_left, left.index(buffer).permute((1, 0)), nothing, use_acc=False, is_async=True
        )
        score = warpgroup_mma(q_right, right.index(buffer).permute((1, 0)), score, is_async=True)
        if ROPE:
            score = warpgroup_mma(
                q_turned, turned.index(buffer).permute((1, 0)), score, is_async=True
            )
        score = warpgroup_mma_wait(0, deps=[score])
        mbarrier.arrive(other, count=1)
        if step + KEYS > open_until:
            seen = gl.expand_dims(step + lane, 0) < gl.expand_dims(limit, 1)
            score = gl.where(seen, score, float("-inf"))
        highest = gl.maximum(top, gl.max(score, 1) * factor)
        level = gl.where(highest == float("-inf"), 0.0, highest)
        weight = gl.exp2(score * factor - gl.expand_dims(level, 1))
        shrink = gl.exp2(top - level)
        mass = mass * shrink + gl.sum(weight, 1)
        top = highest
        weight = gl.convert_layout(weight.to(q_left.dtype), WEIGHTS)
        shrink = gl.convert_layout(shrink, gl.SliceLayout(1, SUMS))
        total = total * gl.expand_dims(shrink, 1)
        if SIDE == 0:
            total = warpgroup_mma(weight, left.index(buffer), total, is_async=True)
        else:
            total = warpgroup_mma(weight, right.index(buffer), total, is_async=True)
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(empty.index(buffer), count=1)

    # Its buffers are free when the other group's last scores are done, too.
    room = left if SIDE == 0 else right
    if SIDE == 0:
        mbarrier.wait(mine, (gl.cdiv(gl.maximum(stop - start, 0), KEYS) & 1) ^ 1)
    live = rows < count
    if SPLITS and segments > 1:
        if SIDE == 0:
            own = (part + rows.to(gl.int64)) * segments + gl.program_id(1)
            gl.store(part_top + own, top, live)
            gl.store(part_mass + own, mass, live)
        if start < stop:  # sums of no key are not read
            place = part_total + (part * segments + gl.program_id(1)) * DV + SIDE * _HALF
            step = segments.to(gl.int64) * DV
            _write(total, room, place, row, count, HEADS * step, step, HEADS)
    else:
        mass = gl.where(mass > 0, mass, 1.0)
        share = gl.convert_layout(1.0 / mass, gl.SliceLayout(1, SUMS))
        value = (total * gl.expand_dims(share, 1)).to(out.dtype.element_ty)
        _write(value, room, out + SIDE * _HALF, row, count, out_stride, out_head_stride, HEADS)
        if lse is not None and SIDE == 0:
            own = (rows // HEADS).to(gl.int64) * lse_stride
            own += (rows % HEADS).to(gl.int64) * lse_head_stride
            gl.store(lse + own, (top + gl.log2(mass)) * _LN2, live)


@gluon.jit
def mla_decode_body(
    q,  # all arguments as of `archkey.kernels.mla_decode_body`
    kv_cache,
    block_table,
    cache_seqlens,
    cu_seqlens_q,
    q_descale,
    kv_descale,
    out,
    lse,
    part_total,
    part_top,
    part_mass,
    tokens,
    sequences,
    queries,
    segments,
    window_left,
    softmax_scale,
    q_sequence_stride,
    q_stride,
    q_head_stride,
    block_stride,
    slot_stride,
    out_sequence_stride,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    table_stride,
    HEADS: gl.constexpr,
    D: gl.constexpr,
    DV: gl.constexpr,
    PAGE: gl.constexpr,
    UNIT: gl.constexpr,
    KV_UNIT: gl.constexpr,
    OUT_UNIT: gl.constexpr,
    CAUSAL: gl.constexpr,
    SPLITS: gl.constexpr,
    ROWS: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    USE_PDL: gl.constexpr,
):
    """A tile of rows of a sequence and a segment of its keys a program. Grid: tiles, segments."""
    if USE_PDL:
        _griddepcontrol("griddepcontrol.wait; // $0")
        _griddepcontrol("griddepcontrol.launch_dependents; // $0")
    program = gl.program_id(0)
    tiles = gl.cdiv(queries * HEADS, ROWS)
    sequence, row = program // tiles, program % tiles * ROWS
    count = queries * HEADS
    length = gl.load(cache_seqlens + sequence)
    context = length - queries
    start, last = 0, length
    if CAUSAL:
        last = gl.maximum(context + (gl.minimum(row + ROWS, count) - 1) // HEADS + 1, 0)
    stop = last
    if SPLITS and segments > 1:
        each = gl.cdiv(gl.cdiv(last, KEYS), segments) * KEYS
        start = gl.program_id(1) * each
        stop = gl.minimum(start + each, last)
    sequence = sequence.to(gl.int64)
    q += sequence * (q_sequence_stride * UNIT)
    out += sequence * (out_sequence_stride * OUT_UNIT)
    part = sequence * count
    if lse is not None:
        lse += sequence * queries * lse_stride
    factor = softmax_scale * _LOG2E

    ROPE: gl.constexpr = D - 2 * _HALF
    q_stride, q_head_stride = q_stride * UNIT, q_head_stride * UNIT
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    dtype: gl.constexpr = kv_cache.dtype.element_ty
    q_left = gl.allocate_shared_memory(dtype, [ROWS, _HALF], SHARED)
    q_right = gl.allocate_shared_memory(dtype, [ROWS, _HALF], SHARED)
    q_turned = gl.allocate_shared_memory(dtype, [ROWS, _ROPE], SHARED) if ROPE else q_left
    left = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _HALF], SHARED)
    right = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _HALF], SHARED)
    turned = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _ROPE], SHARED) if ROPE else left
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()

    table = block_table + sequence * table_stride
    out_stride, out_head_stride = out_stride * OUT_UNIT, out_head_stride * OUT_UNIT
    gl.warp_specialize(
        [
            (
                _load,
                (
                    kv_cache, table, start, stop, last, block_stride, slot_stride, left, right,
                    turned, full, empty, PAGE, KV_UNIT, ROPE,
                ),
            ),
            (
                _attend,
                (
                    q, q_stride, q_head_stride, q_left, q_right, q_turned, left, right, turned,
                    ready, full, empty, turns.index(0), turns.index(1), start, stop, last,
                    context, row, count, factor, out, lse, part_total, part_top, part_mass, part,
                    segments, out_stride, out_head_stride, lse_stride, lse_head_stride, 0, HEADS,
                    DV, CAUSAL, ROPE, SPLITS,
                ),
            ),
            (
                _attend,
                (
                    q, q_stride, q_head_stride, q_left, q_right, q_turned, left, right, turned,
                    ready, full, empty, turns.index(1), turns.index(0), start, stop, last,
                    context, row, count, factor, out, lse, part_total, part_top, part_mass, part,
                    segments, out_stride, out_head_stride, lse_stride, lse_head_stride, 1, HEADS,
                    DV, CAUSAL, ROPE, SPLITS,
                ),
            ),
        ],
        [4, 4],
        [216, 216],
    )  # fmt: skip

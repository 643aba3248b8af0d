# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA for Hopper's warp groups, in Gluon: two multiply, the others load.

A tile is 64 heads of a token. Its sums, 64 by 512 in float32, fill the registers of two warp
groups: each has half of the values' columns. They take turns at the scores of 32 keys: whose turn
it is posts the weights and the highest score so far in shared memory, and both add up their values.
So no product is computed twice. While one group is at its scores, the other one's sums run.

Steps are short so that four fit into shared memory: rows of a list lie anywhere, and are long on
their way. `archkey_cuda_sm90.kernels.sparse_mla_rows` says how they come.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from archkey_cuda_sm90.kernels.mla_decode_body import _fill, _griddepcontrol, _write
from archkey_cuda_sm90.kernels.sparse_mla_rows import SHIFT, load_codes, load_rows

__all__ = ["sparse_mla_body"]

_HALF: gl.constexpr = gl.constexpr(256)
_ROPE: gl.constexpr = gl.constexpr(64)
_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_LN2: gl.constexpr = gl.constexpr(0.6931471805599453)
_WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))
_NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


@gluon.jit
def _level(top):
    """What is subtracted from scores: their maximum; 0 if there is none, as -inf - -inf is NaN."""
    return gl.where(top == float("-inf"), 0.0, top)


@gluon.jit
def _scores(
    q_left, q_right, q_turned, left, right, turned, full, i, SCORES: gl.constexpr,
    ROPE: gl.constexpr,
):  # fmt: skip
    """Start the products of tile i's scores, when it is there."""
    ROWS: gl.constexpr = q_left.shape[1]
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    buffer = i % BUFFERS
    # 0, which no compiler knows: descriptors of q, which are many, are not kept over the loop.
    own = i >> 24
    score = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    mbarrier.wait(full.index(buffer), (i // BUFFERS) & 1)
    fence_async_shared()
    score = warpgroup_mma(
        q_left.index(own), left.index(buffer).permute((1, 0)), score, use_acc=False, is_async=True
    )
    score = warpgroup_mma(
        q_right.index(own), right.index(buffer).permute((1, 0)), score, is_async=True
    )
    if ROPE:
        score = warpgroup_mma(
            q_turned.index(own), turned.index(buffer).permute((1, 0)), score, is_async=True
        )
    return score


@gluon.jit
def _weights(turned, buffer, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Room for a tile's weights: where its rotated keys were, which are multiplied by then."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout(2 * KEYS, 16, 2)
    return turned.index(buffer)._reinterpret(turned.dtype, [ROWS, KEYS], SHARED)


@gluon.jit
def _post(score, top, mass, hidden, tops, turned, posted, i, factor):
    """(top, mass) with tile i's scores, whose weights and top are posted."""
    ROWS: gl.constexpr = score.shape[0]
    KEYS: gl.constexpr = score.shape[1]
    buffer = i % turned.shape[0]
    bias = hidden.index(buffer).load(gl.SliceLayout(0, score.type.layout))
    score = score + gl.expand_dims(bias, 0)
    highest = gl.maximum(top, gl.max(score, 1) * factor)
    tops.index(buffer).store(highest)
    level = _level(highest)
    weight = gl.exp2(score * factor - gl.expand_dims(level, 1))
    mass = mass * gl.exp2(top - level) + gl.sum(weight, 1)
    _weights(turned, buffer, ROWS, KEYS).store(weight.to(turned.dtype))
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.arrive(posted.index(buffer), count=1)
    return highest, mass


@gluon.jit
def _posted(top, mass, tops, full, posted, i, PER_ROW: gl.constexpr):
    """(top, mass) with tile i, which the other group weighed."""
    BUFFERS: gl.constexpr = tops.shape[0]
    buffer, phase = i % BUFFERS, (i // BUFFERS) & 1
    mbarrier.wait(full.index(buffer), phase)
    mbarrier.wait(posted.index(buffer), phase)
    fence_async_shared()
    highest = tops.index(buffer).load(PER_ROW)
    return highest, mass * gl.exp2(top - _level(highest))


@gluon.jit
def _add(total, before, top, room, turned, i, SUMS: gl.constexpr):
    """Start the sum of tile i's values, after what the sums so far shrink by."""
    buffer = i % room.shape[0]
    shrink = gl.convert_layout(gl.exp2(before - _level(top)), gl.SliceLayout(1, SUMS))
    total = total * gl.expand_dims(shrink, 1)
    weight = _weights(turned, buffer, total.shape[0], room.shape[1])
    return warpgroup_mma(weight, room.index(buffer), total, is_async=True)


@gluon.jit
def _attend(
    q, q_head_stride, q_left, q_right, q_turned, left, right, turned, hidden, tops, masses, ready,
    full, empty, posted, ended, start, stop, row, factor, attn_sink, out, lse, max_logits,
    part_total, part_top, part_mass, part, segments, out_head_stride, lse_head_stride,
    max_head_stride, SIDE: gl.constexpr, HEADS: gl.constexpr, DV: gl.constexpr, ROPE: gl.constexpr,
    PACKED: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    """A multiplying group: scores of every other tile, and the values' columns of its side."""
    ROWS: gl.constexpr = q_left.shape[1]
    BUFFERS: gl.constexpr = left.shape[0]
    KEYS: gl.constexpr = left.shape[1]
    # With 512 threads, ptxas takes no instruction of more than the 128 registers of an even share.
    COLUMNS: gl.constexpr = 128 if PACKED else 256
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    PER_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    PER_SUM: gl.constexpr = gl.SliceLayout(1, SUMS)
    whole = SHIFT if PACKED else 1.0
    own_q = q_left if SIDE == 0 else q_right
    _fill(own_q.index(0), q, 0, q_head_stride, row, HEADS, SIDE * _HALF, HEADS, _WIDE)
    if ROPE and SIDE == 0:
        room = q_turned.index(0)
        _fill(room, q, 0, q_head_stride, row, HEADS, 2 * _HALF, HEADS, _NARROW)
        if PACKED:  # keys that were codes lack it, rotated ones do not
            room.store((room.load(_NARROW).to(gl.float32) / SHIFT).to(room.dtype))
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.arrive(ready, count=1)
    mbarrier.wait(ready, 0)

    factor *= whole
    room = left if SIDE == 0 else right
    total = gl.zeros([ROWS, _HALF], gl.float32, SUMS)
    top = gl.full([ROWS], float("-inf"), gl.float32, PER_ROW)
    mass = gl.zeros([ROWS], gl.float32, PER_ROW)
    tiles = gl.cdiv(gl.maximum(stop - start, 0), KEYS)
    first = tiles * 0
    if SIDE == 0 and tiles > 0:
        score = _scores(
            q_left, q_right, q_turned, left, right, turned, full, first, SCORES, ROPE
        )  # fmt: skip
        score = warpgroup_mma_wait(0, deps=[score])
        top, mass = _post(score, top, mass, hidden, tops, turned, posted, first, factor)
        total = _add(total, top, top, room, turned, first, SUMS)
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(empty.index(0), count=1)
    for i in range(2 - SIDE, tiles, 2):
        # Products of its own tile first: they need not wait for the other group.
        score = _scores(q_left, q_right, q_turned, left, right, turned, full, i, SCORES, ROPE)
        before = top
        top, mass = _posted(top, mass, tops, full, posted, i - 1, PER_ROW)
        middle = top
        if PACKED:  # weights are posted sooner
            score = warpgroup_mma_wait(0, deps=[score])
            top, mass = _post(score, top, mass, hidden, tops, turned, posted, i, factor)
            total = _add(total, before, middle, room, turned, i - 1, SUMS)
        else:
            total = _add(total, before, middle, room, turned, i - 1, SUMS)
            score = warpgroup_mma_wait(1, deps=[score])
            top, mass = _post(score, top, mass, hidden, tops, turned, posted, i, factor)
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(empty.index((i - 1) % BUFFERS), count=1)
        total = _add(total, middle, top, room, turned, i, SUMS)
        total = warpgroup_mma_wait(0, deps=[total])
        mbarrier.arrive(empty.index(i % BUFFERS), count=1)
    if tiles > 0 and tiles % 2 == SIDE:
        before = top
        top, mass = _posted(top, mass, tops, full, posted, tiles - 1, PER_ROW)
        total = _add(total, before, top, room, turned, tiles - 1, SUMS)
        total = warpgroup_mma_wait(0, deps=[total])

    # Each group summed the weights of its own tiles.
    masses.index(SIDE).store(mass)
    gl.thread_barrier()
    mbarrier.arrive(ended, count=1)
    mbarrier.wait(ended, 0)
    mass = mass + masses.index(1 - SIDE).load(PER_ROW)
    rows = row + gl.arange(0, ROWS, PER_ROW)
    live = rows < HEADS
    if SPLITS and segments > 1:
        if SIDE == 0:
            own = (part + rows.to(gl.int64)) * segments + gl.program_id(1)
            gl.store(part_top + own, top, live)
            gl.store(part_mass + own, mass, live)
        if start < stop:  # sums of no key are not read
            step = segments.to(gl.int64) * DV
            place = part_total + (part * segments + gl.program_id(1)) * DV + SIDE * _HALF
            _write(total * whole, room, place, row, HEADS, 0, step, HEADS)
    else:
        share = gl.where(mass > 0, 1.0 / mass, 0.0)
        if attn_sink is not None:
            sink = gl.load(attn_sink + rows, live, other=0.0) * _LOG2E
            level = _level(gl.maximum(top, sink))
            shrink = gl.exp2(top - level)
            # What a fused multiplication leaves of a sink minus itself is not 0: 4e22 of 1e30.
            mixed = mass * shrink + gl.exp2(gl.minimum(sink - level, 0.0))
            share = gl.where(mixed > 0, shrink / mixed, 0.0)
        share = gl.convert_layout(share * whole, PER_SUM)
        value = (total * gl.expand_dims(share, 1)).to(out.dtype.element_ty)
        _write(value, room, out + SIDE * _HALF, row, HEADS, 0, out_head_stride, HEADS)
        if lse is not None and SIDE == 0:
            mass = gl.where(mass > 0, mass, 1.0)
            own = rows.to(gl.int64) * lse_head_stride
            gl.store(lse + own, (top + gl.log2(mass)) * _LN2, live)
        if max_logits is not None and SIDE == 0:
            gl.store(max_logits + rows.to(gl.int64) * max_head_stride, top * _LN2, live)


@gluon.jit
def sparse_mla_body(
    q,  # all arguments as of `archkey.kernels.sparse_mla_body`
    kv,
    indices,
    topk_length,
    extra_kv,
    extra_indices,
    extra_topk_length,
    attn_sink,
    out,
    lse,
    max_logits,
    part_total,
    part_top,
    part_mass,
    queries,
    segments,
    last,
    extra_last,
    length_each,
    extra_length_each,
    softmax_scale,
    q_sequence_stride,
    q_stride,
    q_head_stride,
    block_stride,
    slot_stride,
    extra_block_stride,
    extra_slot_stride,
    list_sequence_stride,
    list_stride,
    extra_list_sequence_stride,
    extra_list_stride,
    out_sequence_stride,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    max_stride,
    max_head_stride,
    HEADS: gl.constexpr,
    D: gl.constexpr,
    DV: gl.constexpr,
    TOPK: gl.constexpr,
    PAGE: gl.constexpr,
    UNIT: gl.constexpr,
    KV_UNIT: gl.constexpr,
    OUT_UNIT: gl.constexpr,
    FP8: gl.constexpr,
    SPLITS: gl.constexpr,
    ROWS: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    USE_PDL: gl.constexpr,
):
    """A token's tile of heads and a segment of its list a program. Grid: tiles, segments."""
    if USE_PDL:
        _griddepcontrol("griddepcontrol.wait; // $0")
        _griddepcontrol("griddepcontrol.launch_dependents; // $0")
    TILES: gl.constexpr = (HEADS + ROWS - 1) // ROWS
    PACKED: gl.constexpr = FP8 != "none"
    ROPE: gl.constexpr = D - 2 * _HALF
    token, row = gl.program_id(0) // TILES, gl.program_id(0) % TILES * ROWS
    sequence, t = (token // queries).to(gl.int64), (token % queries).to(gl.int64)
    start, stop = 0, gl.to_tensor(TOPK)
    if topk_length is not None:
        stop = gl.minimum(gl.maximum(gl.load(topk_length + token // length_each), 0), TOPK)
    if SPLITS and segments > 1:
        each = gl.cdiv(gl.cdiv(stop, KEYS), segments) * KEYS
        start = gl.program_id(1) * each
        stop = gl.minimum(start + each, stop)
    q += (sequence * q_sequence_stride + t * q_stride) * UNIT
    out += (sequence * out_sequence_stride + t * out_stride) * OUT_UNIT
    entries = indices + (sequence * list_sequence_stride + t * list_stride)
    q_head_stride, out_head_stride = q_head_stride * UNIT, out_head_stride * OUT_UNIT
    part = token.to(gl.int64) * HEADS
    if lse is not None:
        lse += token.to(gl.int64) * lse_stride
    if max_logits is not None:
        max_logits += token.to(gl.int64) * max_stride
    factor = softmax_scale * _LOG2E

    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    dtype: gl.constexpr = gl.bfloat16
    q_left = gl.allocate_shared_memory(dtype, [1, ROWS, _HALF], SHARED)
    q_right = gl.allocate_shared_memory(dtype, [1, ROWS, _HALF], SHARED)
    q_turned = gl.allocate_shared_memory(dtype, [1, ROWS, _ROPE], SHARED) if ROPE else q_left
    left = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _HALF], SHARED)
    right = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _HALF], SHARED)
    turned = gl.allocate_shared_memory(dtype, [STAGES, KEYS, _ROPE], SHARED)
    hidden = gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], FLAT)
    tops = gl.allocate_shared_memory(gl.float32, [STAGES, ROWS], FLAT)
    masses = gl.allocate_shared_memory(gl.float32, [2, ROWS], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    posted = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ended = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=2)
    mbarrier.init(ended, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=32 * gl.num_warps() + 1)
        mbarrier.init(empty.index(i), count=2)
        mbarrier.init(posted.index(i), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                load_codes if PACKED else load_rows,
                (
                    kv, entries, start, stop, last, block_stride, slot_stride, left, right, turned,
                    hidden, full, empty, PAGE, KV_UNIT, ROPE,
                ),
            ),
            (
                _attend,
                (
                    q, q_head_stride, q_left, q_right, q_turned, left, right, turned, hidden, tops,
                    masses, ready, full, empty, posted, ended, start, stop, row, factor, attn_sink,
                    out, lse, max_logits, part_total, part_top, part_mass, part, segments,
                    out_head_stride, lse_head_stride, max_head_stride, 0, HEADS, DV, ROPE, PACKED,
                    SPLITS,
                ),
            ),
            (
                _attend,
                (
                    q, q_head_stride, q_left, q_right, q_turned, left, right, turned, hidden, tops,
                    masses, ready, full, empty, posted, ended, start, stop, row, factor, attn_sink,
                    out, lse, max_logits, part_total, part_top, part_mass, part, segments,
                    out_head_stride, lse_head_stride, max_head_stride, 1, HEADS, DV, ROPE, PACKED,
                    SPLITS,
                ),
            ),
        ],
        [4, 4],
        [176, 176] if PACKED else [216, 216],
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""What a chunk of KDA needs from its own tokens alone, in Gluon for four warps.

As `archkey.kernels.kda_chunk_body`, whose symbols these are, but with everything in registers; how
is said in `archkey_cuda_sm90.kernels.kda_chunk_parts`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
)

from archkey.kernels import kda_parts
from archkey_cuda_sm90.kernels.kda_chunk_parts import (
    ALL,
    COLUMNS,
    GATES,
    LINE,
    NARROW,
    OWN,
    PLAIN,
    PLAIN_LINE,
    ROWS,
    SMALL,
    SWIZZLED,
    WARPS,
    WARPS_LEFT,
    WIDE,
    added,
    as_sums,
    blocks,
    by_block,
    far,
    half_of,
    inverse,
    log_gates,
    near,
    norms,
    put,
    side_by_side,
    unit,
    with_square,
)

__all__ = ["kda_chunk_body"]

_part_of = gluon.jit(kda_parts.part_of.fn)
_step_size = gluon.jit(kda_parts.step_size.fn)


@gluon.jit
def kda_chunk_body(
    q, k, v, g, beta, A_log, dt_bias, state_indices, cu_seqlens, w, u, qg, kg, within, decay, out,
    sequences, tokens, scale, lower_bound, index_stride, q_batch, q_stride, q_head, k_batch,
    k_stride, k_head, v_batch, v_stride, v_head, g_batch, g_stride, g_head, beta_batch, beta_stride,
    beta_head, out_batch, out_stride, out_head, HV: gl.constexpr, GROUP: gl.constexpr,
    UNIT: gl.constexpr, G_UNIT: gl.constexpr, OUT_UNIT: gl.constexpr, GATE: gl.constexpr,
    BETA: gl.constexpr, CODE: gl.constexpr,
):  # fmt: skip
    """Parameters as those of the shared body; K, V and C are 128, 128 and 64."""
    head = gl.program_id(0)
    chunk_slot = gl.program_id(1)
    sequence, batch, first, count, _ = _part_of(cu_seqlens, sequences, tokens, chunk_slot, 64)
    if count <= 0:
        return
    batch64, first64, head64 = batch.to(gl.int64), first.to(gl.int64), head.to(gl.int64)
    line = gl.arange(0, 64, gl.SliceLayout(1, WIDE))
    column = gl.arange(0, 128, gl.SliceLayout(0, WIDE))
    there = gl.expand_dims(line < count, 1)
    known = sequence < sequences
    if state_indices is not None:
        known = gl.load(state_indices + sequence.to(gl.int64) * index_stride, known, other=-1) >= 0
    if not known:
        out += (batch64 * out_batch + first64 * out_stride + head64 * out_head) * OUT_UNIT
        rows = gl.expand_dims(line.to(gl.int64) * out_stride * OUT_UNIT, 1)
        rows = out + (rows + gl.expand_dims(column, 0))
        gl.store(rows, gl.zeros([64, 128], out.dtype.element_ty, WIDE), there)
        return

    group64 = (head // GROUP).to(gl.int64)
    q += (batch64 * q_batch + first64 * q_stride + group64 * q_head) * UNIT
    k += (batch64 * k_batch + first64 * k_stride + group64 * k_head) * UNIT
    v += (batch64 * v_batch + first64 * v_stride + head64 * v_head) * UNIT
    g += (batch64 * g_batch + first64 * g_stride + head64 * g_head) * G_UNIT
    beta += batch64 * beta_batch + first64 * beta_stride + head64 * beta_head
    place = chunk_slot.to(gl.int64) * HV + head

    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    values = gl.allocate_shared_memory(CODE, [64, 128], TILE)
    rows = v + (gl.expand_dims(line.to(gl.int64) * v_stride * UNIT, 1) + gl.expand_dims(column, 0))
    async_copy.async_copy_global_to_shared(values, rows, there)
    async_copy.commit_group()

    # All that is needed from memory is asked for before any of it is looked at.
    g0, g1 = (
        half_of(g, g_stride, count, G_UNIT, 0, GATES),
        half_of(g, g_stride, count, G_UNIT, 1, GATES),
    )
    i = gl.arange(0, 64, LINE)
    step = gl.load(beta + i.to(gl.int64) * beta_stride, i < count, other=0).to(gl.float32)
    q0, q1 = half_of(q, q_stride, count, UNIT, 0, ROWS), half_of(q, q_stride, count, UNIT, 1, ROWS)
    k0, k1 = half_of(k, k_stride, count, UNIT, 0, ROWS), half_of(k, k_stride, count, UNIT, 1, ROWS)
    rate = 1.0
    if A_log is not None:
        rate = gl.exp(gl.load(A_log + head).to(gl.float32))
    if dt_bias is not None:
        dt_bias += head * 128
    g0 = log_gates(g0, rate, dt_bias, lower_bound, count, GATE, 0)
    g1 = log_gates(g1, rate, dt_bias, lower_bound, count, GATE, 1)
    steps = gl.allocate_shared_memory(gl.float32, [64], PLAIN_LINE)
    steps.store(gl.where(i < count, _step_size(step, BETA), 0.0))
    lines = gl.allocate_shared_memory(gl.float32, [4, 4, 128], PLAIN)
    lines.index(0).slice(0, 64, dim=1).store(gl.sum(g0, 1))
    lines.index(0).slice(64, 64, dim=1).store(gl.sum(g1, 1))
    g0, g1 = as_sums(g0.to(gl.float16)), as_sums(g1.to(gl.float16))

    same, k_rate, q_rate = norms(q0, q1, k0, k1)
    q0, q1 = unit(q0, q_rate), unit(q1, q_rate)
    k0, k1 = unit(k0, k_rate), unit(k1, k_rate)

    # Of blocks as a whole: what is left after those before, of those after, and of one between.
    own = lines.index(0).load(COLUMNS)
    total = gl.sum(own, 0)
    before = gl.associative_scan(own, 0, added) - own
    after = gl.minimum(gl.expand_dims(total, 0) - before - own, 0.0)
    block = gl.expand_dims(gl.arange(0, 4, gl.SliceLayout(1, COLUMNS)), 1)
    second = gl.sum(gl.where(block == 1, own, 0.0), 0)
    third = gl.sum(gl.where(block == 2, own, 0.0), 0)
    second, third = gl.expand_dims(second, 0), gl.expand_dims(third, 0)
    between = gl.where(block == 0, second, gl.where(block == 3, third, 0.0))
    lines.index(1).store(gl.exp2(gl.minimum(before, 0.0)))
    lines.index(2).store(gl.exp2(after))
    lines.index(3).store(gl.exp2(between))
    d = gl.arange(0, 128, gl.SliceLayout(0, COLUMNS))
    gl.store(decay + place * 128 + d, gl.exp2(total))

    keys, queries = near(q0, q1, k0, k1, g0, g1)

    # Between blocks: rows of all with those of blocks 0 and 2 in pairs, of 0 and 1 in halves.
    two = gl.allocate_shared_memory(gl.float16, [2, 64, 64], SWIZZLED)
    grown = gl.allocate_shared_memory(CODE, [64, 128], TILE)
    qg += place * 8192
    kg += place * 8192
    none = gl.zeros([64, 16], gl.float32, ALL)
    sums = none, none, none, none, none, none, none, none
    sums = far(q0, k0, g0, 0, lines, two, grown, qg, kg, scale, sums, CODE)
    sums = far(q1, k1, g1, 1, lines, two, grown, qg, kg, scale, sums, CODE)
    block = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, OWN)))[:, None, None]
    keys_4 = gl.where(block == 3, by_block(sums[2]), by_block(sums[0]))
    queries_4 = gl.where(block == 3, by_block(sums[3]), by_block(sums[1]))
    odd = block % 2 == 1
    keys_5a, queries_5a = by_block(sums[4]), by_block(sums[5])
    keys_5b, queries_5b = by_block(sums[6]), by_block(sums[7])

    # A.
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, OWN)))[None, None, :]
    same = gl.convert_layout(same, gl.SliceLayout(2, OWN))
    queries = gl.where(n == m, gl.expand_dims(same, 2), queries)
    tile = blocks(block, queries, queries_4, queries_5a, queries_5b) * scale
    line = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, NARROW)), 1)
    near_column = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(0, NARROW)), 0)
    target = within + place * 4096 + line * 64 + near_column
    gl.store(target, gl.convert_layout(tile.to(CODE), NARROW))

    # T.
    step = gl.expand_dims(steps.reshape([4, 16]).load(gl.SliceLayout(2, OWN)), 2)
    solved = inverse(keys * step)
    small = gl.allocate_shared_memory(gl.float16, [64, 16], SMALL)
    put(small, solved)
    keys_4 = (keys_4 * step).to(gl.float16)
    between = gl.where(block == 3, with_square(keys_4, small, 32), with_square(keys_4, small, 0))
    other = gl.allocate_shared_memory(gl.float16, [64, 16], SMALL)
    put(other, between)
    half = solved.to(gl.float16)
    solved_4 = -gl.where(block == 3, with_square(half, other, 48), with_square(half, other, 16))
    pair = side_by_side(gl.where(odd, solved_4, solved), gl.where(odd, solved, 0.0))
    wide = gl.allocate_shared_memory(gl.float16, [64, 32], SMALL)
    put(wide, pair)
    keys_5 = side_by_side(keys_5a * step, keys_5b * step).to(gl.float16)
    step = with_square(keys_5, wide, 0)
    wider = gl.allocate_shared_memory(gl.float16, [64, 32], SMALL)
    put(wider, step)
    solved_5 = -with_square(pair.to(gl.float16), wider, 32)
    solved_5a, solved_5b = gl.split(solved_5.reshape([4, 16, 2, 16]).permute((0, 1, 3, 2)))
    solved_5a, solved_5b = gl.convert_layout(solved_5a, OWN), gl.convert_layout(solved_5b, OWN)
    tile = blocks(block, solved, solved_4, solved_5a, solved_5b)
    tile = gl.convert_layout(tile, WARPS_LEFT)
    tile = tile * gl.expand_dims(steps.load(gl.SliceLayout(0, WARPS_LEFT)), 0)
    weights = tile.to(CODE)
    rest = (tile - weights.to(gl.float32)).to(CODE)

    async_copy.wait_group(0)
    fence_async_shared()
    gl.thread_barrier()
    line = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, WIDE)), 1)
    column = gl.expand_dims(gl.arange(0, 128, gl.SliceLayout(0, WIDE)), 0)
    target = place * 8192 + line * 128 + column
    total = gl.zeros([64, 128], gl.float32, WARPS)
    total = warpgroup_mma(rest, values, total)
    total = warpgroup_mma(weights, values, total)
    gl.store(u + target, gl.convert_layout(total.to(CODE), WIDE))
    total = gl.zeros([64, 128], gl.float32, WARPS)
    total = warpgroup_mma(rest, grown, total)
    total = warpgroup_mma(weights, grown, total)
    gl.store(w + target, gl.convert_layout(total.to(CODE), WIDE))

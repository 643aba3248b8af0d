# SPDX-License-Identifier: Apache-2.0
"""What a chunk of KDA needs from its own tokens alone, in Gluon for four warps.

As `archkey.kernels.kda_chunk_body`, whose symbols these are, with everything in registers: a warp
has 16 tokens, a block of the chunk, as the matrix units hold them. Its rows of k there are both
operands of `k k^T`, and sums of gates over any tokens of it are products with a matrix of zeros and
ones, so that what happens within a block moves nothing. Blocks meet in shared memory.

Columns come to the matrix units in an order of their own (`_as_rows`, `_as_sums`), in which a
thread's eight neighbours in memory stay together; a sum over columns does not see it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mma_v2,
    warpgroup_mma,
)

from archkey.kernels import kda_parts

__all__ = ["kda_chunk_body"]

_log_gate, _part_of, _step_size = (
    gluon.jit(part.fn) for part in (kda_parts.log_gate, kda_parts.part_of, kda_parts.step_size)
)
_SIGMOID: gl.constexpr = gl.constexpr(
    "{ .reg .f32 t; ex2.approx.ftz.f32 t, $1; add.f32 t, t, 0f3f800000; rcp.approx.ftz.f32 $0, t; }"
)

_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_L2_EPS: gl.constexpr = gl.constexpr(1e-6)
# Products of a block with itself, and of all blocks with one.
_OWN: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8]))
_OWN_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, _OWN, 2))
_OWN_RIGHT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(1, _OWN, 2))
_ALL: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8]))
_ALL_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, _ALL, 2))
_ALL_RIGHT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(1, _ALL, 2))
_GROUP: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
_GROUP_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, _GROUP, 2))
# A thread of k and q has 8 neighbours twice, of two tokens; of g, 8 of four tokens.
_ROWS: gl.constexpr = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 0, 32], [0, 8, 0]],
        [[0, 0, 8], [0, 0, 16], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[1, 0, 0], [2, 0, 0]],
        [],
        [4, 16, 64],
    )
)
_ROWS_OF_ONE: gl.constexpr = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 32], [8, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[0, 0], [0, 0]],
        [],
        [16, 64],
    )
)
_GATES: gl.constexpr = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 8, 0]],
        [[0, 2, 0], [0, 4, 0], [0, 0, 32], [0, 0, 8], [0, 0, 16]],
        [[1, 0, 0], [2, 0, 0]],
        [],
        [4, 16, 64],
    )
)
_WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
_NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
_COLUMNS: gl.constexpr = gl.constexpr(gl.BlockedLayout([4, 1], [1, 32], [1, 4], [1, 0]))
_LINE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
_PLAIN_LINE: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
_PLAIN: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
_SWIZZLED: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))
_SMALL: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(8, 2, 4, [1, 0]))


@gluon.jit
def _as_rows(x):
    """A tile [4, 16, 64] with the columns in the order in which they are multiplied."""
    x = x.reshape([4, 16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 2, 5, 6, 3, 4, 7))
    return x.reshape([4, 16, 64])


@gluon.jit
def _one_as_rows(x):
    """The same of one block [16, 64]."""
    x = x.reshape([16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 4, 5, 2, 3, 6))
    return x.reshape([16, 64])


@gluon.jit
def _as_sums(x):
    """Gates [4, 16, 64] with the columns in the order in which tokens are summed."""
    x = x.reshape([4, 16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 5, 6, 7, 3, 4, 2))
    return gl.convert_layout(x.reshape([4, 16, 64]), _OWN_RIGHT, assert_trivial=True)


@gluon.jit
def _from_sums(x):
    """The inverse of `_as_sums` for their sums."""
    x = x.reshape([4, 16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 7, 5, 6, 2, 3, 4))
    return gl.convert_layout(x.reshape([4, 16, 64]), _ROWS, assert_trivial=True)


@gluon.jit
def _times(a, b, total):
    """total + a @ b^T of every block by itself; float16."""
    a = gl.convert_layout(a, _OWN_LEFT, assert_trivial=True)
    b = gl.convert_layout(b.permute((0, 2, 1)), _OWN_RIGHT, assert_trivial=True)
    return mma_v2(a, b, total)


@gluon.jit
def _squared(x, y):
    """x @ y^T of the squares of every block by itself."""
    none = gl.zeros([4, 16, 16], gl.float32, _OWN)
    return _times(x.to(gl.float16), y.to(gl.float16), none)


@gluon.jit
def _left(x):
    """Rows of all blocks, to be multiplied with something that they share."""
    x = x.reshape([64, x.shape[2]])
    return gl.convert_layout(x, _ALL_LEFT, assert_trivial=True)


@gluon.jit
def _by_block(x):
    x = x.reshape([4, 16, x.shape[1]])
    return gl.convert_layout(x, _OWN, assert_trivial=True)


@gluon.jit
def _with_square(a, room, first):
    """a [4, 16, n] with the n rows in shared memory from `first` on: [4, 16, columns there]."""
    N: gl.constexpr = a.shape[2]
    WIDTH: gl.constexpr = room.shape[1]
    total = gl.zeros([64, WIDTH], gl.float32, _ALL)
    return _by_block(mma_v2(_left(a), room.slice(first, N).load(_ALL_RIGHT), total))


@gluon.jit
def _ranges(low, high):
    """[4, 16, 16] of ones where `low < j <= high`, to sum gates with."""
    j = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, _OWN_LEFT)))[None, None, :]
    ones = gl.where((j > low) & (j <= high), 1.0, 0.0).to(gl.float16)
    return ones + gl.zeros([4, 16, 16], gl.float16, _OWN_LEFT)


@gluon.jit
def _left_over(ranges, gates):
    """[4, 16, 64]: 2 to the sum of a tile's gates over a range for each row."""
    none = gl.zeros([4, 16, 64], gl.float32, _OWN)
    # What is below the smallest normal number may as well be 0.
    return _per_element("ex2.approx.ftz.f32 $0, $1;", _from_sums(mma_v2(ranges, gates, none)))


@gluon.jit
def _per_element(text: gl.constexpr, x):
    return gl.inline_asm_elementwise(
        text, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _half(x, stride, count, UNIT: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr):
    """Half of the columns of a chunk's rows, [4, 16, 64]; 0 where there is no token."""
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    i = b * 16 + n
    place = i.to(gl.int64) * (stride * UNIT) + (64 * HALF + d)
    return gl.load(x + place, i < count, other=0)


@gluon.jit
def _gates(
    x, rate, dt_bias, lower_bound, count, GATE: gl.constexpr, HALF: gl.constexpr
):  # fmt: skip
    """Log gates of half of the columns, in units of ln 2, from g as it is in memory."""
    x = x.to(gl.float32)
    if dt_bias is not None:
        d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, _GATES)))
        x += gl.load(dt_bias + 64 * HALF + d).to(gl.float32)[None, None, :]
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, _GATES)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _GATES)))[None, :, None]
    if GATE == "sigmoid":
        x = (lower_bound * _LOG2E) * _per_element(_SIGMOID, x * (-_LOG2E * rate))
    else:
        x = _log_gate(x, rate, lower_bound, GATE) * _LOG2E
    return gl.where(b * 16 + n < count, x, 0.0)


@gluon.jit
def _lines(room, line, HALF: gl.constexpr):
    """[4, 1, 64] factors of blocks, of half of the columns."""
    LAYOUT: gl.constexpr = gl.SliceLayout(1, _ROWS)
    return gl.expand_dims(room.index(line).slice(64 * HALF, 64, dim=1).load(LAYOUT), 1)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _four(a, b, c, d):
    """[64, 64] of the columns of four blocks, each [4, 16, 16]."""
    x = gl.join(gl.join(a, c), gl.join(b, d))
    return x.permute((0, 1, 3, 4, 2)).reshape([64, 64])


@gluon.jit
def _two(a, b):
    """[4, 16, 32] of the columns of two blocks, each [4, 16, 16]."""
    return gl.join(a, b).permute((0, 1, 3, 2)).reshape([4, 16, 32])


@gluon.jit
def _put(room, x):
    """Rows of all blocks into shared memory, as float16."""
    room.store(x.to(gl.float16).reshape([64, x.shape[2]]))


@gluon.jit
def _inverse(keys):
    """The inverse of I + keys, of every block by itself; keys are below the diagonal."""
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, _OWN)))[None, None, :]
    one = gl.where(n == m, 1.0, 0.0) + gl.zeros([4, 16, 16], gl.float32, _OWN)
    parting = gl.where(n > m, n ^ m, 0)
    between = gl.where(parting == 1, keys, 0.0)
    solved, turned = one - between, one - _squared(one, between)
    for level in gl.static_range(1, 4):
        between = gl.where(parting >> level == 1, keys, 0.0)
        step = _squared(turned, between)  # what lies between, times the inverse; transposed
        solved, turned = solved - _squared(solved, step), turned - _squared(step, solved)
    return solved


@gluon.jit
def _near(q0, q1, k0, k1, g0, g1):
    """(k k^T, q k^T) of every block by itself, below the diagonal."""
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, _OWN)))[None, None, :]
    parting = gl.where(n > m, n ^ m, 0)
    row = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN_LEFT)))[None, :, None]
    none = gl.zeros([4, 16, 16], gl.float32, _OWN)
    keys, queries = none, none
    for level in gl.static_range(4):
        meeting = (row | ((2 << level) - 1)) - (1 << level)
        ranges = _ranges(gl.minimum(row, meeting), gl.maximum(row, meeting))
        here = parting >> level == 1
        left = _left_over(ranges, g0).to(gl.float16)
        part = _as_rows(k0 * left)
        k_sum = _times(part, part, none)
        q_sum = _times(_as_rows(q0 * left), part, none)
        left = _left_over(ranges, g1).to(gl.float16)
        part = _as_rows(k1 * left)
        keys = gl.where(here, _times(part, part, k_sum), keys)
        queries = gl.where(here, _times(_as_rows(q1 * left), part, q_sum), queries)
    return keys, queries


@gluon.jit
def _norms(q0, q1, k0, k1):
    """(products of q and k at unit length, factors of k and of q for that), each [4, 16]."""
    a, b, c, d = q0.to(gl.float32), q1.to(gl.float32), k0.to(gl.float32), k1.to(gl.float32)
    q_rate = gl.rsqrt(gl.sum(a * a + b * b, 2) + _L2_EPS)
    k_rate = gl.rsqrt(gl.sum(c * c + d * d, 2) + _L2_EPS)
    return gl.sum(a * c + b * d, 2) * (q_rate * k_rate), k_rate, q_rate


@gluon.jit
def _unit(x, rate):
    return (x.to(gl.float32) * gl.expand_dims(rate, 2)).to(gl.float16)


@gluon.jit
def _meet(target, x, left, HALF: gl.constexpr, CODE: gl.constexpr):
    """Half of a tile of rows that meet a state, to memory."""
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, _ROWS)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _ROWS)))[None, :, None]
    d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, _ROWS)))[None, None, :]
    rows = (x.to(gl.float32) * left).to(CODE)
    gl.store(target + ((b * 16 + n) * 128 + (64 * HALF + d)), rows)


@gluon.jit
def _blocks(block, own, next_one, first, second):
    """[64, 64], lower triangular, of what the rows of every block have with its own columns, with

    those of the block before in its pair, and with those of the first pair.
    """
    a = gl.where(block == 0, own, gl.where(block == 1, next_one, first))
    b = gl.where(block == 1, own, gl.where(block == 0, 0.0, second))
    c = gl.where(block == 2, own, gl.where(block == 3, next_one, 0.0))
    d = gl.where(block == 3, own, 0.0)
    return _four(a, b, c, d)


@gluon.jit
def _one(room, first):
    """The rows of one block in shared memory, for every warp to multiply with."""
    b = _one_as_rows(room.slice(first, 16).load(_ROWS_OF_ONE))
    return gl.convert_layout(b.permute((1, 0)), _ALL_RIGHT, assert_trivial=True)


@gluon.jit
def _far(
    q, k, gates, HALF: gl.constexpr, lines, two, grown, qg, kg, scale, sums, CODE: gl.constexpr
):  # fmt: skip
    """Half of the columns, between blocks and beyond the chunk.

    Writes rows that meet a state; returns sums with this half's products: with blocks 0 and 2 at
    the level of pairs, with 0 and 1 at that of halves, of keys and of queries in turn.
    """
    row = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN_LEFT)))[None, :, None]
    block = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, _ROWS)))[:, None, None]
    since, until = _left_over(_ranges(-1, row), gates), _left_over(_ranges(row, 15), gates)
    met = since * _lines(lines, 1, HALF)
    _meet(qg, q, met * scale, HALF, CODE)
    part = (k.to(gl.float32) * met).to(CODE)
    grown.slice(64 * HALF, 64, dim=1).store(part.reshape([64, 64]))
    _meet(kg, k, until * _lines(lines, 2, HALF), HALF, CODE)
    left = gl.where(block % 2 == 1, since, until).to(gl.float16)
    near_k, near_q = k * left, _left(_as_rows(q * left))
    left = (gl.where(block >= 2, since, until) * _lines(lines, 3, HALF)).to(gl.float16)
    far_k, far_q = k * left, _left(_as_rows(q * left))
    two.index(0).store(near_k.reshape([64, 64]))
    two.index(1).store(far_k.reshape([64, 64]))
    near_k, far_k = _left(_as_rows(near_k)), _left(_as_rows(far_k))
    a, b, c, d, e, f, g, h = sums
    one = _one(two.index(0), 0)
    a, b = mma_v2(near_k, one, a), mma_v2(near_q, one, b)
    one = _one(two.index(0), 32)
    c, d = mma_v2(near_k, one, c), mma_v2(near_q, one, d)
    one = _one(two.index(1), 0)
    e, f = mma_v2(far_k, one, e), mma_v2(far_q, one, f)
    one = _one(two.index(1), 16)
    g, h = mma_v2(far_k, one, g), mma_v2(far_q, one, h)
    return a, b, c, d, e, f, g, h


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
    line = gl.arange(0, 64, gl.SliceLayout(1, _WIDE))
    column = gl.arange(0, 128, gl.SliceLayout(0, _WIDE))
    there = gl.expand_dims(line < count, 1)
    known = sequence < sequences
    if state_indices is not None:
        known = gl.load(state_indices + sequence.to(gl.int64) * index_stride, known, other=-1) >= 0
    if not known:
        out += (batch64 * out_batch + first64 * out_stride + head64 * out_head) * OUT_UNIT
        rows = gl.expand_dims(line.to(gl.int64) * out_stride * OUT_UNIT, 1)
        rows = out + (rows + gl.expand_dims(column, 0))
        gl.store(rows, gl.zeros([64, 128], out.dtype.element_ty, _WIDE), there)
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
    g0, g1 = _half(g, g_stride, count, G_UNIT, 0, _GATES), _half(g, g_stride, count, G_UNIT, 1, _GATES)
    i = gl.arange(0, 64, _LINE)
    step = gl.load(beta + i.to(gl.int64) * beta_stride, i < count, other=0).to(gl.float32)
    q0, q1 = _half(q, q_stride, count, UNIT, 0, _ROWS), _half(q, q_stride, count, UNIT, 1, _ROWS)
    k0, k1 = _half(k, k_stride, count, UNIT, 0, _ROWS), _half(k, k_stride, count, UNIT, 1, _ROWS)
    rate = 1.0
    if A_log is not None:
        rate = gl.exp(gl.load(A_log + head).to(gl.float32))
    if dt_bias is not None:
        dt_bias += head * 128
    g0 = _gates(g0, rate, dt_bias, lower_bound, count, GATE, 0)
    g1 = _gates(g1, rate, dt_bias, lower_bound, count, GATE, 1)
    steps = gl.allocate_shared_memory(gl.float32, [64], _PLAIN_LINE)
    steps.store(gl.where(i < count, _step_size(step, BETA), 0.0))
    lines = gl.allocate_shared_memory(gl.float32, [4, 4, 128], _PLAIN)
    lines.index(0).slice(0, 64, dim=1).store(gl.sum(g0, 1))
    lines.index(0).slice(64, 64, dim=1).store(gl.sum(g1, 1))
    g0, g1 = _as_sums(g0.to(gl.float16)), _as_sums(g1.to(gl.float16))

    same, k_rate, q_rate = _norms(q0, q1, k0, k1)
    q0, q1 = _unit(q0, q_rate), _unit(q1, q_rate)
    k0, k1 = _unit(k0, k_rate), _unit(k1, k_rate)

    # Of blocks as a whole: what is left after those before, of those after, and of one between.
    own = lines.index(0).load(_COLUMNS)
    total = gl.sum(own, 0)
    before = gl.associative_scan(own, 0, _add) - own
    after = gl.minimum(gl.expand_dims(total, 0) - before - own, 0.0)
    block = gl.expand_dims(gl.arange(0, 4, gl.SliceLayout(1, _COLUMNS)), 1)
    second = gl.sum(gl.where(block == 1, own, 0.0), 0)
    third = gl.sum(gl.where(block == 2, own, 0.0), 0)
    second, third = gl.expand_dims(second, 0), gl.expand_dims(third, 0)
    between = gl.where(block == 0, second, gl.where(block == 3, third, 0.0))
    lines.index(1).store(gl.exp2(gl.minimum(before, 0.0)))
    lines.index(2).store(gl.exp2(after))
    lines.index(3).store(gl.exp2(between))
    d = gl.arange(0, 128, gl.SliceLayout(0, _COLUMNS))
    gl.store(decay + place * 128 + d, gl.exp2(total))

    keys, queries = _near(q0, q1, k0, k1, g0, g1)

    # Between blocks: rows of all with those of blocks 0 and 2 in pairs, of 0 and 1 in halves.
    two = gl.allocate_shared_memory(gl.float16, [2, 64, 64], _SWIZZLED)
    grown = gl.allocate_shared_memory(CODE, [64, 128], TILE)
    qg += place * 8192
    kg += place * 8192
    none = gl.zeros([64, 16], gl.float32, _ALL)
    sums = none, none, none, none, none, none, none, none
    sums = _far(q0, k0, g0, 0, lines, two, grown, qg, kg, scale, sums, CODE)
    sums = _far(q1, k1, g1, 1, lines, two, grown, qg, kg, scale, sums, CODE)
    block = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, _OWN)))[:, None, None]
    keys_4 = gl.where(block == 3, _by_block(sums[2]), _by_block(sums[0]))
    queries_4 = gl.where(block == 3, _by_block(sums[3]), _by_block(sums[1]))
    odd = block % 2 == 1
    keys_5a, queries_5a = _by_block(sums[4]), _by_block(sums[5])
    keys_5b, queries_5b = _by_block(sums[6]), _by_block(sums[7])

    # A.
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, _OWN)))[None, None, :]
    same = gl.convert_layout(same, gl.SliceLayout(2, _OWN))
    queries = gl.where(n == m, gl.expand_dims(same, 2), queries)
    tile = _blocks(block, queries, queries_4, queries_5a, queries_5b) * scale
    line = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, _NARROW)), 1)
    near_column = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(0, _NARROW)), 0)
    target = within + place * 4096 + line * 64 + near_column
    gl.store(target, gl.convert_layout(tile.to(CODE), _NARROW))

    # T.
    step = gl.expand_dims(steps.reshape([4, 16]).load(gl.SliceLayout(2, _OWN)), 2)
    solved = _inverse(keys * step)
    small = gl.allocate_shared_memory(gl.float16, [64, 16], _SMALL)
    _put(small, solved)
    keys_4 = (keys_4 * step).to(gl.float16)
    between = gl.where(
        block == 3, _with_square(keys_4, small, 32), _with_square(keys_4, small, 0)
    )
    other = gl.allocate_shared_memory(gl.float16, [64, 16], _SMALL)
    _put(other, between)
    half = solved.to(gl.float16)
    solved_4 = -gl.where(
        block == 3, _with_square(half, other, 48), _with_square(half, other, 16)
    )
    pair = _two(gl.where(odd, solved_4, solved), gl.where(odd, solved, 0.0))
    wide = gl.allocate_shared_memory(gl.float16, [64, 32], _SMALL)
    _put(wide, pair)
    keys_5 = _two(keys_5a * step, keys_5b * step).to(gl.float16)
    step = _with_square(keys_5, wide, 0)
    wider = gl.allocate_shared_memory(gl.float16, [64, 32], _SMALL)
    _put(wider, step)
    solved_5 = -_with_square(pair.to(gl.float16), wider, 32)
    solved_5a, solved_5b = gl.split(solved_5.reshape([4, 16, 2, 16]).permute((0, 1, 3, 2)))
    solved_5a, solved_5b = gl.convert_layout(solved_5a, _OWN), gl.convert_layout(solved_5b, _OWN)
    tile = _blocks(block, solved, solved_4, solved_5a, solved_5b)
    tile = gl.convert_layout(tile, _GROUP_LEFT)
    tile = tile * gl.expand_dims(steps.load(gl.SliceLayout(0, _GROUP_LEFT)), 0)
    weights = tile.to(CODE)
    rest = (tile - weights.to(gl.float32)).to(CODE)

    async_copy.wait_group(0)
    fence_async_shared()
    gl.thread_barrier()
    line = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, _WIDE)), 1)
    column = gl.expand_dims(gl.arange(0, 128, gl.SliceLayout(0, _WIDE)), 0)
    target = place * 8192 + line * 128 + column
    total = gl.zeros([64, 128], gl.float32, _GROUP)
    total = warpgroup_mma(rest, values, total)
    total = warpgroup_mma(weights, values, total)
    gl.store(u + target, gl.convert_layout(total.to(CODE), _WIDE))
    total = gl.zeros([64, 128], gl.float32, _GROUP)
    total = warpgroup_mma(rest, grown, total)
    total = warpgroup_mma(weights, grown, total)
    gl.store(w + target, gl.convert_layout(total.to(CODE), _WIDE))

# SPDX-License-Identifier: Apache-2.0
"""Pieces of KDA's chunks in Gluon for four warps: layouts, products of blocks, and what they make.

A warp has 16 tokens, a block of the chunk, as the matrix units hold them. Its rows of k there are
both operands of `k k^T`, and sums of gates over any tokens of it are products with a matrix of
zeros and ones, so that what happens within a block moves nothing. Blocks meet in shared memory.

Columns come to the matrix units in an order of their own (`_as_rows`, `as_sums`), in which a
thread's eight neighbours in memory stay together; a sum over columns does not see it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from archkey.kernels import kda_parts
from archkey.kernels.kda_chunk_body import LEAST

__all__ = [
    "ALL",
    "COLUMNS",
    "GATES",
    "WARPS",
    "WARPS_LEFT",
    "LINE",
    "NARROW",
    "OWN",
    "PLAIN",
    "PLAIN_LINE",
    "ROWS",
    "SMALL",
    "SWIZZLED",
    "WIDE",
    "added",
    "as_sums",
    "blocks",
    "by_block",
    "far",
    "half_of",
    "inverse",
    "log_gates",
    "near",
    "norms",
    "put",
    "side_by_side",
    "unit",
    "with_square",
]

_log_gate = gluon.jit(kda_parts.log_gate.fn)
_SIGMOID: gl.constexpr = gl.constexpr(
    "{ .reg .f32 t; ex2.approx.ftz.f32 t, $1; add.f32 t, t, 0f3f800000; rcp.approx.ftz.f32 $0, t; }"
)

_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_L2_EPS: gl.constexpr = gl.constexpr(1e-6)
# Products of a block with itself, and of all blocks with one.
OWN: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8]))
_OWN_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, OWN, 2))
_OWN_RIGHT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(1, OWN, 2))
ALL: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8]))
_ALL_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, ALL, 2))
_ALL_RIGHT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(1, ALL, 2))
WARPS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
WARPS_LEFT: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, WARPS, 2))
# A thread of k and q has 8 neighbours twice, of two tokens; of g, 8 of four tokens.
ROWS: gl.constexpr = gl.constexpr(
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
GATES: gl.constexpr = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 8, 0]],
        [[0, 2, 0], [0, 4, 0], [0, 0, 32], [0, 0, 8], [0, 0, 16]],
        [[1, 0, 0], [2, 0, 0]],
        [],
        [4, 16, 64],
    )
)
WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
COLUMNS: gl.constexpr = gl.constexpr(gl.BlockedLayout([4, 1], [1, 32], [1, 4], [1, 0]))
LINE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
PLAIN_LINE: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
PLAIN: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
SWIZZLED: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))
SMALL: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(8, 2, 4, [1, 0]))


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
def as_sums(x):
    """Gates [4, 16, 64] with the columns in the order in which tokens are summed."""
    x = x.reshape([4, 16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 5, 6, 7, 3, 4, 2))
    return gl.convert_layout(x.reshape([4, 16, 64]), _OWN_RIGHT, assert_trivial=True)


@gluon.jit
def _from_sums(x):
    """The inverse of `as_sums` for their sums."""
    x = x.reshape([4, 16, 2, 2, 2, 2, 2, 2]).permute((0, 1, 7, 5, 6, 2, 3, 4))
    return gl.convert_layout(x.reshape([4, 16, 64]), ROWS, assert_trivial=True)


@gluon.jit
def _times(a, b, total):
    """total + a @ b^T of every block by itself; float16."""
    a = gl.convert_layout(a, _OWN_LEFT, assert_trivial=True)
    b = gl.convert_layout(b.permute((0, 2, 1)), _OWN_RIGHT, assert_trivial=True)
    return mma_v2(a, b, total)


@gluon.jit
def _squared(x, y):
    """x @ y^T of the squares of every block by itself."""
    none = gl.zeros([4, 16, 16], gl.float32, OWN)
    return _times(x.to(gl.float16), y.to(gl.float16), none)


@gluon.jit
def _left(x):
    """Rows of all blocks, to be multiplied with something that they share."""
    x = x.reshape([64, x.shape[2]])
    return gl.convert_layout(x, _ALL_LEFT, assert_trivial=True)


@gluon.jit
def by_block(x):
    """Rows of all blocks [64, n] as [4, 16, n]."""
    x = x.reshape([4, 16, x.shape[1]])
    return gl.convert_layout(x, OWN, assert_trivial=True)


@gluon.jit
def with_square(a, room, first):
    """a [4, 16, n] with the n rows in shared memory from `first` on: [4, 16, columns there]."""
    N: gl.constexpr = a.shape[2]
    WIDTH: gl.constexpr = room.shape[1]
    total = gl.zeros([64, WIDTH], gl.float32, ALL)
    return by_block(mma_v2(_left(a), room.slice(first, N).load(_ALL_RIGHT), total))


@gluon.jit
def _ranges(low, high):
    """[4, 16, 16] of ones where `low < j <= high`, to sum gates with."""
    j = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, _OWN_LEFT)))[None, None, :]
    ones = gl.where((j > low) & (j <= high), 1.0, 0.0).to(gl.float16)
    return ones + gl.zeros([4, 16, 16], gl.float16, _OWN_LEFT)


@gluon.jit
def _left_over(ranges, gates):
    """[4, 16, 64]: 2 to the sum of a tile's gates over a range for each row."""
    none = gl.zeros([4, 16, 64], gl.float32, OWN)
    # What is below the smallest normal number may as well be 0.
    return _per_element("ex2.approx.ftz.f32 $0, $1;", _from_sums(mma_v2(ranges, gates, none)))


@gluon.jit
def _per_element(text: gl.constexpr, x):
    return gl.inline_asm_elementwise(text, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def half_of(x, stride, count, UNIT: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr):
    """Half of the columns of a chunk's rows, [4, 16, 64]; 0 where there is no token."""
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    i = b * 16 + n
    place = i.to(gl.int64) * (stride * UNIT) + (64 * HALF + d)
    return gl.load(x + place, i < count, other=0)


@gluon.jit
def log_gates(
    x, rate, dt_bias, lower_bound, count, GATE: gl.constexpr, HALF: gl.constexpr
):  # fmt: skip
    """Log gates of half of the columns, in units of ln 2, from g as it is in memory."""
    x = x.to(gl.float32)
    if dt_bias is not None:
        d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, GATES)))
        x += gl.load(dt_bias + 64 * HALF + d).to(gl.float32)[None, None, :]
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, GATES)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, GATES)))[None, :, None]
    if GATE == "sigmoid":
        x = (lower_bound * _LOG2E) * _per_element(_SIGMOID, x * (-_LOG2E * rate))
    else:
        x = _log_gate(x, rate, lower_bound, GATE) * _LOG2E
    x = gl.where(x < LEAST, LEAST, x)
    return gl.where(b * 16 + n < count, x, 0.0)


@gluon.jit
def _lines(room, line, HALF: gl.constexpr):
    """[4, 1, 64] factors of blocks, of half of the columns."""
    LAYOUT: gl.constexpr = gl.SliceLayout(1, ROWS)
    return gl.expand_dims(room.index(line).slice(64 * HALF, 64, dim=1).load(LAYOUT), 1)


@gluon.jit
def added(a, b):
    """For a scan."""
    return a + b


@gluon.jit
def _four(a, b, c, d):
    """[64, 64] of the columns of four blocks, each [4, 16, 16]."""
    x = gl.join(gl.join(a, c), gl.join(b, d))
    return x.permute((0, 1, 3, 4, 2)).reshape([64, 64])


@gluon.jit
def side_by_side(a, b):
    """[4, 16, 32] of the columns of two blocks, each [4, 16, 16]."""
    return gl.join(a, b).permute((0, 1, 3, 2)).reshape([4, 16, 32])


@gluon.jit
def put(room, x):
    """Rows of all blocks into shared memory, as float16."""
    room.store(x.to(gl.float16).reshape([64, x.shape[2]]))


@gluon.jit
def inverse(keys):
    """The inverse of I + keys, of every block by itself; keys are below the diagonal."""
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, OWN)))[None, None, :]
    one = gl.where(n == m, 1.0, 0.0) + gl.zeros([4, 16, 16], gl.float32, OWN)
    parting = gl.where(n > m, n ^ m, 0)
    between = gl.where(parting == 1, keys, 0.0)
    solved, turned = one - between, one - _squared(one, between)
    for level in gl.static_range(1, 4):
        between = gl.where(parting >> level == 1, keys, 0.0)
        step = _squared(turned, between)  # what lies between, times the inverse; transposed
        solved, turned = solved - _squared(solved, step), turned - _squared(step, solved)
    return solved


@gluon.jit
def near(q0, q1, k0, k1, g0, g1):
    """(k k^T, q k^T) of every block by itself, below the diagonal."""
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, OWN)))[None, :, None]
    m = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, OWN)))[None, None, :]
    parting = gl.where(n > m, n ^ m, 0)
    row = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN_LEFT)))[None, :, None]
    none = gl.zeros([4, 16, 16], gl.float32, OWN)
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
def norms(q0, q1, k0, k1):
    """(products of q and k at unit length, factors of k and of q for that), each [4, 16]."""
    a, b, c, d = q0.to(gl.float32), q1.to(gl.float32), k0.to(gl.float32), k1.to(gl.float32)
    q_rate = gl.rsqrt(gl.sum(a * a + b * b, 2) + _L2_EPS)
    k_rate = gl.rsqrt(gl.sum(c * c + d * d, 2) + _L2_EPS)
    return gl.sum(a * c + b * d, 2) * (q_rate * k_rate), k_rate, q_rate


@gluon.jit
def unit(x, rate):
    """Rows at unit length, in float16."""
    return (x.to(gl.float32) * gl.expand_dims(rate, 2)).to(gl.float16)


@gluon.jit
def _meet(target, x, left, HALF: gl.constexpr, CODE: gl.constexpr):
    """Half of a tile of rows that meet a state, to memory."""
    b = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, ROWS)))[:, None, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, ROWS)))[None, :, None]
    d = gl.arange(0, 64, gl.SliceLayout(0, gl.SliceLayout(1, ROWS)))[None, None, :]
    rows = (x.to(gl.float32) * left).to(CODE)
    gl.store(target + ((b * 16 + n) * 128 + (64 * HALF + d)), rows)


@gluon.jit
def blocks(block, own, next_one, first, second):
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
def far(
    q, k, gates, HALF: gl.constexpr, lines, two, grown, qg, kg, scale, sums, CODE: gl.constexpr
):  # fmt: skip
    """Half of the columns, between blocks and beyond the chunk.

    Writes rows that meet a state; returns sums with this half's products: with blocks 0 and 2 at
    the level of pairs, with 0 and 1 at that of halves, of keys and of queries in turn.
    """
    row = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, _OWN_LEFT)))[None, :, None]
    block = gl.arange(0, 4, gl.SliceLayout(1, gl.SliceLayout(2, ROWS)))[:, None, None]
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

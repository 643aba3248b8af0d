# SPDX-License-Identifier: Apache-2.0
"""One Triton body for mxfp4_linear: weights stay 4 bits wide until they are in registers.

A program computes a tile of `out^T = weight @ x^T`: the weights are the left operand, which matrix
units take from registers where they were decoded, and few tokens are the narrow side of the tile.
Sums are float32; bias is added to them, and a value is rounded once, on its store.

WGMMA reads its left operand while the program goes on. So a step with weights from registers ends
with its products (`_finished`). Where x has the 64 rows that a left operand needs, x is on the
left, straight from the shared memory that it was copied to, and weights go through shared memory,
for which Triton waits by itself: there is one buffer for them.

Where out has too few tiles to keep a device busy, programs sum a part of K each, and a second body
adds the parts in their order: sums do not depend on which program is first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.quantize_body import scale_offset
from archkey.kernels.rmsnorm_body import row_offsets

__all__ = ["mxfp4_linear_body", "mxfp4_linear_sum_body"]


@triton.jit
def _upper_half(value):
    """The upper 16 bits of float32 `value` as a bfloat16: `value` cut off."""
    bits = value.to(tl.uint32, bitcast=True) >> 16
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _widened(value):
    """bfloat16 as float32, by its bits: Triton's interpreter converts subnormal numbers wrong."""
    bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _decode(packed, scale, HALF: tl.constexpr):
    """uint8 [R, C] of packed e2m1 and its e8m0 scales uint8 [R, C / 16]: bfloat16 [R, 2 C], exact.

    Both codes of a byte are put into a word, each to the sign and to the end of the exponent of a
    bfloat16 of its own: e e m there is the code's value times 2^-126, that of the subnormal 0.5 as
    well. Results have two bits of mantissa, so that no product is rounded, even if subnormal.

    HALF  multiply bfloat16, two at a time, instead of float32
    """
    BIG: tl.constexpr = 8.507059173023462e37  # 2^126
    code = packed.to(tl.uint32)
    word = ((code * 0x00040040) & 0x01C001C0) | ((code * 0x01001000) & 0x80008000)
    bits = tl.maximum(scale.to(tl.uint32) << 23, 0x00400000)  # 0 is 2^-127, a subnormal
    bits = tl.where(scale == 255, 0x7FC00000, bits)  # NaN
    factor = bits.to(tl.float32, bitcast=True)[:, :, None]
    factor = tl.broadcast_to(factor, [scale.shape[0], scale.shape[1], 16]).reshape(packed.shape)
    if HALF:
        low = word.to(tl.uint16).to(tl.bfloat16, bitcast=True)
        high = (word >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        factor = factor.to(tl.bfloat16)
        big = tl.full([], BIG, tl.bfloat16)
        low, high = low * big * factor, high * big * factor
    else:
        low = _upper_half((word << 16).to(tl.float32, bitcast=True) * BIG * factor)
        high = _upper_half((word & 0xFFFF0000).to(tl.float32, bitcast=True) * BIG * factor)
    return tl.join(low, high).reshape(packed.shape[0], 2 * packed.shape[1])


@triton.jit
def _dot(weight, x, total, X_LEFT: tl.constexpr, INTERPRETED: tl.constexpr):
    """total + weight @ x of bfloat16; total^T + (weight @ x)^T with x on the left."""
    a, b = weight, x
    if X_LEFT:
        a, b = x.T, weight.T
    if INTERPRETED:  # it would multiply the bits of bfloat16 as integers
        return tl.dot(_widened(a), _widened(b), total, input_precision="ieee")
    return tl.dot(a, b, total)


@triton.jit
def _finished(total):
    """`total`, for which wgmma is waited here, before a register that it reads is written again.

    Triton (3.6: triton#9433) leaves products with weights from registers running into the next
    step, which decodes into the same registers: sums of whatever stands there, infinities too. It
    waits at once for a product that something else than the next product uses. So this uses it;
    the empty instruction is none.
    """
    return tl.inline_asm_elementwise("", "=f,0", [total], tl.float32, is_pure=True, pack=1)


@triton.jit
def _product(weight, x, total, X_LEFT: tl.constexpr, INTERPRETED: tl.constexpr):
    """`_dot` with no bit of x lost: float16 is two parts of bfloat16, float32 three.

    A part is what is left of x, cut off to 8 bits of mantissa; 11 or 24 bits are gone then. (What
    of a float32 lies below 2^-133, bfloat16's least number, is 0.) The other way, float16 weights,
    would lose most of the range of their scales.
    """
    if x.dtype == tl.bfloat16:
        return _dot(weight, x, total, X_LEFT, INTERPRETED)
    rest = x.to(tl.float32)
    for _ in tl.static_range(2 if x.dtype == tl.float16 else 3):
        part = _upper_half(rest)
        total = _dot(weight, part, total, X_LEFT, INTERPRETED)
        done = _widened(part)
        rest = tl.where(rest == done, 0.0, rest - done)  # inf - inf would be NaN
    return total


@triton.jit
def _quads(column, BK: tl.constexpr):
    """Where column `column` of a step is read from, so that a lane's bytes of weights are together.

    Four lanes share a row of WGMMA's left operand, and a lane holds columns 2 c, 2 c + 1 of each 8,
    a byte: that would be as many reads from shared memory, 8 rows in the same bank. Sums do not
    mind an order of columns; with this one lane c holds the c-th quarter of a row.
    """
    return column // 2 % 4 * (BK // 4) + column // 8 * 2 + column % 2


@triton.jit
def _weight_scales(weight_scale, start, K: tl.constexpr, BK: tl.constexpr):
    """The scales of a step from column `start`; 0 past the end."""
    group = start // 32 + tl.arange(0, BK // 32)[None, :]
    return tl.load(weight_scale + group, group * 32 < K, other=0)


@triton.jit
def _bias(bias, n):
    """As a column of float32."""
    return tl.load(bias + n).to(tl.float32)


@triton.jit
def mxfp4_linear_body(
    x,  # [T, K] or [T, HEADS, K] of floats, or [.., K / 2] of packed e2m1; last stride 1
    x_scale,  # [.., ceil(K / 32)] e8m0, in x's shape or shuffled; None: x is floats
    weight,  # [N, K / 2] packed e2m1, last stride 1
    weight_scale,  # [N, ceil(K / 32)] e8m0, last stride 1
    bias,  # [N] or None
    out,  # [T, N] or [T, HEADS, N]; a part of K each: [parts, T * HEADS, N]
    rows,  # T * HEADS, at least 1
    x_stride,  # [elements] from token to token, and from head to head
    x_head_stride,
    x_scale_stride,  # these and weight_scale_stride: [SCALE_STEP bytes]
    x_scale_head_stride,
    weight_stride,
    weight_scale_stride,
    out_stride,
    out_head_stride,
    K: tl.constexpr,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    LAYOUT: tl.constexpr,  # of x_scale: "row", "shuffled_gfx950", or "none" without it
    SCALE_STEP: tl.constexpr,  # so many bytes of scales can be read at a time
    NATIVE: tl.constexpr,  # packed x goes to the matrix units as it is
    INTERPRETED: tl.constexpr,  # by Triton's interpreter, which has fewer products
    WGMMA: tl.constexpr,  # the matrix unit is wgmma, and x is bfloat16
    HALF: tl.constexpr,  # codes are scaled as bfloat16, see `_decode`
    PART: tl.constexpr,  # columns of x that a program sums, a multiple of BK; from K on, all
    BT: tl.constexpr,  # rows and columns of a tile
    BN: tl.constexpr,
    BK: tl.constexpr,  # columns of x in a step
    STAGES: tl.constexpr,  # steps whose loads are on their way at once
    GROUP: tl.constexpr,  # tiles of rows that go through all of N together: their x stays in L2
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
):
    """A tile of out a program, and a part of K, see `archkey.ops.mxfp4_linear`.

    Grid: ceil(rows / BT) * ceil(N / BN), ceil(K / PART). Absent tensors are None.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x_scale_stride *= SCALE_STEP
    x_scale_head_stride *= SCALE_STEP
    weight_scale_stride *= SCALE_STEP
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    first = tl.program_id(0) // (GROUP * tiles_n) * GROUP
    together = tl.minimum(tl.cdiv(rows, BT) - first, GROUP)
    place = tl.program_id(0) % (GROUP * tiles_n)
    n = place // together * BN + tl.arange(0, BN)
    t = (first + place % together) * BT + tl.arange(0, BT)
    # Past the end, the last row is read again, and nothing is stored: no load needs a mask for it.
    n_read, t_read = tl.minimum(n, N - 1), tl.minimum(t, rows - 1)
    weight += (n_read.to(tl.int64) * weight_stride)[:, None]
    weight_scale += (n_read.to(tl.int64) * weight_scale_stride)[:, None]
    x_rows = row_offsets(t_read, HEADS, x_stride, x_head_stride)
    x += x_rows.T if x_scale is None else x_rows
    if LAYOUT == "row":
        x_scale += row_offsets(t_read, HEADS, x_scale_stride, x_scale_head_stride)
    begin = 0
    STEPS: tl.constexpr = (min(PART, K) + BK - 1) // BK
    MASKED: tl.constexpr = K % BK != 0 or (PART < K and K % PART != 0)
    if PART < K:
        begin = tl.program_id(1) * PART
        out += tl.program_id(1).to(tl.int64) * rows * N
    X_LEFT: tl.constexpr = WGMMA and BT >= 64
    total = tl.zeros([BT, BN] if X_LEFT else [BN, BT], tl.float32)
    # Less than 4 aligned bytes of a row are not copied in the background: read them a step ahead.
    ahead: tl.constexpr = BK < 128 or SCALE_STEP < 4
    if ahead:
        next_scale = _weight_scales(weight_scale, begin, K, BK)
    for i in tl.range(0, STEPS, num_stages=STAGES):
        start = begin + i * BK
        byte = start // 2 + tl.arange(0, BK // 2)[None, :]
        group = start // 32 + tl.arange(0, BK // 32)[None, :]
        # Columns past the end: code 0 is 0.0, whatever its scale is.
        in_row = byte < K // 2 if MASKED else None
        in_scales = group * 32 < K if MASKED else None
        nothing: tl.constexpr = 0 if MASKED else None
        w = tl.load(weight + byte, in_row, other=nothing)
        if ahead:
            w_scale = next_scale
            next_scale = _weight_scales(weight_scale, start + BK, K, BK)
        else:
            w_scale = tl.load(weight_scale + group, in_scales, other=nothing)
        if x_scale is None:
            column, decoded = tl.arange(0, BK), _decode(w, w_scale, HALF)
            if WGMMA and not X_LEFT:
                # x is still read by two columns.
                column = tl.max_contiguous(tl.multiple_of(_quads(column, BK), 2), 2)
                decoded = decoded.reshape(BN, 4, BK // 8, 2).permute(0, 2, 1, 3).reshape(BN, BK)
            in_columns = tl.max_constancy(start + column < K, 2)[:, None] if MASKED else None
            value = tl.load(x + start + column[:, None], in_columns, other=nothing)
            total = _product(decoded, value, total, X_LEFT, INTERPRETED)
            if WGMMA and not X_LEFT and not INTERPRETED:
                total = _finished(total)
        else:
            codes = tl.load(x + byte, in_row, other=nothing)
            scale_place = group
            if LAYOUT != "row":
                scale_place = scale_offset(t_read[:, None], group, (K + 255) // 256 * 8, LAYOUT)
            scale = tl.load(x_scale + scale_place, in_scales, other=nothing)
            if NATIVE and not INTERPRETED:  # which has no dot_scaled
                total = tl.dot_scaled(w, w_scale, "e2m1", codes.T, scale, "e2m1", total)
            else:
                value = _decode(codes, scale, HALF).T
                total = _dot(_decode(w, w_scale, HALF), value, total, False, INTERPRETED)
    if X_LEFT:
        total = total.T
    if bias is not None:
        total += _bias(bias, n_read)[:, None]
    out += row_offsets(t, HEADS, out_stride, out_head_stride).T + n[:, None]
    live = (n < N)[:, None] & (t < rows)[None, :]
    tl.store(out, total.to(out.dtype.element_ty), live)


@triton.jit
def mxfp4_linear_sum_body(
    parts,  # [PARTS, rows, N] float32, contiguous
    bias,  # [N] or None
    out,  # [T, N] or [T, HEADS, N]
    rows,  # T * HEADS
    out_stride,
    out_head_stride,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK columns of a row a program: the parts are added in their order, then the bias.

    Grid: rows, ceil(N / BLOCK).
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    parts += row.to(tl.int64) * N + n
    total = tl.load(parts, n < N)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + rows.to(tl.int64) * (part * N), n < N)
    if bias is not None:
        total += _bias(bias, tl.minimum(n, N - 1))
    out += row_offsets(row + tl.arange(0, 1), HEADS, out_stride, out_head_stride)
    tl.store(out + n[None, :], total.to(out.dtype.element_ty)[None, :], (n < N)[None, :])

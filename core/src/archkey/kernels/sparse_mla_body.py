# SPDX-License-Identifier: Apache-2.0
"""One Triton body for sparse MLA, prefill and decode alike: heads of a token against its own keys.

A tile is a query token with some of its heads, since no other token has the same list. A key's row
is loaded once, by the slot that the list names, and is key and value. Entries that name no key are
never followed: their rows are zeros that nothing was read for, and their scores are -inf.

Where tiles are few, the lists are split into segments of whole steps, a list of the second cache
coming after the first one; their sums go through a workspace to a second body.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.kernels.attention_parts import (
    LN2,
    LOG2E,
    product,
    real,
    sum_segments,
    weigh,
    write_rows,
)
from archkey.kernels.sparse_mla_rows import LATENT, rows_of

__all__ = ["sparse_mla_body", "sparse_mla_segments_body"]


@triton.jit
def length_of(topk_length, token, each, TOPK: tl.constexpr):
    """Entries of a token's list that count; `each` tokens share a length."""
    length = tl.full([], TOPK, tl.int32)
    if topk_length is not None:
        length = tl.minimum(tl.maximum(tl.load(topk_length + token // each), 0), TOPK)
    return length


@triton.jit
def attend(
    query,  # [ROWS, LATENT]
    turned,  # [ROWS, ROPE], or None
    total,  # the softmax so far; beyond: of the columns past LATENT if DV has them
    beyond,
    top,
    mass,
    kv,
    entries,  # the token's list
    start,  # entries from `start`, a multiple of KEYS, before `stop`
    stop,
    last,  # slot of the cache
    block_stride,
    slot_stride,
    factor,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    UNIT: tl.constexpr,
    FP8: tl.constexpr,
    NOPE: tl.constexpr,
    SCALES: tl.constexpr,
    PLANAR: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(total, beyond, top, mass) with the keys of some entries of a list."""
    lane = tl.arange(0, KEYS)
    # Entries are read a step ahead: a row's address waits for nothing but itself.
    slot = tl.load(entries + start + lane, start + lane < stop, other=-1)
    for step in tl.range(start, stop, KEYS, num_stages=STAGES):
        there = (slot >= 0) & (slot <= last)
        latent, key = rows_of(
            kv, tl.where(there, slot, 0), there, block_stride, slot_stride, D, PAGE, UNIT, FP8,
            NOPE, SCALES, PLANAR, KEYS, INTERPRETED,
        )  # fmt: skip
        ahead = step + KEYS + lane
        slot = tl.load(entries + ahead, ahead < stop, other=-1)
        score = product(query, latent.T, None, INTERPRETED)
        if D > LATENT:
            score = product(turned, key.T, score, INTERPRETED)
        score = tl.where(there[None, :], score, float("-inf"))
        weight, shrink, top, mass = weigh(score, top, mass, factor, False)
        weight = weight.to(latent.dtype)
        total = product(weight, latent, total * shrink[:, None], INTERPRETED)
        if DV > LATENT:
            beyond = product(weight, key, beyond * shrink[:, None], INTERPRETED)
    return total, beyond, top, mass


@triton.jit
def write_stats(top, mass, head, live, lse, max_logits, lse_head_stride, max_head_stride):
    """lse and max_logits of a token's heads, which know nothing of a sink."""
    if lse is not None:
        mass = tl.where(mass > 0, mass, 1.0)  # without a key it is 0, and top is -inf
        tl.store(lse + head * lse_head_stride, (top + tl.log2(mass)) * LN2, live)
    if max_logits is not None:
        tl.store(max_logits + head * max_head_stride, top * LN2, live)


@triton.jit
def sparse_mla_body(
    q,  # [B, Q, HEADS, D] bfloat16, last stride 1; T = B * Q tokens
    kv,  # [blocks, PAGE, row]: bfloat16, or a packed format's bytes
    indices,  # [B, Q, TOPK] int32, last stride 1
    topk_length,  # [n] int32, or None
    extra_kv,  # a second cache of EXTRA_PAGE with its lists and lengths, or None
    extra_indices,
    extra_topk_length,
    attn_sink,  # [HEADS] float32, or None
    out,  # as q, of DV columns
    lse,  # [T, HEADS] float32, or None; max_logits: the same
    max_logits,
    part_total,  # [T, HEADS, segments, DV] float32; part_top, part_mass: without the last axis
    part_top,
    part_mass,
    queries,  # Q
    segments,  # parts of a token's lists, the second axis of the grid
    last,  # slot of the cache: -1 of an empty one, 2^31 - 1 at most
    extra_last,
    length_each,  # tokens that share a topk_length
    extra_length_each,
    softmax_scale,
    q_sequence_stride,  # [UNIT elements] of a sequence, a token, a head
    q_stride,
    q_head_stride,
    block_stride,  # [KV_UNIT elements]; of packed rows [KV_UNIT bytes]
    slot_stride,  # of a planar format without its scales
    extra_block_stride,
    extra_slot_stride,
    list_sequence_stride,  # [elements]
    list_stride,
    extra_list_sequence_stride,
    extra_list_stride,
    out_sequence_stride,  # [OUT_UNIT elements]
    out_stride,
    out_head_stride,
    lse_stride,  # [elements]
    lse_head_stride,
    max_stride,
    max_head_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    TOPK: tl.constexpr,
    PAGE: tl.constexpr,
    EXTRA_TOPK: tl.constexpr,
    EXTRA_PAGE: tl.constexpr,
    UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    FP8: tl.constexpr,  # flavour of packed codes, "none" for bfloat16 rows
    NOPE: tl.constexpr,  # of a packed row, see `rows_of`
    SCALES: tl.constexpr,
    PLANAR: tl.constexpr,
    SPLITS: tl.constexpr,  # segments may be more than one
    ROWS: tl.constexpr,  # heads of a tile
    KEYS: tl.constexpr,  # of a step
    STAGES: tl.constexpr,
    USE_PDL: tl.constexpr,  # launched as a programmatic dependent of the kernel before
    INTERPRETED: tl.constexpr,
):
    """A token's tile of heads and a segment of its lists a program, see `archkey.ops.sparse_mla`.

    Grid: tiles, segments; the tiles of a token lie side by side, so that its keys are read from
    memory once. Absent tensors are None.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    ROPE: tl.constexpr = D - LATENT
    TILES: tl.constexpr = (HEADS + ROWS - 1) // ROWS
    token = tl.program_id(0) // TILES
    row = tl.program_id(0) % TILES * ROWS + tl.arange(0, ROWS)
    live, head = row < HEADS, row.to(tl.int64)
    sequence, t = (token // queries).to(tl.int64), (token % queries).to(tl.int64)
    d, r = tl.arange(0, LATENT)[None, :], tl.arange(0, ROPE if ROPE else 16)[None, :]
    q += (sequence * q_sequence_stride + t * q_stride) * UNIT
    q_rows = q + (head * q_head_stride * UNIT)[:, None]
    query = tl.load(q_rows + d, live[:, None], other=0.0)
    turned = tl.load(q_rows + LATENT + r, live[:, None], other=0.0) if ROPE else None
    if INTERPRETED:
        query = real(query, "none", tl.float32, True)
        turned = real(turned, "none", tl.float32, True) if ROPE else None

    length = length_of(topk_length, token, length_each, TOPK)
    start, stop = 0, length
    extra_start, extra_stop = 0, 0
    if extra_kv is not None:
        extra_length = length_of(extra_topk_length, token, extra_length_each, EXTRA_TOPK)
        extra_stop = extra_length
    if SPLITS and segments > 1:
        near = tl.cdiv(length, KEYS)
        steps = near
        if extra_kv is not None:
            steps += tl.cdiv(extra_length, KEYS)
        each = tl.cdiv(steps, segments)
        begin = tl.program_id(1) * each
        start, stop = begin * KEYS, tl.minimum((begin + each) * KEYS, length)
        if extra_kv is not None:
            extra_start = tl.maximum(begin - near, 0) * KEYS
            extra_stop = tl.minimum((begin + each - near) * KEYS, extra_length)

    factor = softmax_scale * LOG2E
    total = tl.zeros([ROWS, LATENT], tl.float32)
    beyond = tl.zeros([ROWS, ROPE if DV > LATENT else 16], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    total, beyond, top, mass = attend(
        query, turned, total, beyond, top, mass, kv,
        indices + (sequence * list_sequence_stride + t * list_stride), start, stop, last,
        block_stride, slot_stride, factor, D, DV, PAGE, KV_UNIT, FP8, NOPE, SCALES, PLANAR, KEYS,
        STAGES, INTERPRETED,
    )  # fmt: skip
    if extra_kv is not None:
        total, beyond, top, mass = attend(
            query, turned, total, beyond, top, mass, extra_kv,
            extra_indices + (sequence * extra_list_sequence_stride + t * extra_list_stride),
            extra_start, extra_stop, extra_last, extra_block_stride, extra_slot_stride, factor, D,
            DV, EXTRA_PAGE, KV_UNIT, FP8, NOPE, SCALES, PLANAR, KEYS, STAGES, INTERPRETED,
        )  # fmt: skip

    if SPLITS and segments > 1:
        part = (token.to(tl.int64) * HEADS + head) * segments + tl.program_id(1)
        tl.store(part_top + part, top, live)
        tl.store(part_mass + part, mass, live)
        if (start < stop) | (extra_start < extra_stop):  # sums of no key are not read
            sums = part_total + part[:, None] * DV
            tl.store(sums + d, total, live[:, None] & (d < DV))
            if DV > LATENT:
                tl.store(sums + LATENT + r, beyond, live[:, None] & (LATENT + r < DV))
    else:
        out += (sequence * out_sequence_stride + t * out_stride) * OUT_UNIT
        none, head_stride = tl.zeros_like(head), out_head_stride * OUT_UNIT
        if DV > LATENT:
            write_rows(
                beyond, top, mass, none, head, live, attn_sink, 1.0, out + LATENT, None, 0,
                head_stride, 0, 0, DV - LATENT, "none", INTERPRETED,
            )  # fmt: skip
        write_rows(
            total, top, mass, none, head, live, attn_sink, 1.0, out, None, 0, head_stride, 0, 0,
            DV, "none", INTERPRETED,
        )  # fmt: skip
        if lse is not None:
            lse += token.to(tl.int64) * lse_stride
        if max_logits is not None:
            max_logits += token.to(tl.int64) * max_stride
        write_stats(top, mass, head, live, lse, max_logits, lse_head_stride, max_head_stride)


@triton.jit
def sparse_mla_segments_body(
    attn_sink,  # tensors and strides as in `sparse_mla_body`
    out,
    lse,
    max_logits,
    part_total,
    part_top,
    part_mass,
    queries,
    segments,
    out_sequence_stride,
    out_stride,
    out_head_stride,
    lse_stride,
    lse_head_stride,
    max_stride,
    max_head_stride,
    HEADS: tl.constexpr,
    DV: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    TOGETHER: tl.constexpr,  # segments that are added at once
    BLOCK_DV: tl.constexpr,  # columns of a program: a part of DV, or more than DV
    USE_PDL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Some columns of a head of a token a program: the sum of its segments, in their order.

    Grid: T * HEADS, parts of DV. All parts of a row write its lse and its highest score, which are
    the same.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_DV
    token, head = row // HEADS, row % HEADS
    WIDTH: tl.constexpr = min(DV, BLOCK_DV)
    total, top, mass = sum_segments(
        part_total + row * segments * DV + column, part_top + row * segments,
        part_mass + row * segments, segments, DV, WIDTH, TOGETHER, BLOCK_DV,
    )  # fmt: skip
    out += (token // queries * out_sequence_stride + token % queries * out_stride) * OUT_UNIT
    one = tl.zeros([1], tl.int32)
    top, mass, head = top + one, mass + one, head + one
    write_rows(
        total[None, :], top, mass, one, head, one == 0, attn_sink, 1.0, out + column, None, 0,
        out_head_stride * OUT_UNIT, 0, 0, WIDTH, "none", INTERPRETED,
    )  # fmt: skip
    if lse is not None:
        lse += token * lse_stride
    if max_logits is not None:
        max_logits += token * max_stride
    write_stats(top, mass, head, one == 0, lse, max_logits, lse_head_stride, max_head_stride)

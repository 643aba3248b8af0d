# SPDX-License-Identifier: Apache-2.0
"""Builder of unified_attention on the shared Triton bodies.

It turns a Problem and a tuning into the Programs that are compiled, and tensors into their launch
arguments. Any architecture with a Triton backend can list it.

Few rows are bound by reading keys, and many by the matrix units: each `AttentionTile` is a Program
and a launch of its own, which takes the sequences of its number of rows and leaves the others.
Grids follow from shapes and from `max_seqlen_q` and `max_seqlen_k` alone, so a call can be
captured; what a sequence needs is read on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from archkey.kernels.attention_programs import (
    PARTS,
    as_bytes,
    body_program,
    segments_program,
    units_of,
)
from archkey.kernels.attention_tunings import AttentionTile, AttentionTuning
from archkey.launch import Build, interpreting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archkey.kernel import Run
    from archkey.launch import Launch
    from archkey.ops.attention import UnifiedAttentionProblem

__all__ = ["build_unified_attention"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_FAR = 2**30
"""A window of more keys than a sequence can have: with a position, it still is an int32."""
_LEAST = 256
"""Keys that a segment has at least: fewer do not pay for its start and its sum."""
_TAIL = 32
"""Most programs of a KV head that write the rows past the last sequence, if there are any."""
_VERIFY = 16
"""Most queries of a sequence whose Problem says "verify"."""


class _Tile(NamedTuple):
    """A tile with the sequences that are left to it: those of more than `above` rows."""

    above: int
    tile: AttentionTile
    launch: Launch


class _Parts(NamedTuple):
    """A workspace: tensors, their strides, and rows a sequence (0: it has a row a token)."""

    tensors: tuple[Any, Any, Any]
    strides: tuple[int, ...]
    each: int


_NO_PARTS = _Parts((None, None, None), (0,) * len(PARTS), 0)


def build_unified_attention(problem: UnifiedAttentionProblem, build: Build) -> Run:
    """`run(q, k, v, cu_seqlens_q, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: AttentionTuning = build.tuning(problem)
    tiles = [
        _Tile(above, tile, build.compile(body_program(problem, above, tile)))
        for above, tile in _tiles_for(problem, tuning)
    ]
    splits = any(tile.fill for _, tile, _ in tiles)
    merge = build.compile(segments_program(problem)) if splits else None
    heads, kv_heads = problem.heads, problem.kv_heads
    group = heads // kv_heads
    units = build.device.compute_units or _UNITS
    q_unit, kv_unit, out_unit = units_of(problem)
    codes = interpreting()

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        q_descale: Any,
        k_descale: Any,
        v_descale: Any,
        alibi_slopes: torch.Tensor | None,
        qq_bias: torch.Tensor | None,
        sinks: torch.Tensor | None,
        output_scale: Any,
        softmax_scale: float,
        window_left: int,
        softcap: float,
        out_limit: float,
        segments: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        tokens, sequences = q.shape[0], seqused_k.shape[0]
        if codes:  # the interpreter reads codes as bytes
            q, k, v, out = map(as_bytes, (q, k, v, out))
        window = min(window_left, _FAR)
        out_strides = [stride // out_unit for stride in out.stride()[:2]]
        out_strides += [0, 0] if lse is None else lse.stride()
        strides = [stride // q_unit for stride in q.stride()[:2]]
        strides += [stride // kv_unit for stride in (*k.stride()[:3], *v.stride()[:3])]
        strides += [*out_strides, block_table.stride(0)]
        descales = q_descale, k_descale, v_descale
        for descale in descales:
            strides += _strides_of(descale)
        strides.append(0 if qq_bias is None else qq_bias.stride(0))
        for number, (above, tile, launch) in enumerate(tiles):
            if number and max_seqlen_q * group <= above:
                break
            each = min(tile.most // group, max_seqlen_q)
            parts, split = _NO_PARTS, 1
            if tile.fill and each and sequences:
                split = problem.segments or _split(
                    tile, units, sequences * kv_heads, max_seqlen_k, window, each
                )
                if split > 1:
                    parts = _parts(q, out, sequences * each, heads, split, each, segments)
            tail = 0 if number else min(-(-tokens * group // tile.rows), _TAIL)
            if tile.most:
                grid = ((sequences + tail) * kv_heads, 1, split)
            else:
                room = tokens * group // tile.rows + sequences if sequences else 0
                grid = (room + tail, kv_heads, split)
            launch(
                grid, q, k, v, cu_seqlens_q, seqused_k, block_table, *descales, alibi_slopes,
                qq_bias, sinks, output_scale, out, lse, *parts.tensors, tokens, sequences, split,
                tail, parts.each, window, softmax_scale, softcap, *strides, *parts.strides,
            )  # fmt: skip
            if split > 1 and merge is not None:
                merge(
                    (sequences * each * heads, 1, 1), cu_seqlens_q, v_descale, sinks, output_scale,
                    out, lse, *parts.tensors, split, parts.each, each, above, tile.most,
                    *out_strides, *_strides_of(v_descale), *parts.strides,
                )  # fmt: skip

    return run


def _tiles_for(
    problem: UnifiedAttentionProblem, tuning: AttentionTuning
) -> Iterator[tuple[int, AttentionTile]]:
    """The tiles that `problem` can come to, each with the most rows that go to the one before.

    Only the last one, for all sequences, if results must not depend on the batch: sequences of
    another number of rows would be summed in another order.
    """
    if problem.batch_invariant:
        yield 0, tuning.tiles[-1]
        return
    group, above = problem.heads // problem.kv_heads, 0
    longest = {"decode": group, "verify": group * _VERIFY}.get(problem.queries)
    for tile in tuning.tiles:
        if longest is not None and above >= longest:
            return
        if not tile.most or tile.most // group > above // group:  # a number of queries fits
            yield above, tile
            above = tile.most


def _split(
    tile: AttentionTile, units: int, programs: int, keys: int, window: int, queries: int
) -> int:
    """Parts of the keys, so that there are programs enough and no part is too short."""
    if window >= 0:
        keys = min(keys, window + queries)
    return max(1, min(-(-units * tile.fill // programs), keys // _LEAST))


def _parts(
    q: torch.Tensor,
    out: torch.Tensor,
    rows: int,
    heads: int,
    split: int,
    each: int,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> _Parts:
    """The caller's workspace, or a new one."""
    if given is None:
        shape = (rows, heads, split)
        tops, masses = q.new_empty((2, *shape), dtype=torch.float32)
        given = q.new_empty((*shape, out.shape[2]), dtype=torch.float32), tops, masses
    else:
        each = 0
    total, tops, masses = given
    return _Parts(given, (*total.stride()[:3], *tops.stride()[:2], *masses.stride()[:2]), each)


def _strides_of(descale: Any) -> tuple[int, int]:
    """Strides of a `[B, Hk]`; nothing else has any."""
    return descale.stride() if getattr(descale, "ndim", 0) == 2 else (0, 0)

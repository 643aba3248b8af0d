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

from archkey.kernels.attention_body import unified_attention_body
from archkey.kernels.attention_segments_body import unified_attention_segments_body
from archkey.kernels.attention_tunings import AttentionTile, AttentionTuning
from archkey.kernels.rmsnorm import POINTERS
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archkey.kernel import Run
    from archkey.launch import Launch
    from archkey.ops.attention import UnifiedAttentionProblem

__all__ = ["build_unified_attention"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_LEAST = 256
"""Keys that a segment has at least: fewer do not pay for its start and its sum."""
_TAIL = 32
"""Most programs of a KV head that write the rows past the last sequence, if there are any."""
_VERIFY = 16
"""Most queries of a sequence whose Problem says "verify"."""
_TOGETHER = 8
"""Segments that the second body adds at once."""

_FP8 = {"float8_e4m3fn": ("e4m3fn", "*fp8e4nv"), "float8_e4m3fnuz": ("e4m3fnuz", "*fp8e4b8")}

_FIRST = ("q_stride", "q_head_stride")
_CACHE = ("k_block_stride", "k_slot_stride", "k_head_stride")
_CACHE_V = ("v_block_stride", "v_slot_stride", "v_head_stride")
_NEAR = ("k_block_stride", "k_slot_stride", "v_block_stride", "v_slot_stride")
"""Strides below 2^31: a product with an int32 is one instruction then."""
_OUT = ("out_stride", "out_head_stride", "lse_stride", "lse_head_stride")
_DESCALES = tuple(f"{x}_descale{head}_stride" for x in "qkv" for head in ("", "_head"))
_PARTS = (
    "part_stride",
    "part_head_stride",
    "part_segment_stride",
    "part_top_stride",
    "part_top_head_stride",
    "part_mass_stride",
    "part_mass_head_stride",
)


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


_NO_PARTS = _Parts((None, None, None), (0,) * len(_PARTS), 0)


def build_unified_attention(problem: UnifiedAttentionProblem, build: Build) -> Run:
    """`run(q, k, v, cu_seqlens_q, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: AttentionTuning = build.tuning(problem)
    tiles = [
        _Tile(above, tile, build.compile(_program(problem, above, tile)))
        for above, tile in _tiles_for(problem, tuning)
    ]
    splits = any(tile.fill for _, tile, _ in tiles)
    merge = build.compile(_segments_program(problem)) if splits else None
    heads, kv_heads = problem.heads, problem.kv_heads
    group = heads // kv_heads
    units = build.device.compute_units or _UNITS
    q_unit, kv_unit, out_unit = _units(problem)
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
            q, k, v, out = map(_bytes, (q, k, v, out))
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
                grid = (kv_heads, sequences + tail, split)
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
                    (heads, sequences * each, 1), cu_seqlens_q, v_descale, sinks, output_scale,
                    out, lse, *parts.tensors, split, parts.each, each, above, tile.most,
                    *out_strides, *_strides_of(v_descale), *parts.strides,
                )  # fmt: skip

    return run


_FAR = 2**30
"""A window of more keys than a sequence can have: with a position, it still is an int32."""


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


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _units(problem: UnifiedAttentionProblem) -> tuple[int, int, int]:
    """Elements in 16 bytes of q, of the cache and of out, if strides are multiples of them."""
    names = problem.dtype, problem.kv_dtype, problem.out_dtype
    sizes = (16 // getattr(torch, name).itemsize for name in names)
    return tuple(sizes) if problem.aligned else (1, 1, 1)


def _pointer(dtype: str) -> str:
    if dtype in _FP8:
        return "*u8" if interpreting() else _FP8[dtype][1]
    return POINTERS[dtype]


def _factor(kind: str) -> str | None:
    return {"none": None, "number": "fp32"}.get(kind, "*fp32")


def _flavour(dtype: str) -> str:
    return _FP8[dtype][0] if dtype in _FP8 else "none"


def _block(width: int, least: int = 16) -> int:
    """Columns of a tile: a power of two that a matrix unit takes."""
    return max(least, 1 << (width - 1).bit_length())


def _out_pointer(problem: UnifiedAttentionProblem) -> str:
    """Codes are stored as bytes."""
    return "*u8" if problem.out_dtype in _FP8 else POINTERS[problem.out_dtype]


def _program(problem: UnifiedAttentionProblem, above: int, tile: AttentionTile) -> Program:
    """The body for the sequences of `tile`."""
    q_unit, kv_unit, out_unit = _units(problem)
    part = "*fp32" if tile.fill else None
    tensors: dict[str, str | None] = {
        "q": _pointer(problem.dtype),
        "k": _pointer(problem.kv_dtype),
        "v": _pointer(problem.kv_dtype),
        "cu_seqlens_q": "*i32",
        "seqused_k": "*i32",
        "block_table": "*i32",
        "q_descale": _factor(problem.q_descale),
        "k_descale": _factor(problem.k_descale),
        "v_descale": _factor(problem.v_descale),
        "alibi_slopes": POINTERS[problem.alibi] if problem.alibi != "none" else None,
        "qq_bias": POINTERS[problem.qq_bias] if problem.qq_bias != "none" else None,
        "sinks": POINTERS[problem.sinks] if problem.sinks != "none" else None,
        "output_scale": _factor(problem.output_scale),
        "out": _out_pointer(problem),
        "lse": "*fp32" if problem.return_lse else None,
        "part_total": part,
        "part_top": part,
        "part_mass": part,
    }
    numbers = ("tokens", "sequences", "segments", "tail", "each", "window_left")
    strides = (*_FIRST, *_CACHE, *_CACHE_V, *_OUT, "table_stride", *_DESCALES, "qq_bias_stride")
    return Program(
        unified_attention_body,
        signature={
            **tensors,
            **dict.fromkeys(numbers, "i32"),
            **dict.fromkeys(("softmax_scale", "softcap"), "fp32"),
            **dict.fromkeys((*strides, *_PARTS), "i64"),
            **dict.fromkeys(_NEAR, "i32"),
        },
        constants={
            "GROUP": problem.heads // problem.kv_heads,
            "D": problem.head_dim,
            "DV": problem.head_dim_v,
            "PAGE": problem.page_size,
            "UNIT": q_unit,
            "KV_UNIT": kv_unit,
            "OUT_UNIT": out_unit,
            "WINDOW": problem.window,
            "SOFTCAP": problem.softcap,
            "Q_DESCALE": problem.q_descale,
            "K_DESCALE": problem.k_descale,
            "V_DESCALE": problem.v_descale,
            "OUTPUT_SCALE": problem.output_scale,
            "Q_FP8": _flavour(problem.dtype),
            "FP8": _flavour(problem.kv_dtype),
            "OUT_FP8": _flavour(problem.out_dtype),
            "ABOVE": above,
            "MOST": tile.most,
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            # A product of FP8 has 32 columns at least.
            "BLOCK_D": _block(problem.head_dim, 32 if problem.dtype in _FP8 else 16),
            "BLOCK_DV": _block(problem.head_dim_v),
            "PEEL": not tile.most,
            "STAGES": tile.stages,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(("q", "k", "v", "out") if problem.aligned else ()),
        options={"num_warps": tile.num_warps},
    )


def _segments_program(problem: UnifiedAttentionProblem) -> Program:
    """The body that adds segments up."""
    return Program(
        unified_attention_segments_body,
        signature={
            "cu_seqlens_q": "*i32",
            "v_descale": _factor(problem.v_descale),
            "sinks": POINTERS[problem.sinks] if problem.sinks != "none" else None,
            "output_scale": _factor(problem.output_scale),
            "out": _out_pointer(problem),
            "lse": "*fp32" if problem.return_lse else None,
            **dict.fromkeys(("part_total", "part_top", "part_mass"), "*fp32"),
            **dict.fromkeys(("segments", "each", "rows", "above", "most"), "i32"),
            **dict.fromkeys((*_OUT, *_DESCALES[4:], *_PARTS), "i64"),
        },
        constants={
            "GROUP": problem.heads // problem.kv_heads,
            "DV": problem.head_dim_v,
            "OUT_UNIT": _units(problem)[2],
            "V_DESCALE": problem.v_descale,
            "OUTPUT_SCALE": problem.output_scale,
            "OUT_FP8": _flavour(problem.out_dtype),
            "TOGETHER": _TOGETHER,
            "BLOCK_DV": _block(problem.head_dim_v),
            "INTERPRETED": interpreting(),
        },
        options={"num_warps": 4},
    )

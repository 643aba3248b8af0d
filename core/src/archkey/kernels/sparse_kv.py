# SPDX-License-Identifier: Apache-2.0
"""Builders of quantize_sparse_kv, dequantize_sparse_kv and logical_to_physical_indices.

One launch a call, whose grid follows from shapes alone. Any architecture with a Triton backend can
list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import unit_of
from archkey.kernels.rmsnorm import POINTERS
from archkey.kernels.sparse_kv_body import (
    dequantize_sparse_kv_body,
    logical_to_physical_body,
    quantize_sparse_kv_body,
)
from archkey.launch import Build, Program, interpreting
from archkey.ops._sparse_kv import PACKED, PackedKV

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.ops.sparse_kv import (
        DequantizeSparseKvProblem,
        LogicalToPhysicalIndicesProblem,
        QuantizeSparseKvProblem,
    )

__all__ = [
    "build_dequantize_sparse_kv",
    "build_logical_to_physical_indices",
    "build_quantize_sparse_kv",
    "places_of",
]

_SLOTS = {"none": None, "int32": "*i32", "int64": "*i64"}
_WARPS = 4
_QUANTIZED = 2048
"""Values of a program: two 16-byte loads a thread of 128, and few registers, so that many programs
keep the memory busy. Not measured."""
_DEQUANTIZED = 4096
"""Values of a program: two 16-byte loads of codes a thread, four 16-byte stores. Not measured."""
_BLOCK = 512
"""Entries of a program of indices; each waits for its index, then for its page. Not measured."""


def build_quantize_sparse_kv(problem: QuantizeSparseKvProblem, build: Build) -> Run:
    """`run(k_nope, k_rope, slot_mapping, kv_cache, format, scale_mode, out)`; out is the cache."""
    layout, aligned = PACKED[problem.kv_format], problem.aligned
    places, unit = places_of(layout, problem.page_size), unit_of(problem.dtype, aligned)
    rows, byte_unit = _QUANTIZED // _width(layout), _bytes_together(aligned)
    ours = {"POW2": problem.scale_mode == "pow2", "E8M0": _e8m0(layout), "FNUZ": _fnuz(layout)}
    program = Program(
        quantize_sparse_kv_body,
        signature={
            "k_nope": POINTERS[problem.dtype],
            "k_rope": POINTERS[problem.dtype] if layout.rope_dim else None,
            "slot_mapping": _SLOTS[problem.slot_dtype],
            "cache": "*u8",
            "tokens": "i32",
            **dict.fromkeys(("capacity", "k_nope_stride", "k_rope_stride", "block_stride"), "i64"),
        },
        constants={**places, **ours, "UNIT": unit, **_shared(problem, byte_unit, rows)},
        aligned=_aligned(aligned, "k_nope", "cache", *(("k_rope",) if layout.rope_dim else ())),
        options=_options(problem.pdl),
    )
    launch = build.compile(program)

    def run(
        k_nope: torch.Tensor,
        k_rope: torch.Tensor | None,
        slot_mapping: torch.Tensor | None,
        kv_cache: torch.Tensor,
        format: str,
        scale_mode: str,
        out: torch.Tensor,
    ) -> None:
        tokens = k_nope.shape[0]
        if tokens:
            rope_stride = 0 if k_rope is None else k_rope.stride(0) // unit
            strides = (k_nope.stride(0) // unit, rope_stride, out.stride(0) // byte_unit)
            given = (k_nope, k_rope, slot_mapping, out, tokens, out.shape[0] * out.shape[1])
            launch((-(-tokens // rows), 1, 1), *given, *strides)

    return run


def build_dequantize_sparse_kv(problem: DequantizeSparseKvProblem, build: Build) -> Run:
    """`run(kv_cache, slot_mapping, format, out)`, out `[T, d]`."""
    layout, aligned = PACKED[problem.kv_format], problem.aligned
    places = places_of(layout, problem.page_size)
    rows, byte_unit = _DEQUANTIZED // _width(layout), _bytes_together(aligned)
    program = Program(
        dequantize_sparse_kv_body,
        signature={
            "cache": "*u8",
            "slot_mapping": _SLOTS[problem.slot_dtype],
            "out": POINTERS[problem.out_dtype],
            "tokens": "i32",
            **dict.fromkeys(("capacity", "block_stride"), "i64"),
        },
        constants={
            **places,
            "E8M0": _e8m0(layout),
            "FNUZ": _fnuz(layout),
            **_shared(problem, byte_unit, rows),
        },
        aligned=_aligned(aligned, "cache", "out"),
        options=_options(problem.pdl),
    )
    launch = build.compile(program)

    def run(
        kv_cache: torch.Tensor, slot_mapping: torch.Tensor | None, format: str, out: torch.Tensor
    ) -> None:
        tokens = out.shape[0]
        if tokens:
            capacity = kv_cache.shape[0] * kv_cache.shape[1]
            given = (kv_cache, slot_mapping, out, tokens, capacity)
            launch((-(-tokens // rows), 1, 1), *given, kv_cache.stride(0) // byte_unit)

    return run


def build_logical_to_physical_indices(
    problem: LogicalToPhysicalIndicesProblem, build: Build
) -> Run:
    """`run(indices, block_table, page_size, out)`."""
    strides = ("indices_stride", "indices_query_stride", "block_table_stride")
    program = Program(
        logical_to_physical_body,
        signature={
            **dict.fromkeys(("indices", "block_table", "out"), "*i32"),
            **dict.fromkeys(("q_len", "pages"), "i32"),
            **dict.fromkeys((*strides, "out_stride", "out_query_stride"), "i64"),
        },
        constants={"K": problem.topk, "PAGE": problem.page_size, "BLOCK": _BLOCK},
        options={"num_warps": _WARPS},
    )
    launch = build.compile(program)
    columns = -(-problem.topk // _BLOCK)

    def run(
        indices: torch.Tensor, block_table: torch.Tensor, page_size: int, out: torch.Tensor
    ) -> None:
        sequences, *middle, _ = indices.shape
        q_len = middle[0] if middle else 1
        if sequences and q_len:
            pages, table_stride = block_table.shape[1], block_table.stride(0)
            given = (indices, block_table, out, q_len, pages, *_pair(indices), table_stride)
            launch((sequences * q_len, columns, 1), *given, *_pair(out))

    return run


def places_of(layout: PackedKV, page_size: int) -> Mapping[str, int]:
    """Where a packed block of `page_size` tokens holds what, as constants of a body [bytes]."""
    rope = 2 * layout.rope_dim
    if layout.planar:
        pitch = layout.nope_dim + rope
        scales, scale_pitch, rope_at = page_size * pitch, layout.scale_bytes, layout.nope_dim
    else:
        pitch = scale_pitch = layout.row_bytes
        scales, rope_at = layout.nope_dim, layout.nope_dim + layout.scale_bytes
    return {
        "PAGE": page_size,
        "PITCH": pitch,
        "SCALES": scales,
        "SCALE_PITCH": scale_pitch,
        "ROPE_AT": rope_at,
        "COUNT": layout.tiles,
        "TILES": _width(layout) // layout.tile,
        "TILE": layout.tile,
        "ROPE": layout.rope_dim,
    }


def _shared(
    problem: QuantizeSparseKvProblem | DequantizeSparseKvProblem, byte_unit: int, rows: int
) -> Mapping[str, Any]:
    """The last constants of both bodies on packed rows."""
    return {
        "BYTES": byte_unit,
        "ALIGNED": problem.aligned,
        "TOKENS": rows,
        "USE_PDL": problem.pdl,
        "INTERPRETED": interpreting(),
    }


def _width(layout: PackedKV) -> int:
    """Values of a token in registers: the least power of two of tiles that holds its own."""
    return (1 << (layout.tiles - 1).bit_length()) * layout.tile


def _bytes_together(aligned: bool) -> int:
    """What the distance between blocks is counted in."""
    return unit_of("uint8", aligned)


def _e8m0(layout: PackedKV) -> bool:
    return layout.scale_dtype == "float8_e8m0fnu"


def _fnuz(layout: PackedKV) -> bool:
    return layout.code_dtype == "float8_e4m3fnuz"


def _aligned(aligned: bool, *names: str) -> frozenset[str]:
    return frozenset(names if aligned else ())


def _options(pdl: bool) -> dict[str, Any]:
    return {"num_warps": _WARPS, **({"launch_pdl": True} if pdl else {})}


def _pair(tensor: torch.Tensor) -> tuple[int, int]:
    """Strides from sequence to sequence, and from query to query (0 of `[B, k]`)."""
    return tensor.stride(0), tensor.stride(1) if tensor.dim() == 3 else 0

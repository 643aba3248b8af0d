# SPDX-License-Identifier: Apache-2.0
"""The Programs of unified_attention: from a Problem and a tile, all that decides machine code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from archkey.kernels.attention_body import unified_attention_body
from archkey.kernels.attention_segments_body import unified_attention_segments_body
from archkey.kernels.attention_tunings import AttentionTile
from archkey.kernels.rmsnorm import POINTERS
from archkey.launch import Program, interpreting

if TYPE_CHECKING:
    from archkey.ops.attention import UnifiedAttentionProblem

__all__ = [
    "PARTS",
    "as_bytes",
    "body_program",
    "factor_kind",
    "flavour",
    "pointer",
    "segments_program",
    "unit_of",
    "units_of",
]

_TOGETHER = 8
"""Segments that the second body adds at once."""

_FP8 = {"float8_e4m3fn": ("e4m3fn", "*fp8e4nv"), "float8_e4m3fnuz": ("e4m3fnuz", "*fp8e4b8")}

_FIRST = ("q_stride", "q_head_stride")
_CACHE = ("k_block_stride", "k_slot_stride", "k_head_stride")
_CACHE_V = ("v_block_stride", "v_slot_stride", "v_head_stride")
_NEAR = ("k_block_stride", "v_block_stride")
"""Strides below 2^31 16-byte units: a page times one of them is one instruction then."""
_OUT = ("out_stride", "out_head_stride", "lse_stride", "lse_head_stride")
_DESCALES = tuple(f"{x}_descale{head}_stride" for x in "qkv" for head in ("", "_head"))
PARTS = (
    "part_stride",
    "part_head_stride",
    "part_segment_stride",
    "part_top_stride",
    "part_top_head_stride",
    "part_mass_stride",
    "part_mass_head_stride",
)


def units_of(problem: UnifiedAttentionProblem) -> tuple[int, int, int]:
    """Elements in 16 bytes of q, of the cache and of out, if strides are multiples of them."""
    names = problem.dtype, problem.kv_dtype, problem.out_dtype
    q_unit, kv_unit, out_unit = (unit_of(name, problem.aligned) for name in names)
    return q_unit, kv_unit, out_unit


def unit_of(dtype: str, aligned: bool) -> int:
    """Elements in 16 bytes, if strides are multiples of them; otherwise 1."""
    size: int = getattr(torch, dtype).itemsize
    return 16 // size if aligned else 1


def pointer(dtype: str) -> str:
    """Triton's name of a pointer to a dtype; the interpreter reads codes as bytes."""
    if dtype in _FP8:
        return "*u8" if interpreting() else _FP8[dtype][1]
    return POINTERS[dtype]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """FP8 codes as the bytes that the interpreter reads; any other tensor as it is."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def factor_kind(kind: str) -> str | None:
    """Triton's name of a descale of a kind."""
    return {"none": None, "number": "fp32"}.get(kind, "*fp32")


def flavour(dtype: str) -> str:
    """What the bodies call an FP8 dtype; "none" for every other."""
    return _FP8[dtype][0] if dtype in _FP8 else "none"


def _block(width: int, least: int = 16) -> int:
    """Columns of a tile: a power of two that a matrix unit takes."""
    return max(least, 1 << (width - 1).bit_length())


def _out_pointer(problem: UnifiedAttentionProblem) -> str:
    """Codes are stored as bytes."""
    return "*u8" if problem.out_dtype in _FP8 else POINTERS[problem.out_dtype]


def body_program(problem: UnifiedAttentionProblem, above: int, tile: AttentionTile) -> Program:
    """The body for the sequences of `tile`."""
    q_unit, kv_unit, out_unit = units_of(problem)
    part = "*fp32" if tile.fill else None
    tensors: dict[str, str | None] = {
        "q": pointer(problem.dtype),
        "k": pointer(problem.kv_dtype),
        "v": pointer(problem.kv_dtype),
        "cu_seqlens_q": "*i32",
        "seqused_k": "*i32",
        "block_table": "*i32",
        "q_descale": factor_kind(problem.q_descale),
        "k_descale": factor_kind(problem.k_descale),
        "v_descale": factor_kind(problem.v_descale),
        "alibi_slopes": POINTERS[problem.alibi] if problem.alibi != "none" else None,
        "qq_bias": POINTERS[problem.qq_bias] if problem.qq_bias != "none" else None,
        "sinks": POINTERS[problem.sinks] if problem.sinks != "none" else None,
        "output_scale": factor_kind(problem.output_scale),
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
            **dict.fromkeys((*strides, *PARTS), "i64"),
            **dict.fromkeys(_NEAR, "i32"),
        },
        constants={
            "HEADS": problem.kv_heads,
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
            "Q_FP8": flavour(problem.dtype),
            "FP8": flavour(problem.kv_dtype),
            "OUT_FP8": flavour(problem.out_dtype),
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


def segments_program(problem: UnifiedAttentionProblem) -> Program:
    """The body that adds segments up."""
    return Program(
        unified_attention_segments_body,
        signature={
            "cu_seqlens_q": "*i32",
            "v_descale": factor_kind(problem.v_descale),
            "sinks": POINTERS[problem.sinks] if problem.sinks != "none" else None,
            "output_scale": factor_kind(problem.output_scale),
            "out": _out_pointer(problem),
            "lse": "*fp32" if problem.return_lse else None,
            **dict.fromkeys(("part_total", "part_top", "part_mass"), "*fp32"),
            **dict.fromkeys(("segments", "each", "rows", "above", "most"), "i32"),
            **dict.fromkeys((*_OUT, *_DESCALES[4:], *PARTS), "i64"),
        },
        constants={
            "HEADS": problem.heads,
            "GROUP": problem.heads // problem.kv_heads,
            "DV": problem.head_dim_v,
            "OUT_UNIT": units_of(problem)[2],
            "V_DESCALE": problem.v_descale,
            "OUTPUT_SCALE": problem.output_scale,
            "OUT_FP8": flavour(problem.out_dtype),
            "TOGETHER": _TOGETHER,
            "BLOCK_DV": _block(problem.head_dim_v),
            "INTERPRETED": interpreting(),
        },
        options={"num_warps": 4},
    )

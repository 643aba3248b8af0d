# SPDX-License-Identifier: Apache-2.0
"""The Programs of sparse MLA: from a Problem and a tuning, all that decides machine code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.kernels.attention_programs import flavour, pointer, unit_of
from archkey.kernels.rmsnorm import POINTERS
from archkey.kernels.sparse_mla_body import sparse_mla_body, sparse_mla_segments_body
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.launch import Program, interpreting
from archkey.ops._sparse_kv import PACKED

if TYPE_CHECKING:
    from archkey.ops.sparse_mla import SparseMlaDecodeProblem, SparseMlaPrefillProblem

    Problem = SparseMlaPrefillProblem | SparseMlaDecodeProblem

__all__ = ["Rows", "attention_program", "row_form", "segments_program", "units_of"]

_LATENT = 512
_NUMBERS = ("queries", "segments", "last", "extra_last", "length_each", "extra_length_each")
_Q = ("q_sequence_stride", "q_stride", "q_head_stride")
_POOLS = ("block_stride", "slot_stride", "extra_block_stride", "extra_slot_stride")
_LISTS = ("list_sequence_stride", "list_stride")
_OUT = (
    *("out_sequence_stride", "out_stride", "out_head_stride"),
    *("lse_stride", "lse_head_stride", "max_stride", "max_head_stride"),
)


class Rows(NamedTuple):
    """A cache's rows as the body takes them.

    pointer    Triton's name of a pointer to them
    flavour    of their codes, "none" for bfloat16
    nope       columns that are codes
    scales     scales of 512 columns
    planar     see `archkey.ops._sparse_kv.PackedKV`
    row_bytes  from one row of a block to the next; 0 where the cache's own stride says
    """

    pointer: str
    flavour: str
    nope: int
    scales: int
    planar: bool
    row_bytes: int


def row_form(kv_format: str) -> Rows:
    """The rows of a format."""
    layout = PACKED.get(kv_format)
    if layout is None:
        return Rows(POINTERS["bfloat16"], "none", 0, 1, False, 0)
    code = layout.code_dtype
    row_bytes = layout.row_bytes - (layout.scale_bytes if layout.planar else 0)
    scales = _LATENT // layout.tile
    return Rows(pointer(code), flavour(code), layout.nope_dim, scales, layout.planar, row_bytes)


def units_of(problem: Problem) -> tuple[int, int, int]:
    """Elements in 16 bytes of q, of a cache and of out, if strides are multiples of them."""
    cache = "bfloat16" if problem.kv_format == "bf16" else "uint8"
    q_unit, kv_unit, out_unit = (
        unit_of(name, problem.aligned) for name in (problem.dtype, cache, problem.out_dtype)
    )
    return q_unit, kv_unit, out_unit


def _options(problem: Problem, num_warps: int) -> dict[str, Any]:
    return {"num_warps": num_warps, **({"launch_pdl": True} if problem.pdl else {})}


def _outputs(problem: Problem) -> dict[str, str | None]:
    highest = getattr(problem, "return_max_logits", False)
    return {
        "attn_sink": "*fp32" if problem.attn_sink else None,
        "out": POINTERS[problem.out_dtype],
        "lse": "*fp32" if problem.return_lse else None,
        "max_logits": "*fp32" if highest else None,
    }


def attention_program(problem: Problem, tuning: SparseMlaTuning) -> Program:
    """The body with a tuning."""
    q_unit, kv_unit, out_unit = units_of(problem)
    rows = row_form(problem.kv_format)
    extra = getattr(problem, "extra_topk", 0)
    part = None if problem.batch_invariant else "*fp32"
    # A block times its stride is one instruction where a stride in 16 bytes is an int32.
    near = "i32" if problem.aligned else "i64"
    return Program(
        sparse_mla_body,
        signature={
            "q": POINTERS[problem.dtype],
            "kv": rows.pointer,
            "indices": "*i32",
            "topk_length": "*i32" if problem.topk_length else None,
            "extra_kv": rows.pointer if extra else None,
            "extra_indices": "*i32" if extra else None,
            "extra_topk_length": ("*i32" if getattr(problem, "extra_topk_length", False) else None),
            **_outputs(problem),
            **dict.fromkeys(("part_total", "part_top", "part_mass"), part),
            **dict.fromkeys(_NUMBERS, "i32"),
            "softmax_scale": "fp32",
            **dict.fromkeys(_Q, "i64"),
            **{name: near if "block" in name else "i64" for name in _POOLS},
            **dict.fromkeys((*_LISTS, *(f"extra_{name}" for name in _LISTS), *_OUT), "i64"),
        },
        constants={
            "HEADS": problem.heads,
            "D": problem.head_dim,
            "DV": problem.head_dim_v,
            "TOPK": problem.topk,
            "PAGE": problem.page_size,
            "EXTRA_TOPK": extra,
            "EXTRA_PAGE": getattr(problem, "extra_page_size", 0),
            "UNIT": q_unit,
            "KV_UNIT": kv_unit,
            "OUT_UNIT": out_unit,
            "FP8": rows.flavour,
            "NOPE": rows.nope,
            "SCALES": rows.scales,
            "PLANAR": rows.planar,
            "SPLITS": not problem.batch_invariant,
            "ROWS": tuning.rows,
            "KEYS": tuning.keys,
            "STAGES": tuning.stages,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(("q", "kv", "extra_kv", "out") if problem.aligned else ()),
        options=_options(problem, tuning.num_warps),
    )


def segments_program(problem: Problem, together: int, columns: int) -> Program:
    """The body that adds segments, `together` at once, in `columns` columns a program."""
    return Program(
        sparse_mla_segments_body,
        signature={
            **_outputs(problem),
            **dict.fromkeys(("part_total", "part_top", "part_mass"), "*fp32"),
            **dict.fromkeys(("queries", "segments"), "i32"),
            **dict.fromkeys(_OUT, "i64"),
        },
        constants={
            "HEADS": problem.heads,
            "DV": problem.head_dim_v,
            "OUT_UNIT": units_of(problem)[2],
            "TOGETHER": together,
            "BLOCK_DV": columns,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        options=_options(problem, 4),
    )

# SPDX-License-Identifier: Apache-2.0
"""The Programs of mla_decode: from a Problem and a tuning, all that decides machine code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_programs import factor_kind, flavour, pointer, unit_of
from archkey.kernels.mla_decode_body import mla_decode_body, mla_decode_segments_body
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey.launch import Program, interpreting

if TYPE_CHECKING:
    from archkey.ops.mla import MlaDecodeProblem

__all__ = ["decode_program", "segments_program", "units_of"]

_Q = ("q_sequence_stride", "q_stride", "q_head_stride")
_OUT = (
    "out_sequence_stride",
    "out_stride",
    "out_head_stride",
    "lse_stride",
    "lse_head_stride",
)


def units_of(problem: MlaDecodeProblem) -> tuple[int, ...]:
    """Elements in 16 bytes of q, of the cache and of out, if strides are multiples of them."""
    names = problem.dtype, problem.kv_dtype, problem.out_dtype
    return tuple(unit_of(name, problem.aligned) for name in names)


def _options(problem: MlaDecodeProblem, num_warps: int) -> dict[str, Any]:
    return {"num_warps": num_warps, **({"launch_pdl": True} if problem.pdl else {})}


def decode_program(problem: MlaDecodeProblem, tuning: MlaDecodeTuning) -> Program:
    """The body with a tuning."""
    q_unit, kv_unit, out_unit = units_of(problem)
    part = None if problem.batch_invariant else "*fp32"
    # A page times its stride is one instruction where a stride in 16 bytes is an int32.
    block_stride = "i32" if problem.aligned else "i64"
    return Program(
        mla_decode_body,
        signature={
            "q": pointer(problem.dtype),
            "kv_cache": pointer(problem.kv_dtype),
            "block_table": "*i32",
            "cache_seqlens": "*i32",
            "cu_seqlens_q": "*i32" if problem.ragged else None,
            "q_descale": factor_kind(problem.q_descale),
            "kv_descale": factor_kind(problem.kv_descale),
            "out": pointer(problem.out_dtype),
            "lse": "*fp32" if problem.return_lse else None,
            **dict.fromkeys(("part_total", "part_top", "part_mass"), part),
            **dict.fromkeys(("tokens", "sequences", "queries", "segments", "window_left"), "i32"),
            "softmax_scale": "fp32",
            **dict.fromkeys(_Q, "i64"),
            "block_stride": block_stride,
            "slot_stride": "i64",
            **dict.fromkeys((*_OUT, "table_stride"), "i64"),
        },
        constants={
            "HEADS": problem.heads,
            "D": problem.head_dim,
            "DV": problem.head_dim_v,
            "PAGE": problem.page_size,
            "UNIT": q_unit,
            "KV_UNIT": kv_unit,
            "OUT_UNIT": out_unit,
            "CAUSAL": problem.causal,
            "WINDOW": problem.window,
            "Q_DESCALE": problem.q_descale,
            "KV_DESCALE": problem.kv_descale,
            "Q_FP8": flavour(problem.dtype),
            "FP8": flavour(problem.kv_dtype),
            "SPLITS": not problem.batch_invariant,
            "ROWS": tuning.rows,
            "KEYS": tuning.keys,
            "STAGES": tuning.stages,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(("q", "kv_cache", "out") if problem.aligned else ()),
        options=_options(problem, tuning.num_warps),
    )


def segments_program(problem: MlaDecodeProblem, together: int, columns: int) -> Program:
    """The body that adds segments, `together` at once, in `columns` columns a program."""
    return Program(
        mla_decode_segments_body,
        signature={
            "kv_descale": factor_kind(problem.kv_descale),
            "out": pointer(problem.out_dtype),
            "lse": "*fp32" if problem.return_lse else None,
            **dict.fromkeys(("part_total", "part_top", "part_mass"), "*fp32"),
            **dict.fromkeys(("queries", "segments"), "i32"),
            **dict.fromkeys(_OUT, "i64"),
        },
        constants={
            "HEADS": problem.heads,
            "DV": problem.head_dim_v,
            "OUT_UNIT": units_of(problem)[2],
            "KV_DESCALE": problem.kv_descale,
            "TOGETHER": together,
            "BLOCK_DV": columns,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        options=_options(problem, 4),
    )

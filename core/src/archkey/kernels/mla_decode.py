# SPDX-License-Identifier: Apache-2.0
"""Builder of mla_decode on the shared Triton bodies.

It turns a Problem and a tuning into the Programs that are compiled, and tensors into their launch
arguments. Any architecture with a Triton backend can list it. Grids and the number of segments
follow from shapes and from `max_seqlen_k` alone, so that a captured call serves any lengths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from archkey.kernels.attention_programs import factor_kind, flavour, pointer
from archkey.kernels.mla_decode_body import mla_decode_body, mla_decode_segments_body
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.ops.mla import MlaDecodeProblem

__all__ = ["build_mla_decode", "decode_program", "run_of"]

_UNITS = 128
"""Compute units of a device that does not say: pretended ones, of this size as a rule."""
_LEAST = 64
"""Keys that a segment has at least."""
_START, _MERGE, _ADD = 128, 128, 4
"""What the start of a program, the second launch and a sum take, in the time of a key in a step."""
_TOGETHER, _COLUMNS = 32, 128
"""Segments that the second body adds at once, and columns of its programs if these divide them."""
_Q = ("q_sequence_stride", "q_stride", "q_head_stride")
_OUT = (
    "out_sequence_stride",
    "out_stride",
    "out_head_stride",
    "lse_stride",
    "lse_head_stride",
)


def build_mla_decode(problem: MlaDecodeProblem, build: Build) -> Run:
    """`run(q, kv_cache, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: MlaDecodeTuning = build.tuning(problem)
    return run_of(problem, build, tuning, decode_program(problem, tuning))


def run_of(
    problem: MlaDecodeProblem, build: Build, tuning: MlaDecodeTuning, program: Program
) -> Run:
    """`run` with a body of the parameters of `mla_decode_body`, which may be another's."""
    heads, width = problem.heads, problem.head_dim_v
    columns = _columns(width)
    launch = build.compile(program)
    merge = None if problem.batch_invariant else build.compile(_segments_program(problem))
    slots = (build.device.compute_units or _UNITS) * tuning.resident
    q_unit, kv_unit, out_unit = _units_of(problem)
    codes = interpreting()

    def run(
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        cache_seqlens: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        q_descale: Any,
        kv_descale: Any,
        softmax_scale: float,
        head_dim_v: int,
        causal: bool,
        window_left: int,
        num_splits: int,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        if codes:  # the interpreter reads codes as bytes
            q, kv_cache = (
                x.view(torch.uint8) if x.dtype.itemsize == 1 else x for x in (q, kv_cache)
            )
        sequences = cache_seqlens.shape[0]
        if cu_seqlens_q is None:
            queries, tokens = q.shape[1], sequences * q.shape[1]
            tiles = -(-queries * heads // tuning.rows) * sequences
            q_steps, out_steps = q.stride()[:3], out.stride()[:3]
        else:
            queries = tokens = q.shape[0]
            tiles = tokens * heads // tuning.rows + sequences + 1
            q_steps, out_steps = (0, *q.stride()[:2]), (0, *out.stride()[:2])
        keys = max_seqlen_k if window_left < 0 else min(max_seqlen_k, window_left + 1)
        split = 1 if merge is None else num_splits or split_of(slots, tiles, keys)
        parts: tuple[Any, ...] = (None, None, None)
        if split > 1:
            totals = q.new_empty((tokens * heads, split, width), dtype=torch.float32)
            tops, masses = q.new_empty((2, tokens * heads, split), dtype=torch.float32)
            parts = totals, tops, masses
        out_strides = [stride // out_unit for stride in out_steps]
        out_strides += (0, 0) if lse is None else lse.stride()
        launch(
            (tiles, split, 1), q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, q_descale,
            kv_descale, out, lse, *parts, tokens, sequences, queries, split, window_left,
            softmax_scale, *(stride // q_unit for stride in q_steps),
            kv_cache.stride(0) // kv_unit, kv_cache.stride(1) // kv_unit, *out_strides,
            block_table.stride(0),
        )  # fmt: skip
        if merge is not None and split > 1:
            merge(
                (tokens * heads, width // columns or 1, 1),
                kv_descale,
                out,
                lse,
                *parts,
                queries,
                split,
                *out_strides,
            )

    return run


@lru_cache(maxsize=4096)
def split_of(slots: int, tiles: int, keys: int) -> int:
    """Segments of `keys` keys for the least time, in keys that one program goes through.

    `slots` programs run at once. Each takes its keys and a start; every segment has a sum to add.
    """

    def time(split: int) -> float:
        waves = -(-tiles * split // slots)
        return waves * (keys / split + _START) + (split > 1) * (_MERGE + split * _ADD)

    most = max(1, min(-(-slots // max(tiles, 1)) * 2, keys // _LEAST))
    return min(range(1, most + 1), key=time)


def _columns(width: int) -> int:
    """Columns of a program that adds segments: a part of `width`, or a power of two above it."""
    return 1 << (width - 1).bit_length() if width % _COLUMNS else _COLUMNS


def _units_of(problem: MlaDecodeProblem) -> tuple[int, ...]:
    """Elements in 16 bytes of q, of the cache and of out, if strides are multiples of them."""
    names = problem.dtype, problem.kv_dtype, problem.out_dtype
    sizes = tuple(16 // getattr(torch, name).itemsize for name in names)
    return sizes if problem.aligned else (1, 1, 1)


def _options(problem: MlaDecodeProblem, num_warps: int) -> dict[str, Any]:
    return {"num_warps": num_warps, **({"launch_pdl": True} if problem.pdl else {})}


def decode_program(problem: MlaDecodeProblem, tuning: MlaDecodeTuning) -> Program:
    """The body with a tuning."""
    q_unit, kv_unit, out_unit = _units_of(problem)
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


def _segments_program(problem: MlaDecodeProblem) -> Program:
    columns = _columns(problem.head_dim_v)
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
            "OUT_UNIT": _units_of(problem)[2],
            "KV_DESCALE": problem.kv_descale,
            "TOGETHER": _TOGETHER * _COLUMNS // columns,
            "BLOCK_DV": columns,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        options=_options(problem, 4),
    )

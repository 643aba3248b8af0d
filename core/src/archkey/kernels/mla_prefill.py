# SPDX-License-Identifier: Apache-2.0
"""Builder of mla_prefill on the shared Triton body.

One launch a call. Its grid follows from shapes and from `max_seqlen_q` and `max_seqlen_k` alone, so
a call can be captured; what a sequence needs is read on the device. Any architecture with a Triton
backend can list it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from archkey.kernels.attention_programs import (
    as_bytes,
    factor_kind,
    flavour,
    pointer,
    unit_of,
)
from archkey.kernels.mla_prefill_body import mla_prefill_body
from archkey.kernels.mla_prefill_tunings import MlaPrefillTile, MlaPrefillTuning
from archkey.launch import Build, Program, interpreting

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.ops.mla import MlaPrefillProblem

__all__ = ["build_mla_prefill"]

_TAIL = 32
"""Most programs of a KV head that write the rows past the last sequence, if there are any."""


def build_mla_prefill(problem: MlaPrefillProblem, build: Build) -> Run:
    """`run(q, k, v, cu_seqlens_q, .., lse)`, in the order of the operator's inputs and outputs."""
    tuning: MlaPrefillTuning = build.tuning(problem)
    # Results that must not depend on the batch come from one tile, for any number of rows.
    tiles = tuning.tiles[-1:] if problem.batch_invariant else tuning.tiles
    launches = [(tile, build.compile(_program(problem, tile))) for tile in tiles]
    heads, group = problem.kv_heads, problem.heads // problem.kv_heads
    key_bytes = (problem.head_dim + problem.head_dim_v) * getattr(torch, problem.dtype).itemsize
    unit = unit_of(problem.dtype, problem.aligned)
    out_unit = unit_of(problem.out_dtype, problem.aligned)
    codes = interpreting()

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        q_descale: Any,
        k_descale: Any,
        v_descale: Any,
        softmax_scale: float,
        causal: bool,
        batch_invariant: bool,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        tokens, sequences = q.shape[0], cu_seqlens_q.shape[0] - 1
        if codes:  # the interpreter reads codes as bytes
            q, k, v = map(as_bytes, (q, k, v))
        strides = [stride // unit for x in (q, k, v) for stride in x.stride()[:2]]
        strides += [stride // out_unit for stride in out.stride()[:2]]
        strides += [0, 0] if lse is None else lse.stride()
        tile, launch = next(
            found for found in launches if not 0 < found[0].most < max_seqlen_q * group
        )
        room = tokens * group // tile.rows + sequences if sequences else 0
        tail = min(-(-tokens * group // tile.rows), _TAIL)
        together = max(1, min(heads, (tuning.cache << 20) // max(1, max_seqlen_k * key_bytes)))
        launch(
            ((room + tail) * heads, 1, 1), q, k, v, cu_seqlens_q, cu_seqlens_k, q_descale,
            k_descale, v_descale, out, lse, tokens, sequences, tail, together, softmax_scale,
            *strides,
        )  # fmt: skip

    return run


def _program(problem: MlaPrefillProblem, tile: MlaPrefillTile) -> Program:
    """The body for `problem` with `tile`."""
    width = 1 << (problem.head_dim.bit_length() - 1)  # the largest power of two in it
    options: dict[str, Any] = {"num_warps": tile.num_warps}
    if problem.pdl:
        options["launch_pdl"] = True
    strides = tuple(f"{x}{head}_stride" for x in ("q", "k", "v", "out", "lse") for head in _HEADS)
    return Program(
        mla_prefill_body,
        signature={
            **dict.fromkeys(("q", "k", "v"), pointer(problem.dtype)),
            **dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), "*i32"),
            "q_descale": factor_kind(problem.q_descale),
            "k_descale": factor_kind(problem.k_descale),
            "v_descale": factor_kind(problem.v_descale),
            "out": pointer(problem.out_dtype),
            "lse": "*fp32" if problem.return_lse else None,
            **dict.fromkeys(("tokens", "sequences", "tail", "together"), "i32"),
            "softmax_scale": "fp32",
            **dict.fromkeys(strides, "i64"),
        },
        constants={
            "HEADS": problem.kv_heads,
            "GROUP": problem.heads // problem.kv_heads,
            "WIDTH": width,
            "REST": problem.head_dim - width,
            "DV": problem.head_dim_v,
            "UNIT": unit_of(problem.dtype, problem.aligned),
            "OUT_UNIT": unit_of(problem.out_dtype, problem.aligned),
            "CAUSAL": problem.causal,
            "Q_DESCALE": problem.q_descale,
            "K_DESCALE": problem.k_descale,
            "V_DESCALE": problem.v_descale,
            "FP8": flavour(problem.dtype),
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "STAGES": tile.stages,
            "USE_PDL": problem.pdl,
            "INTERPRETED": interpreting(),
        },
        aligned=frozenset(("q", "k", "v", "out") if problem.aligned else ()),
        options=options,
    )


_HEADS = ("", "_head")
"""Strides of a token, and of a head."""

# SPDX-License-Identifier: Apache-2.0
"""Calls of packed decode and of the gates from metadata; see `kda.inputs` for what is poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.kda.values import (
    gate_parameters,
    pool_of,
    projections,
    raw_gate,
)
from archkey.conformance.cases.spec import DTYPES, describe, lay
from archkey.ops.kda_gate import chunk_layout

__all__ = ["Gate", "Packed", "gate_case", "packed_case"]


@dataclass(frozen=True)
class Packed:
    """A call of kda_packed_decode; fields as those of `kda.inputs.Kda`.

    lay        of mixed_qkv, a and b; pool_lay, out_lay of the others
    """

    batch: int
    heads: tuple[int, int] = (2, 2)
    dims: tuple[int, int] = (128, 128)
    dtype: str = "bf16"
    gate_dtype: str = "bf16"
    out: str = "bf16"
    values: str = "normal"
    A_log: str = "normal"
    dt_bias: str = "normal"
    bound: float | None = None
    l2norm: bool = True
    small: bool = False
    scale: float | None = None
    state: str = "fp32"
    skipped: tuple[int, ...] = ()
    column: bool = False
    wide: bool = False
    lay: str = "packed"
    pool_lay: str = "packed"
    out_lay: str = "packed"


@dataclass(frozen=True)
class Gate:
    """A call of kda_gate or, with chunks, of kda_gate_chunk_cumsum.

    shape     of g, up to its heads and their width
    lengths   of packed sequences; () none
    chunk     chunk_size; 0: kda_gate. chunks: chunk_indices are given, with padding
    out       "" the default, "buffer", or output_dtype
    """

    shape: tuple[int, ...]
    heads: int = 2
    dim: int = 128
    dtype: str = "bf16"
    values: str = "normal"
    A_log: str = "normal"
    dt_bias: str = "normal"
    bound: float | None = None
    lay: str = "packed"
    out: str = ""
    out_lay: str = "packed"
    chunk: int = 0
    unit: str = "ln"
    lengths: tuple[int, ...] = ()
    chunks: bool = False
    wide: bool = False


def packed_case(model: str, spec: Packed) -> Case:
    """A case of kda_packed_decode. Rows without a slot are NaN, slots of nobody not finite."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        hv, (k_dim, v_dim), b = spec.heads[1], spec.dims, spec.batch
        how = ("small" if spec.small else "unit") if spec.l2norm else ""
        mixed = projections(make, (b,), spec.heads, spec.dims, how)
        gate = DTYPES[spec.gate_dtype]
        rows = [
            mixed.to(DTYPES[spec.dtype]),
            raw_gate(make, (b, hv * k_dim), spec.values, gate),
            make.randn(b, hv, dtype=torch.float32).mul(2).to(gate),
        ]
        for x in rows:
            x[list(spec.skipped)] = float("nan")
        slots = make.permutation(b + 2, torch.int64 if spec.wide else torch.int32)[:b]
        slots[:1] = b + 2  # the last one, which is far in a far pool
        slots[list(spec.skipped)] = -1
        states = make.randn(b + 3, hv, v_dim, k_dim, dtype=DTYPES[spec.state]) / 8
        out = torch.zeros(b, 1, hv, v_dim, dtype=DTYPES[spec.out], device=make.device)
        mixed, a, beta = (lay(make, x, spec.lay) for x in rows)
        return {
            "mixed_qkv": mixed,
            "a": a,
            "b": beta,
            **gate_parameters(make, hv, k_dim, spec.A_log, spec.dt_bias),
            "scale": spec.scale,
            "initial_state": lay(make, pool_of(make, states, slots), spec.pool_lay),
            "ssm_state_indices": slots[:, None] if spec.column else slots,
            "out": lay(make, out, spec.out_lay),
            "use_qk_l2norm_in_kernel": spec.l2norm,
            "lower_bound": spec.bound,
        }

    return Case("kda_packed_decode", model, describe(spec), inputs, edge=True)


def gate_case(model: str, spec: Gate) -> Case:
    """A case of kda_gate or kda_gate_chunk_cumsum. Rows past the last sequence are NaN."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        g = raw_gate(make, (*spec.shape, spec.heads, spec.dim), spec.values, DTYPES[spec.dtype])
        bounds = list(accumulate(spec.lengths, initial=0))
        if spec.lengths:
            g[:, bounds[-1] :] = float("nan")
        given: dict[str, Any] = {
            "g": lay(make, g, spec.lay),
            **gate_parameters(make, spec.heads, spec.dim, spec.A_log, spec.dt_bias),
            "lower_bound": spec.bound,
        }
        if spec.out == "buffer":
            given["out"] = lay(make, torch.zeros_like(g, dtype=torch.float32), spec.out_lay)
        elif spec.out:
            given["output_dtype"] = DTYPES[spec.out]
        if spec.chunk:
            given |= {"chunk_size": spec.chunk, "unit": spec.unit}
        if spec.lengths:
            cu_seqlens = make.tensor(bounds, torch.int64 if spec.wide else torch.int32)
            given["cu_seqlens"] = cu_seqlens
            if spec.chunks:
                rows = sum(-(-n // spec.chunk) for n in spec.lengths) + 2
                pairs, _ = chunk_layout(cu_seqlens, spec.shape[1], spec.chunk, rows)
                given["chunk_indices"] = pairs
        return given

    name = "kda_gate_chunk_cumsum" if spec.chunk else "kda_gate"
    return Case(name, model, describe(spec), inputs, edge=True)

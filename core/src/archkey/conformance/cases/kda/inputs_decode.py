# SPDX-License-Identifier: Apache-2.0
"""Calls of packed decode and of the gates from metadata; see `kda.inputs` for what is poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.kda.values import (
    gate_parameters,
    pool_of,
    projections,
    raw_gate,
)
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import bounds, lay
from archkey.ops.kda_gate import chunk_layout

__all__ = ["Gate", "Packed"]


@dataclass(frozen=True)
class Packed:
    """A call of kda_packed_decode; fields as those of `kda.inputs.Kda`.

    Rows without a slot are NaN, slots of nobody not finite.

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

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        hv, (k_dim, v_dim), b = self.heads[1], self.dims, self.batch
        how = ("small" if self.small else "unit") if self.l2norm else ""
        mixed = projections(make, (b,), self.heads, self.dims, how)
        gate = DTYPES[self.gate_dtype]
        rows = [
            mixed.to(DTYPES[self.dtype]),
            raw_gate(make, (b, hv * k_dim), self.values, gate),
            make.randn(b, hv, dtype=torch.float32).mul(2).to(gate),
        ]
        for x in rows if make.poisons else ():
            x[list(self.skipped)] = float("nan")
        slots = make.permutation(b + 2, torch.int64 if self.wide else torch.int32)[:b]
        slots[:1] = b + 2  # the last one, which is far in a far pool
        slots[list(self.skipped)] = -1
        states = make.randn(b + 3, hv, v_dim, k_dim, dtype=DTYPES[self.state]) / 8
        out = torch.zeros(b, 1, hv, v_dim, dtype=DTYPES[self.out], device=make.device)
        mixed, a, beta = (lay(make, x, self.lay) for x in rows)
        return {
            "mixed_qkv": mixed,
            "a": a,
            "b": beta,
            **gate_parameters(make, hv, k_dim, self.A_log, self.dt_bias),
            "scale": self.scale,
            "initial_state": lay(make, pool_of(make, states, slots), self.pool_lay),
            "ssm_state_indices": slots[:, None] if self.column else slots,
            "out": lay(make, out, self.out_lay),
            "use_qk_l2norm_in_kernel": self.l2norm,
            "lower_bound": self.bound,
        }


@dataclass(frozen=True)
class Gate:
    """A call of kda_gate or, with chunks, of kda_gate_chunk_cumsum.

    Rows past the last sequence are NaN.

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

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        g = raw_gate(make, (*self.shape, self.heads, self.dim), self.values, DTYPES[self.dtype])
        if self.lengths and make.poisons:
            g[:, sum(self.lengths) :] = float("nan")
        given: dict[str, Any] = {
            "g": lay(make, g, self.lay),
            **gate_parameters(make, self.heads, self.dim, self.A_log, self.dt_bias),
            "lower_bound": self.bound,
        }
        if self.out == "buffer":
            given["out"] = lay(make, torch.zeros_like(g, dtype=torch.float32), self.out_lay)
        elif self.out:
            given["output_dtype"] = DTYPES[self.out]
        if self.chunk:
            given |= {"chunk_size": self.chunk, "unit": self.unit}
        if self.lengths:
            cu_seqlens = bounds(make, self.lengths, torch.int64 if self.wide else torch.int32)
            given["cu_seqlens"] = cu_seqlens
            if self.chunks:
                rows = sum(-(-n // self.chunk) for n in self.lengths) + 2
                pairs, _ = chunk_layout(cu_seqlens, self.shape[1], self.chunk, rows)
                given["chunk_indices"] = pairs
        return given

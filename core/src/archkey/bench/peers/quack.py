# SPDX-License-Identifier: Apache-2.0
"""QuACK's norms, written in the CuTe DSL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from quack.rmsnorm import rmsnorm_fwd

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import output_dtype
from archkey.bench.peers._refusals import contiguous, require
from archkey.bench.peers._results import Last

__all__ = ["fused_add_rmsnorm", "rmsnorm"]


def _bind(inputs: Mapping[str, Any], residual: torch.Tensor | None, how: str) -> Bound:
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    contiguous(inputs, "x", "residual")
    require(x.dim() == 2, "rows of heads")
    dtype = output_dtype(inputs, x.dtype)
    offset = inputs.get("weight_bias", 0.0)
    options = {"residual": residual, "out_dtype": dtype, "eps": eps, "weight_offset": offset}
    call = Last(lambda: rmsnorm_fwd(x, weight, **options))

    def outputs() -> dict[str, torch.Tensor]:
        out, total, _ = call.result
        return {"out": out} if residual is None else {"out": out, "residual_out": total}

    return Bound(call, outputs, how)


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rmsnorm_fwd`; the width and the dtypes are compiled in."""
    only(inputs, "x", "weight", "eps", "out", "weight_bias", "enable_pdl")
    return _bind(inputs, None, "")


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rmsnorm_fwd` with a residual: (out, sum, None)."""
    only(
        inputs, "x", "residual", "weight", "eps", "out", "residual_out", "weight_bias", "enable_pdl"
    )
    residual = inputs["residual"]
    same = output_dtype(inputs, residual.dtype, "residual_out") == residual.dtype
    require(same, "residual_out of another dtype than residual")
    return _bind(inputs, residual, "not in place")

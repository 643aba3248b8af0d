# SPDX-License-Identifier: Apache-2.0
"""Liger Kernel's norms: Triton, made for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from liger_kernel.ops import LigerFusedAddRMSNormFunction, LigerRMSNormFunction

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._refusals import FLOATS, contiguous, one_dtype
from archkey.bench.peers._results import Last

__all__ = ["fused_add_rmsnorm", "rmsnorm"]


def _casting(inputs: Mapping[str, Any]) -> str:
    """Where values are rounded: "gemma" once, at the end; "llama" before the weight too."""
    return "llama" if inputs.get("cast_before_weight") else "gemma"


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode)`."""
    only(inputs, "x", "weight", "eps", "out", "weight_bias", "cast_before_weight", "enable_pdl")
    one_dtype(inputs, "x", "weight", "out", among=FLOATS)
    contiguous(inputs, "x")
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    offset, casting = float(inputs.get("weight_bias", 0.0)), _casting(inputs)
    call = Last(lambda: LigerRMSNormFunction.apply(x, weight, eps, offset, casting))
    return Bound(call, lambda: {"out": call.result}, "writes each row's 1/rms too")


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode)`: (Y, S)."""
    only(
        inputs, "x", "residual", "weight", "eps", "out", "residual_out", "weight_bias",
        "cast_before_weight", "enable_pdl",
    )  # fmt: skip
    one_dtype(inputs, "x", "residual", "weight", "out", "residual_out", among=FLOATS)
    contiguous(inputs, "x", "residual")
    x, residual = inputs["x"], inputs["residual"]
    weight, eps = inputs["weight"], inputs.get("eps", 1e-6)
    offset, casting = float(inputs.get("weight_bias", 0.0)), _casting(inputs)
    norm = LigerFusedAddRMSNormFunction.apply
    call = Last(lambda: norm(x, residual, weight, eps, offset, casting))
    how = "not in place; normed from the rounded sum; writes each row's 1/rms too"
    return Bound(call, lambda: dict(zip(("out", "residual_out"), call.result, strict=True)), how)

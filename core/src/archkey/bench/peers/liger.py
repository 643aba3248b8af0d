# SPDX-License-Identifier: Apache-2.0
"""Liger Kernel's norms: Triton, made for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from liger_kernel.ops import LigerFusedAddRMSNormFunction, LigerRMSNormFunction

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._serve import contiguous, one_dtype

__all__ = ["fused_add_rmsnorm", "rmsnorm"]

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def _casting(inputs: Mapping[str, Any]) -> str:
    """Where values are rounded: "gemma" once, at the end; "llama" before the weight too."""
    return "llama" if inputs.get("cast_before_weight") else "gemma"


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode)`."""
    only(inputs, "x", "weight", "eps", "out", "weight_bias", "cast_before_weight", "enable_pdl")
    one_dtype(inputs, "x", "weight", "out", among=_FLOATS)
    contiguous(inputs, "x")
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    offset, casting = float(inputs.get("weight_bias", 0.0)), _casting(inputs)
    results: dict[str, torch.Tensor] = {}

    def call() -> None:
        results["out"] = LigerRMSNormFunction.apply(x, weight, eps, offset, casting)

    return Bound(call, lambda: results, "writes each row's 1/rms too")


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode)`: (Y, S)."""
    only(
        inputs, "x", "residual", "weight", "eps", "out", "residual_out", "weight_bias",
        "cast_before_weight", "enable_pdl",
    )  # fmt: skip
    one_dtype(inputs, "x", "residual", "weight", "out", "residual_out", among=_FLOATS)
    contiguous(inputs, "x", "residual")
    x, residual = inputs["x"], inputs["residual"]
    weight, eps = inputs["weight"], inputs.get("eps", 1e-6)
    offset, casting = float(inputs.get("weight_bias", 0.0)), _casting(inputs)
    results: dict[str, torch.Tensor] = {}

    def call() -> None:
        results["out"], results["residual_out"] = LigerFusedAddRMSNormFunction.apply(
            x, residual, weight, eps, offset, casting
        )

    how = "not in place; normed from the rounded sum; writes each row's 1/rms too"
    return Bound(call, lambda: results, how)

# SPDX-License-Identifier: Apache-2.0
"""Calls of mxfp4_linear that are in order, for its tests."""

from __future__ import annotations

from typing import Any

import torch

from archkey.formats import quantize_mxfp4

BF16, F32, U8 = torch.bfloat16, torch.float32, torch.uint8
K, N = 96, 20


def rand(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights(n: int = N, k: int = K) -> dict[str, Any]:
    codes, scale = quantize_mxfp4(rand(n, k, dtype=F32, seed=1), "even")
    return {"weight": codes, "weight_scale": scale}


def call_of(*lead: int, dtype: torch.dtype = BF16, k: int = K, **more: Any) -> dict[str, Any]:
    """A call with float x that is in order."""
    return {"x": rand(*lead, k, dtype=dtype), **weights(k=k), **more}


def packed_call(*lead: int, k: int = K, **more: Any) -> dict[str, Any]:
    """The same with packed x."""
    codes, scale = quantize_mxfp4(rand(*lead, k, dtype=F32), "even")
    return {"x": codes, "x_scale": scale, **weights(k=k), **more}

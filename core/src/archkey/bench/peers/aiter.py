# SPDX-License-Identifier: Apache-2.0
"""aiter, AMD's library of kernels for inference."""

from __future__ import annotations

from archkey.bench.peers.aiter_attention import mla_decode, unified_attention
from archkey.bench.peers.aiter_norm import (
    fused_add_rmsnorm,
    fused_qk_rmsnorm,
    rmsnorm,
    rmsnorm_quant,
)

__all__ = [
    "fused_add_rmsnorm",
    "fused_qk_rmsnorm",
    "mla_decode",
    "rmsnorm",
    "rmsnorm_quant",
    "unified_attention",
]

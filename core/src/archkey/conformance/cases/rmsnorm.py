# SPDX-License-Identifier: Apache-2.0
"""RMSNorm at the widths of DeepSeek-V3, Kimi-K2.5, GLM-5, Kimi-Linear and Qwen3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.conformance.case import Case, Maker

__all__ = ["CASES"]


def _norm(tokens: int, width: int, weight_bias: float = 0.0, heads: int = 0) -> Any:
    def inputs(make: Maker) -> Mapping[str, Any]:
        shape = (tokens, heads, width) if heads else (tokens, width)
        return {
            "x": make.randn(*shape),
            "weight": make.randn(width) + (1 - weight_bias),
            "eps": 1e-6,
            "weight_bias": weight_bias,
        }

    return inputs


def _add_norm(tokens: int, width: int, residual: torch.dtype = torch.bfloat16) -> Any:
    def inputs(make: Maker) -> Mapping[str, Any]:
        return {
            "x": make.randn(tokens, width),
            "residual": make.randn(tokens, width, dtype=residual),
            "weight": make.randn(width) + 1,
            "eps": 1e-6,
        }

    return inputs


def _qk_norm(tokens: int, q_lora: int, kv_lora: int, rope: int) -> Any:
    """q_a and kv_a as slices of one projection row, as the models lay them out."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        row = make.randn(tokens, q_lora + kv_lora + rope)
        q, k, _ = row.split([q_lora, kv_lora, rope], dim=-1)
        return {
            "q": q if q_lora else None,
            "q_weight": make.randn(q_lora) + 1 if q_lora else None,
            "q_eps": 1e-6 if q_lora else None,
            "k": k,
            "k_weight": make.randn(kv_lora) + 1,
            "k_eps": 1e-6,
        }

    return inputs


CASES = (
    Case("rmsnorm", "DeepSeek-V3", "T=256, N=7168, bf16", _norm(256, 7168)),
    Case("rmsnorm", "Qwen3.5-397B", "T=256, N=4096, bf16, 1 + w", _norm(256, 4096, 1.0)),
    Case("rmsnorm", "Qwen3.5-397B q heads", "T=128, 32 x 256, bf16", _norm(128, 256, 1.0, 32)),
    Case("fused_add_rmsnorm", "GLM-5", "T=256, N=6144, bf16, in place", _add_norm(256, 6144)),
    Case(
        "fused_add_rmsnorm",
        "Kimi-Linear-48B",
        "T=256, N=2304, bf16 + fp32 residual",
        _add_norm(256, 2304, torch.float32),
    ),
    Case(
        "fused_qk_rmsnorm",
        "DeepSeek-V3",
        "T=1024, q 1536 + kv 512 of a 2112-wide row",
        _qk_norm(1024, 1536, 512, 64),
    ),
    Case(
        "fused_qk_rmsnorm",
        "Kimi-Linear-48B",
        "T=1024, kv 512 of a 576-wide row, no q",
        _qk_norm(1024, 0, 512, 64),
    ),
)

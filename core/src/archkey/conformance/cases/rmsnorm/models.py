# SPDX-License-Identifier: Apache-2.0
"""RMSNorm at the widths of DeepSeek-V3, Kimi-K2.5, GLM-5, Kimi-Linear and Qwen3.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from archkey.conformance.case import Case, Maker

__all__ = ["CASES", "norm", "qk_norm"]

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def norm(
    operator: str,
    tokens: int,
    width: int,
    *,
    heads: int = 0,
    weight_bias: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
    residual_dtype: torch.dtype | None = None,
    model: str = "",
) -> Case:
    """A case of rmsnorm or, in place, of fused_add_rmsnorm."""
    shape = (tokens, heads, width) if heads else (tokens, width)

    def inputs(make: Maker) -> Mapping[str, Any]:
        given = {
            "x": make.randn(*shape, dtype=dtype),
            "weight": make.randn(width, dtype=dtype) + (1 - weight_bias),
            "eps": 1e-6,
            "weight_bias": weight_bias,
        }
        if operator == "fused_add_rmsnorm":
            given["residual"] = make.randn(*shape, dtype=residual_dtype or dtype)
        return given

    label = f"T={tokens}, {f'{heads} x {width}' if heads else f'N={width}'}, {_SHORT[dtype]}"
    label += f" + {_SHORT[residual_dtype]} residual" if residual_dtype else ""
    label += ", 1 + w" if weight_bias else ""
    return Case(operator, model, label, inputs)


def qk_norm(
    tokens: int,
    q_lora: int,
    kv_lora: int,
    rope: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    model: str = "",
) -> Case:
    """q_a and kv_a as slices of one projection row, as the models lay them out."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        row = make.randn(tokens, q_lora + kv_lora + rope, dtype=dtype)
        q, k, _ = row.split([q_lora, kv_lora, rope], dim=-1)
        return {
            "q": q if q_lora else None,
            "q_weight": make.randn(q_lora, dtype=dtype) + 1 if q_lora else None,
            "q_eps": 1e-6 if q_lora else None,
            "k": k,
            "k_weight": make.randn(kv_lora, dtype=dtype) + 1,
            "k_eps": 1e-5,
        }

    halves = f"q {q_lora} + kv {kv_lora}" if q_lora else f"kv {kv_lora}"
    label = f"T={tokens}, {halves} of a {q_lora + kv_lora + rope}-wide row, {_SHORT[dtype]}"
    return Case("fused_qk_rmsnorm", model, label, inputs)


CASES = (
    norm("rmsnorm", 256, 7168, model="DeepSeek-V3"),
    norm("rmsnorm", 256, 4096, weight_bias=1.0, model="Qwen3.5-397B"),
    norm("rmsnorm", 128, 256, weight_bias=1.0, heads=32, model="Qwen3.5-397B q heads"),
    norm("fused_add_rmsnorm", 256, 6144, model="GLM-5"),
    norm("fused_add_rmsnorm", 256, 2304, residual_dtype=torch.float32, model="Kimi-Linear-48B"),
    qk_norm(1024, 1536, 512, 64, model="DeepSeek-V3"),
    qk_norm(1024, 0, 512, 64, model="Kimi-Linear-48B"),
    # More rows than the second and third dimension of a CUDA grid have places: 65535.
    *(
        replace(case, large=True)
        for case in (
            norm("rmsnorm", 4096, 32, heads=32, model="131072 rows"),
            norm("fused_add_rmsnorm", 131072, 32, model="131072 rows"),
            qk_norm(131072, 32, 16, 0, model="131072 rows"),
        )
    ),
)

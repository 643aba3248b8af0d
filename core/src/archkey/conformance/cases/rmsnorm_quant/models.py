# SPDX-License-Identifier: Apache-2.0
"""Quantising RMSNorm before the projections of DeepSeek, GLM-5, Kimi-Linear and Qwen3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.conformance.case import Case, Maker

__all__ = ["CASES"]


def _hidden(
    tokens: int, width: int, quant: str, weight_bias: float = 0.0, y: bool = False, **more: Any
) -> Any:
    """The norm in front of a layer: residual added in place; y is asked for as well."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        given = {"scale": _SCALE[quant](make)} if quant in _SCALE else {}
        return {
            "x": make.randn(tokens, width),
            "weight": make.randn(width) + (1 - weight_bias),
            "eps": 1e-6,
            "quant": quant,
            "residual": make.randn(tokens, width),
            "unquantized_out": make.randn(tokens, width) if y else None,
            "weight_bias": weight_bias,
            **given,
            **more,
        }

    return inputs


def _q_a(tokens: int, q_lora: int, quant: str, **more: Any) -> Any:
    """q_a quantised for its projection, kv_a in bfloat16 for the cache: slices of one row."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        q, kv, _ = make.randn(tokens, q_lora + 512 + 64).split([q_lora, 512, 64], dim=-1)
        return {
            "x": q,
            "weight": make.randn(q_lora) + 1,
            "eps": 1e-6,
            "quant": quant,
            "x2": kv,
            "x2_weight": make.randn(512) + 1,
            "x2_eps": 1e-6,
            **more,
        }

    return inputs


# A calibrated scale puts the largest |y|, some 16 here, at the largest number of the format:
# 448 or 240 for FP8, 448 * 6 for the product of NVFP4's code and block scale.
_SCALE = {
    "fp8_tensor": lambda make: make.tensor([16 / torch.finfo(make.fp8).max], torch.float32),
    "nvfp4": lambda make: make.tensor([16 / (448 * 6)], torch.float32),
}

_MODELS = tuple(
    Case("rmsnorm_quant", model, label, inputs)
    for model, label, inputs in (
        (
            "DeepSeek-V3 hidden",
            "T=256, N=7168, FP8 blocks by column, + residual",
            _hidden(256, 7168, "fp8_group", scale_layout="col"),
        ),
        (
            "DeepSeek-V3 hidden",
            "T=256, N=7168, FP8 blocks with power-of-two scales, + residual",
            _hidden(256, 7168, "fp8_group", scale_mode="pow2"),
        ),
        (
            "GLM-5 q_a, kv_a",
            "T=256, 2048 in FP8 blocks + 512 bf16 of a 2624-wide row",
            _q_a(256, 2048, "fp8_group"),
        ),
        (
            "Qwen3.5-397B hidden",
            "T=256, N=4096, FP8 per token, 1 + w, + residual, y",
            _hidden(256, 4096, "fp8_token", weight_bias=1.0, y=True),
        ),
        (
            "Kimi-Linear-48B hidden",
            "T=256, N=2304, FP8 static, + residual",
            _hidden(256, 2304, "fp8_tensor"),
        ),
        (
            "DeepSeek-R1 hidden",
            "T=200, N=7168, MXFP4 shuffled, + residual",
            _hidden(200, 7168, "mxfp4", scale_mode="even", scale_layout="shuffled_gfx950"),
        ),
        (
            "DeepSeek-R1 q_a, kv_a",
            "T=256, 1536 in MXFP4 + 512 bf16 of a 2112-wide row",
            _q_a(256, 1536, "mxfp4"),
        ),
        (
            "DeepSeek-R1 hidden",
            "T=200, N=7168, NVFP4 swizzled, + residual",
            _hidden(200, 7168, "nvfp4", scale_layout="swizzled_128x4"),
        ),
    )
)

# More rows than the second and third dimension of a CUDA grid have places: 65535.
_LARGE = tuple(
    Case(
        "rmsnorm_quant",
        "131072 rows",
        f"T=131072, N=32, {quant}, + residual, y",
        _hidden(131072, 32, quant, y=True, scale_layout=layout),
        large=True,
    )
    for quant, layout in (
        ("fp8_token", "row"),
        ("mxfp4", "shuffled_gfx950"),
        ("nvfp4", "swizzled_128x4"),
    )
)

CASES = (*_MODELS, *_LARGE)

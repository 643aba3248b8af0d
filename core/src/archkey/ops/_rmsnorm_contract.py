# SPDX-License-Identifier: Apache-2.0
"""Problems and operators of the RMSNorm family; the functions are in `archkey.ops.rmsnorm`."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from archkey.ops._contract import Operator

__all__ = ["OPERATORS", "FusedAddRmsNormProblem", "FusedQkRmsNormProblem", "RmsNormProblem"]


class RmsNormProblem(NamedTuple):
    """Root-mean-square norm of each row.

    aligned: every pointer is a multiple of 16 bytes and every row stride one of 16 elements, so
    that rows can be read 16 bytes at a time.
    """

    dtype: str
    weight_dtype: str
    out_dtype: str
    width: int
    heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "rmsnorm"


class FusedAddRmsNormProblem(NamedTuple):
    """Residual add, then root-mean-square norm of the sum."""

    dtype: str
    residual_dtype: str
    weight_dtype: str
    out_dtype: str
    width: int
    heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "fused_add_rmsnorm"


class FusedQkRmsNormProblem(NamedTuple):
    """Two independent norms of different widths in one launch; q_width 0 means k alone."""

    dtype: str
    weight_dtype: str
    out_dtype: str
    q_width: int
    k_width: int
    q_heads: int = 1
    k_heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "fused_qk_rmsnorm"


_BF16 = ("bfloat16", "bfloat16", "bfloat16")

OPERATORS = (
    Operator(
        name="rmsnorm",
        family="rmsnorm",
        problem=RmsNormProblem,
        inputs=("x", "weight", "eps", "weight_bias", "cast_before_weight"),
        outputs=("out",),
        reference="archkey.reference.rmsnorm:rmsnorm",
        function="archkey.ops.rmsnorm:rmsnorm",
        cases="archkey.conformance.cases.rmsnorm",
        workloads="archkey.bench.workloads.rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 hidden": RmsNormProblem(*_BF16, 7168),
                "GLM-5 hidden": RmsNormProblem(*_BF16, 6144),
                "Kimi-Linear hidden": RmsNormProblem(*_BF16, 2304),
                "Qwen3.5 hidden": RmsNormProblem(*_BF16, 4096),
                "Qwen3.5 q heads": RmsNormProblem(*_BF16, 256, heads=32),
                "DeepSeek-V3 kv_a": RmsNormProblem(*_BF16, 512),
            }
        ),
    ),
    Operator(
        name="fused_add_rmsnorm",
        family="rmsnorm",
        problem=FusedAddRmsNormProblem,
        inputs=("x", "residual", "weight", "eps", "weight_bias", "cast_before_weight"),
        outputs=("out", "residual_out"),
        reference="archkey.reference.rmsnorm:fused_add_rmsnorm",
        function="archkey.ops.rmsnorm:fused_add_rmsnorm",
        cases="archkey.conformance.cases.rmsnorm",
        workloads="archkey.bench.workloads.rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3": FusedAddRmsNormProblem("bfloat16", *_BF16, 7168),
                "GLM-5": FusedAddRmsNormProblem("bfloat16", *_BF16, 6144),
                "Kimi-Linear": FusedAddRmsNormProblem("bfloat16", *_BF16, 2304),
                "Qwen3.5": FusedAddRmsNormProblem("bfloat16", *_BF16, 4096),
            }
        ),
    ),
    Operator(
        name="fused_qk_rmsnorm",
        family="rmsnorm",
        problem=FusedQkRmsNormProblem,
        inputs=(
            "q",
            "q_weight",
            "q_eps",
            "k",
            "k_weight",
            "k_eps",
            "weight_bias",
            "cast_before_weight",
        ),
        outputs=("q_out", "k_out"),
        reference="archkey.reference.rmsnorm:fused_qk_rmsnorm",
        function="archkey.ops.rmsnorm:fused_qk_rmsnorm",
        cases="archkey.conformance.cases.rmsnorm",
        workloads="archkey.bench.workloads.rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 q_a, kv_a": FusedQkRmsNormProblem(*_BF16, 1536, 512),
                "GLM-5 q_a, kv_a": FusedQkRmsNormProblem(*_BF16, 2048, 512),
                "Kimi-Linear kv_a": FusedQkRmsNormProblem(*_BF16, 0, 512),
            }
        ),
    ),
)

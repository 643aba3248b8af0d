# SPDX-License-Identifier: Apache-2.0
"""Workloads of the norm that quantises what a projection reads: FP8 in three kinds, and MXFP4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import short, size
from archkey.bench.workloads.rmsnorm import TOKENS
from archkey.conformance.cases.rmsnorm_quant.inputs import Quant
from archkey.ops._rmsnorm_quant_kinds import KINDS, scale_shape

__all__ = ["COSTS", "WORKLOADS"]

_SAYS = {
    "fp8_token": "fp8 per token",
    "fp8_tensor": "fp8 static",
    "fp8_group": "fp8 per 128",
    "mxfp4": "mxfp4",
}


def _workload(model: str, tokens: int, about: str, inputs: Quant, quick: bool = False) -> Workload:
    sizes = f"t{short(tokens)}"
    return Workload(
        "rmsnorm_quant", model, 1, sizes, inputs, f"{_SAYS[inputs.quant]}{about}", quick
    )


def _hidden() -> Iterator[Workload]:
    """The norm in front of a layer: alone, and with the residual added in place."""
    for quant in _SAYS:
        for tokens in TOKENS:
            quick = tokens == TOKENS[-1] and quant != "mxfp4"
            inputs = Quant(tokens, 7168, quant)
            yield _workload("DeepSeek-V3", tokens, ", hidden 7168", inputs, quick)
        for tokens in TOKENS[1::2]:
            inputs = Quant(tokens, 7168, quant, residual="bf16")
            yield _workload("DeepSeek-V3", tokens, ", hidden 7168, + residual", inputs)


def _others() -> Iterator[Workload]:
    for tokens in TOKENS[1::2]:
        by_column = Quant(tokens, 7168, "fp8_group", layout="col", residual="bf16")
        about = ", hidden 7168, scales by column, + residual"
        yield _workload("DeepSeek-V3", tokens, about, by_column)
        latents = Quant(tokens, 2048, "fp8_group", lay="slice", x2=(0, 512))
        yield _workload("GLM-5", tokens, ", q 2048, kv 512 in bf16", latents)
        y = Quant(tokens, 4096, "fp8_token", bias=1.0, residual="bf16", y="bf16")
        yield _workload("Qwen3.5-397B", tokens, ", hidden 4096, 1 + w, + residual, y", y)


WORKLOADS = (*_hidden(), *_others())


def _quant(call: Mapping[str, Any]) -> Cost:
    """Rows, residual, x2 and weights in; codes, scales, the sum, y and x2's norm out.

    A code has a byte, or half of one where two are packed. Scales count without the padding of
    their layout.
    """
    x, residual, x2 = call["x"], call.get("residual"), call.get("x2")
    kind = KINDS[call["quant"]]
    read = size(x, residual, x2, call["weight"], call.get("x2_weight"), call.get("scale"))
    written = size(residual, call.get("unquantized_out"), x2)
    written += x.numel() // 2 if kind.packed else x.numel()
    if kind.scale_dtype != "none":
        group = {"fp8_token": x.shape[-1], "fp8_group": call.get("group_size", 128)}
        scales = scale_shape(x.shape, group.get(call["quant"], kind.block), "row")
        written += prod(scales) * getattr(torch, kind.scale_dtype).itemsize
    return Cost(0, read + written)


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {"rmsnorm_quant": _quant}

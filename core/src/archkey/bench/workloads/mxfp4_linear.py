# SPDX-License-Identifier: Apache-2.0
"""Workloads of linear layers with MXFP4 weights: from one token of decode to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import short, size
from archkey.conformance.cases.mxfp4_linear.inputs import PACKED, Linear

__all__ = ["COSTS", "WORKLOADS"]

_TOKENS = (1, 16, 64, 256, 4096, 16384)
_QUICK = {("o", 64), ("o", 4096)}

# Model, GPUs that share it, the projection, and its K and N.
_FLOAT = (
    ("DeepSeek-R1", 1, "q_b", 1536, 24576),
    ("DeepSeek-R1", 8, "q_b", 1536, 3072),
    ("DeepSeek-R1", 1, "o", 16384, 7168),
    ("DeepSeek-R1", 8, "gate and up", 7168, 4608),
    ("Qwen3.5-397B", 1, "q and gate", 4096, 16384),
    ("GPT-OSS-120B", 1, "gate and up", 2880, 5760),
)
_BOTH = _FLOAT[:1] + _FLOAT[2:4]


def _listed() -> Iterator[Workload]:
    for (model, tp, layer, k, n), dtype in (
        *((row, "bf16") for row in _FLOAT),
        *((row, PACKED) for row in _BOTH),
    ):
        for tokens in _TOKENS:
            kind = "W4A4" if dtype == PACKED else "W4A16"
            quick = dtype != PACKED and (layer, tokens) in _QUICK
            yield Workload(
                "mxfp4_linear",
                model,
                tp,
                f"t{short(tokens)}",
                Linear((tokens,), k, n, dtype),
                f"{layer}, {k} to {n}, {kind}",
                quick,
            )


WORKLOADS = tuple(_listed())


def _linear(call: Mapping[str, Any]) -> Cost:
    """Codes, scales and x in, out written; a byte of codes is two columns.

    Operations of packed x are bounded by FP8's rate: that of FP4 is not measured.
    """
    x, weight, out = call["x"], call["weight"], call.get("out")
    packed = call.get("x_scale") is not None
    n, k = weight.shape[0], 2 * weight.shape[1]
    rows = x.numel() // (k // 2 if packed else k)
    dtype = call.get("out_dtype") or (torch.bfloat16 if packed else x.dtype)
    read = size(x, call.get("x_scale"), weight, call["weight_scale"], call.get("bias"))
    written = rows * n * dtype.itemsize if out is None else size(out)
    return Cost(2 * rows * n * k, read + written, "float8" if packed else "bfloat16")


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {"mxfp4_linear": _linear}

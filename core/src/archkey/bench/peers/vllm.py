# SPDX-License-Identifier: Apache-2.0
"""vLLM: its norm operators in CUDA, its attention in Triton.

The CUDA operators are called where the extension registers them, `torch.ops._C`, as vLLM's own
wrappers do, so that the extension and the attention's modules are all that is imported of vLLM.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MERGE, output_dtype
from archkey.bench.peers._refusals import FLOATS, contiguous, one_dtype, require
from archkey.bench.peers.vllm_attention import mla_decode, unified_attention

importlib.import_module("vllm._C_stable_libtorch")  # registers torch.ops._C

__all__ = [
    "fused_add_rmsnorm",
    "fused_qk_rmsnorm",
    "merge_attn_states",
    "mla_decode",
    "rmsnorm",
    "rmsnorm_quant",
    "unified_attention",
]


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rms_norm(result, input, weight, epsilon)`."""
    only(inputs, "x", "weight", "eps", "out", "enable_pdl", weight_bias=0.0)
    one_dtype(inputs, "x", "weight", "out", among=FLOATS)
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    out, norm = x.new_empty(x.shape), torch.ops._C.rms_norm
    return Bound(lambda: norm(out, x, weight, eps), lambda: {"out": out})


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`fused_add_rms_norm(input, residual, weight, epsilon)`: both are overwritten."""
    known = "x", "residual", "weight", "eps", "out", "residual_out", "enable_pdl"
    only(inputs, *known, weight_bias=0.0)
    one_dtype(inputs, "x", "residual", "weight", "out", "residual_out", among=FLOATS)
    contiguous(inputs, "x", "residual")
    x, residual = inputs["x"], inputs["residual"]
    weight, eps, norm = inputs["weight"], inputs.get("eps", 1e-6), torch.ops._C.fused_add_rms_norm
    return Bound(
        lambda: norm(x, residual, weight, eps),
        lambda: {"out": x, "residual_out": residual},
        "in place",
    )


def fused_qk_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rms_norm` of each."""
    known = "q", "q_weight", "q_eps", "k", "k_weight", "k_eps", "q_out", "k_out", "enable_pdl"
    only(inputs, *known, weight_bias=0.0)
    halves = []
    for half in "qk":
        x, weight = inputs.get(half), f"{half}_weight"
        if x is not None:
            one_dtype(inputs, half, weight, f"{half}_out", among=FLOATS)
            halves.append((x.new_empty(x.shape), x, inputs[weight], inputs[f"{half}_eps"]))
    norm = torch.ops._C.rms_norm
    names = ("q_out", "k_out")[-len(halves) :]

    def call() -> None:
        for half in halves:
            norm(*half)

    return Bound(
        call,
        lambda: {name: half[0] for name, half in zip(names, halves, strict=True)},
        "two launches" if len(halves) == 2 else "",
    )


def rmsnorm_quant(inputs: Mapping[str, Any]) -> Bound:
    """Static, dynamic per token or per block, with the residual in place."""
    only(
        inputs, "x", "weight", "eps", "quant", "scale", "group_size", "residual", "scale_layout",
        "out", "out_scale", "residual_out", "enable_pdl", weight_bias=0.0, scale_mode="fp32",
    )  # fmt: skip
    one_dtype(inputs, "x", "weight", "residual", "residual_out", among=FLOATS)
    x, residual, quant = inputs["x"], inputs.get("residual"), inputs["quant"]
    require(x.dim() == 2, "rows of heads")
    contiguous(inputs, "x", "residual")
    weight, eps = inputs["weight"], inputs["eps"]
    out = torch.empty(x.shape, dtype=output_dtype(inputs, torch.float8_e4m3fn), device=x.device)
    beside = {} if residual is None else {"residual_out": residual}
    ops = torch.ops._C
    if quant == "fp8_tensor":
        scale = inputs["scale"].reshape(1)
        if residual is None:
            return Bound(
                lambda: ops.rms_norm_static_fp8_quant(out, x, weight, scale, eps),
                lambda: {"out": out},
            )
        return Bound(
            lambda: ops.fused_add_rms_norm_static_fp8_quant(out, x, residual, weight, scale, eps),
            lambda: {"out": out, **beside},
        )
    require(quant in ("fp8_token", "fp8_group"), f"no {quant}")
    group = inputs.get("group_size", 128) if quant == "fp8_group" else x.shape[1]
    by_column = inputs.get("scale_layout", "row") == "col"
    shape = (len(x), x.shape[1] // group)
    scales = torch.empty(shape[::-1] if by_column else shape, dtype=torch.float32, device=x.device)
    scales = scales.T if by_column else scales

    def per_token() -> None:
        ops.rms_norm_dynamic_per_token_quant(out, x, weight, scales, eps, None, residual)

    def per_block() -> None:
        ops.rms_norm_per_block_quant(out, x, weight, scales, eps, None, residual, group, by_column)

    return Bound(
        per_token if quant == "fp8_token" else per_block,
        lambda: {"out": out, "out_scale": scales, **beside},
    )


def merge_attn_states(inputs: Mapping[str, Any]) -> Bound:
    """`merge_attn_states`: logarithms by head, `[H, T]`."""
    only(inputs, *MERGE)
    one_dtype(inputs, "out_a", "out_b", "out", among=FLOATS)
    contiguous(inputs, "out_a", "out_b")
    out_a, out_b = inputs["out_a"], inputs["out_b"]
    packed = 16 // out_a.element_size()
    require(out_a.shape[-1] % packed == 0, f"heads of {out_a.shape[-1]}")
    lse_a, lse_b = (inputs[name].T.contiguous() for name in ("lse_a", "lse_b"))
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    merge = torch.ops._C.merge_attn_states
    return Bound(
        lambda: merge(out, lse, out_a, lse_a, out_b, lse_b, None, None),
        lambda: {"out": out, "lse": lse.T},
        "LSEs laid out by head outside the timing",
    )

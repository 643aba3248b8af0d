# SPDX-License-Identifier: Apache-2.0
"""PyTorch: its own operators one by one, compiled, and its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import MERGE, output_dtype
from archkey.bench.peers._refusals import FLOATS, one_dtype, require
from archkey.bench.peers._results import Last
from archkey.bench.peers.pytorch_attention import (
    mla_decode_bmm,
    mla_prefill_cudnn,
    mla_prefill_sdpa,
    unified_attention_cudnn,
    unified_attention_sdpa,
)
from archkey.formats.fp8 import encode_fp8, quantize_fp8
from archkey.formats.mxfp4 import dequantize_mxfp4

__all__ = [
    "fused_add_rmsnorm",
    "fused_add_rmsnorm_compiled",
    "fused_qk_rmsnorm",
    "fused_qk_rmsnorm_compiled",
    "kda_gate",
    "merge_attn_states",
    "mla_decode_bmm",
    "mla_prefill_cudnn",
    "mla_prefill_sdpa",
    "mxfp4_linear",
    "rmsnorm",
    "rmsnorm_compiled",
    "rmsnorm_quant",
    "rmsnorm_quant_compiled",
    "unified_attention_cudnn",
    "unified_attention_sdpa",
]

_INDUCTOR = "Inductor, its default mode; compiled while binding"

Outputs = dict[str, torch.Tensor]
Function = Callable[[], Outputs]


def _bound(function: Function, how: str = "", compiled: bool = False) -> Bound:
    """A call that keeps the last results of `function`."""
    if compiled:
        # One process binds one function for every shape; by default the ninth is given up.
        config: Any = torch._dynamo.config
        config.recompile_limit = config.accumulated_recompile_limit = 1 << 16
        # fullgraph: a graph break may not fall back silently.
        function, how = torch.compile(function, dynamic=False, fullgraph=True), _INDUCTOR
    call = Last(function)
    return Bound(call, lambda: call.result, how)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def _float_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """One rounding, to x's dtype: what the compiler makes one kernel of."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def rmsnorm(inputs: Mapping[str, Any], compiled: bool = False) -> Bound:
    """`F.rms_norm`."""
    only(inputs, "x", "weight", "eps", "out", "enable_pdl", weight_bias=0.0)
    one_dtype(inputs, "x", "weight", "out", among=FLOATS)
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    norm = _float_norm if compiled else _norm
    return _bound(lambda: {"out": norm(x, weight, eps)}, compiled=compiled)


def rmsnorm_compiled(inputs: Mapping[str, Any]) -> Bound:
    """The formula, compiled."""
    return rmsnorm(inputs, compiled=True)


def fused_add_rmsnorm(inputs: Mapping[str, Any], compiled: bool = False) -> Bound:
    """An addition, then `F.rms_norm`."""
    known = "x", "residual", "weight", "eps", "out", "residual_out", "enable_pdl"
    only(inputs, *known, weight_bias=0.0)
    one_dtype(inputs, "x", "residual", "weight", "out", "residual_out", among=FLOATS)
    x, residual = inputs["x"], inputs["residual"]
    weight, eps = inputs["weight"], inputs.get("eps", 1e-6)

    def eager() -> Outputs:
        total = x + residual
        return {"out": _norm(total, weight, eps), "residual_out": total}

    def fused() -> Outputs:
        total = x.float() + residual.float()
        return {
            "out": _float_norm(total, weight, eps).to(x.dtype),
            "residual_out": total.to(x.dtype),
        }

    if compiled:
        return _bound(fused, compiled=True)
    return _bound(eager, "two launches, not in place; normed from the rounded sum")


def fused_add_rmsnorm_compiled(inputs: Mapping[str, Any]) -> Bound:
    """The formula, compiled."""
    return fused_add_rmsnorm(inputs, compiled=True)


def fused_qk_rmsnorm(inputs: Mapping[str, Any], compiled: bool = False) -> Bound:
    """`F.rms_norm` of each."""
    known = "q", "q_weight", "q_eps", "k", "k_weight", "k_eps", "q_out", "k_out", "enable_pdl"
    only(inputs, *known, weight_bias=0.0)
    for half in "qk":
        if inputs.get(half) is not None:
            one_dtype(inputs, half, f"{half}_weight", f"{half}_out", among=FLOATS)
    norm = _float_norm if compiled else _norm
    halves = [
        (f"{half}_out", inputs[half], inputs[f"{half}_weight"], inputs[f"{half}_eps"])
        for half in "qk"
        if inputs.get(half) is not None
    ]

    def both() -> Outputs:
        return {name: norm(x, weight, eps) for name, x, weight, eps in halves}

    return _bound(both, f"{len(halves)} launches" if len(halves) > 1 else "", compiled)


def fused_qk_rmsnorm_compiled(inputs: Mapping[str, Any]) -> Bound:
    """The formula of both, compiled as one function."""
    return fused_qk_rmsnorm(inputs, compiled=True)


def rmsnorm_quant(inputs: Mapping[str, Any], compiled: bool = False) -> Bound:
    """FP8 kinds, composed in float32."""
    only(
        inputs, "x", "weight", "eps", "quant", "scale", "group_size", "residual", "scale_mode",
        "scale_layout", "out", "out_scale", "unquantized_out", "residual_out", "x2", "x2_weight",
        "x2_eps", "x2_out", "enable_pdl", "weight_bias",
    )  # fmt: skip
    x, residual, x2 = inputs["x"], inputs.get("residual"), inputs.get("x2")
    eps = inputs["eps"]
    quant, scale = inputs["quant"], inputs.get("scale")
    require(quant in ("fp8_tensor", "fp8_token", "fp8_group"), f"no {quant} in plain torch")
    group = inputs.get("group_size", 128) if quant == "fp8_group" else None
    mode = inputs.get("scale_mode") or "fp32"
    by_column = inputs.get("scale_layout", "row") == "col"
    codes = str(output_dtype(inputs, torch.float8_e4m3fn)).removeprefix("torch.")
    y_out = inputs.get("unquantized_out")
    if x2 is not None:
        one_dtype(inputs, "x2", "x2_weight", "x2_out", among=FLOATS)
        require(not inputs.get("weight_bias"), "a second norm with weight_bias")
    sum_dtype = None if residual is None else output_dtype(inputs, residual.dtype, "residual_out")
    weight = inputs["weight"].float() + inputs.get("weight_bias", 0.0)
    norm = _float_norm if compiled else _norm

    def compose() -> Outputs:
        total = x.float() if residual is None else x.float() + residual.float()
        y = norm(total, weight, eps)
        results: Outputs = {}
        if scale is not None:
            results["out"] = encode_fp8(y / scale, codes)
        else:
            results["out"], scales = quantize_fp8(y, codes, group, mode)
            results["out_scale"] = scales.mT.contiguous().mT if by_column else scales
        if y_out is not None:
            results["unquantized_out"] = y.to(y_out.dtype)
        if sum_dtype is not None:
            results["residual_out"] = total.to(sum_dtype)
        if x2 is not None:
            results["x2_out"] = norm(x2, inputs["x2_weight"], inputs["x2_eps"])
        return results

    return _bound(compose, "many launches; the weight widened outside", compiled)


def rmsnorm_quant_compiled(inputs: Mapping[str, Any]) -> Bound:
    """The formula, compiled."""
    return rmsnorm_quant(inputs, compiled=True)


def merge_attn_states(inputs: Mapping[str, Any]) -> Bound:
    """The formula, some launches."""
    only(inputs, *MERGE)
    one_dtype(inputs, "out_a", "out_b", "out", among=FLOATS)
    out_a, lse_a, out_b, lse_b = (inputs[name] for name in ("out_a", "lse_a", "out_b", "lse_b"))
    require(bool(lse_a.isfinite().all() & lse_b.isfinite().all()), "a part without keys")

    def merge() -> Outputs:
        lse = torch.logaddexp(lse_a, lse_b)
        weight_a, weight_b = ((part - lse).exp()[..., None] for part in (lse_a, lse_b))
        return {"out": (out_a * weight_a + out_b * weight_b).to(out_a.dtype), "lse": lse}

    return _bound(merge, "many launches")


def kda_gate(inputs: Mapping[str, Any]) -> Bound:
    """The formula in float32, some launches."""
    only(inputs, "g", "A_log", "dt_bias", "lower_bound", "output_dtype", "out")
    g, bias, bound = inputs["g"], inputs.get("dt_bias"), inputs.get("lower_bound")
    dtype = output_dtype(inputs, inputs.get("output_dtype") or torch.float32)
    a_log = inputs.get("A_log")
    heads, width = g.shape[-2:]
    rate = torch.ones(heads, 1, device=g.device)
    if a_log is not None:
        rate = a_log.float().exp().reshape(heads, 1)
    if bias is not None:
        bias = bias.float().reshape(heads, width)

    def gate() -> Outputs:
        x = g.float() if bias is None else g.float() + bias
        if bound is None:
            return {"out": (-rate * functional.softplus(x)).to(dtype)}
        return {"out": (bound * torch.sigmoid(rate * x)).to(dtype)}

    return _bound(gate, "some launches; exp(A_log) made outside")


def mxfp4_linear(inputs: Mapping[str, Any]) -> Bound:
    """`F.linear` with weights of x's dtype, four times the bytes."""
    known = "x", "x_scale", "weight", "weight_scale", "bias", "out", "out_dtype", "enable_pdl"
    only(inputs, *known, x_scale_layout="row")
    one_dtype(inputs, "x", "bias", "out", among=FLOATS)
    x, bias, dtype = inputs["x"], inputs.get("bias"), inputs.get("out_dtype")
    require(dtype in (None, x.dtype), f"out_dtype = {dtype}")
    codes, scales = (inputs[name].view(torch.uint8) for name in ("weight", "weight_scale"))
    weight = dequantize_mxfp4(codes, scales).to(x.dtype)
    return _bound(
        lambda: {"out": functional.linear(x, weight, bias)}, "weights dequantised outside"
    )

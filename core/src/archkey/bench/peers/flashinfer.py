# SPDX-License-Identifier: Apache-2.0
"""FlashInfer: norms, quantising norms and the merge of two attention states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flashinfer.cascade import merge_state
from flashinfer.norm import fused_add_rmsnorm as _fused_add_rmsnorm
from flashinfer.norm import fused_add_rmsnorm_quant as _fused_add_rmsnorm_quant
from flashinfer.norm import gemma_fused_add_rmsnorm, gemma_rmsnorm
from flashinfer.norm import rmsnorm as _rmsnorm
from flashinfer.norm import rmsnorm_quant as _rmsnorm_quant

from archkey.bench.entrant import Bound, NotServed, only
from archkey.bench.peers._arguments import MERGE, output_dtype
from archkey.bench.peers._refusals import contiguous, one_dtype, require
from archkey.bench.peers._results import LN2, Last
from archkey.bench.peers.flashinfer_attention import (
    mla_decode_fa2,
    mla_decode_fa3,
    mla_prefill_fa3,
    unified_attention_decode,
    unified_attention_fa2,
    unified_attention_fa3,
)

__all__ = [
    "fused_add_rmsnorm",
    "fused_qk_rmsnorm",
    "merge_attn_states",
    "mla_decode_fa2",
    "mla_decode_fa3",
    "mla_prefill_fa3",
    "rmsnorm",
    "rmsnorm_quant",
    "unified_attention_decode",
    "unified_attention_fa2",
    "unified_attention_fa3",
]


def _norm_of(inputs: Mapping[str, Any], plain: Any, gemma: Any) -> Any:
    """Which of two functions adds `weight_bias` to the weight."""
    bias = inputs.get("weight_bias", 0.0)
    if bias not in (0.0, 1.0):
        raise NotServed(f"weight_bias of {bias}")
    return gemma if bias else plain


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rmsnorm(input, weight, eps, out, enable_pdl)`, or gemma_rmsnorm."""
    only(inputs, "x", "weight", "eps", "out", "weight_bias", "enable_pdl")
    one_dtype(inputs, "x", "weight", "out")
    norm, x, weight = _norm_of(inputs, _rmsnorm, gemma_rmsnorm), inputs["x"], inputs["weight"]
    require(norm is _rmsnorm or x.dim() == 2, "rows of heads with weight_bias")
    eps, pdl = inputs.get("eps", 1e-6), inputs.get("enable_pdl")
    out = x.new_empty(x.shape)
    return Bound(
        lambda: norm(x, weight, eps=eps, out=out, enable_pdl=pdl),
        lambda: {"out": out},
    )


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`fused_add_rmsnorm(input, residual, weight, eps, enable_pdl)`: both are overwritten."""
    only(
        inputs, "x", "residual", "weight", "eps", "out", "residual_out", "weight_bias", "enable_pdl"
    )
    one_dtype(inputs, "x", "residual", "weight", "out", "residual_out")
    norm = _norm_of(inputs, _fused_add_rmsnorm, gemma_fused_add_rmsnorm)
    x, residual, weight = inputs["x"], inputs["residual"], inputs["weight"]
    require(x.dim() == 2, "rows of heads")
    eps, pdl = inputs.get("eps", 1e-6), inputs.get("enable_pdl")
    return Bound(
        lambda: norm(x, residual, weight, eps=eps, enable_pdl=pdl),
        lambda: {"out": x, "residual_out": residual},
        "in place",
    )


def fused_qk_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """`rmsnorm` of each."""
    only(
        inputs, "q", "q_weight", "q_eps", "k", "k_weight", "k_eps", "q_out", "k_out", "enable_pdl",
        "weight_bias",
    )  # fmt: skip
    shared = {name: inputs.get(name) for name in ("enable_pdl", "weight_bias") if name in inputs}
    halves = {
        f"{half}_out": rmsnorm(
            {
                "x": inputs[half],
                "weight": inputs[f"{half}_weight"],
                "eps": inputs[f"{half}_eps"],
                "out": inputs.get(f"{half}_out"),
                **shared,
            }
        )
        for half in "qk"
        if inputs.get(half) is not None
    }
    calls = [bound.call for bound in halves.values()]
    return Bound(
        _in_turn(calls),
        lambda: {name: bound.outputs()["out"] for name, bound in halves.items()},
        "two launches" if len(calls) == 2 else "",
    )


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()

    return run


def rmsnorm_quant(inputs: Mapping[str, Any]) -> Bound:
    """`rmsnorm_quant(out, input, weight, scale, eps, enable_pdl)`, or fused_add_rmsnorm_quant."""
    only(
        inputs, "x", "weight", "eps", "quant", "scale", "residual", "out", "residual_out",
        "group_size", "enable_pdl", weight_bias=0.0, scale_layout="row",
    )  # fmt: skip
    require(inputs["quant"] == "fp8_tensor", "a static scale only")
    one_dtype(inputs, "x", "weight", "residual", "residual_out")
    x, weight, residual = inputs["x"], inputs["weight"], inputs.get("residual")
    require(x.dim() == 2, "rows of heads")
    eps, pdl, scale = inputs["eps"], inputs.get("enable_pdl"), inputs["scale"].reshape(1)
    out = torch.empty(x.shape, dtype=output_dtype(inputs, torch.float8_e4m3fn), device=x.device)
    if residual is None:
        return Bound(
            lambda: _rmsnorm_quant(out, x, weight, scale, eps=eps, enable_pdl=pdl),
            lambda: {"out": out},
        )
    return Bound(
        lambda: _fused_add_rmsnorm_quant(out, x, residual, weight, scale, eps=eps, enable_pdl=pdl),
        lambda: {"out": out, "residual_out": residual},
        "residual in place",
    )


def merge_attn_states(inputs: Mapping[str, Any]) -> Bound:
    """`merge_state(v_a, s_a, v_b, s_b)`: logarithms to base 2."""
    only(inputs, *MERGE)
    one_dtype(inputs, "out_a", "out_b", "out")
    contiguous(inputs, "out_a", "out_b")
    out_a, out_b = inputs["out_a"], inputs["out_b"]
    heads, width = out_a.shape[1:]
    require(heads * width // 8 <= 1024, f"{heads} heads of {width}: a thread block is too small")
    parts = inputs["lse_a"].isfinite() & inputs["lse_b"].isfinite()
    require(bool(parts.all()), "a part without keys")
    lse_a, lse_b = ((inputs[name] / LN2).contiguous() for name in ("lse_a", "lse_b"))
    call = Last(lambda: merge_state(out_a, lse_a, out_b, lse_b))
    return Bound(
        call,
        lambda: {"out": call.result[0], "lse": call.result[1] * LN2},
        "LSEs brought to base 2 outside the timing",
    )

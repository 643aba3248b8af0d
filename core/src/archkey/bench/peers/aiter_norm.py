# SPDX-License-Identifier: Apache-2.0
"""aiter's norms: in HIP, and in Triton where the result is quantised.

Read against ROCm/aiter e404860, and never run by archkey's authors, who have no such device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from aiter.ops.fused_qk_rmsnorm_group_quant import fused_qk_rmsnorm as aiter_fused_qk_rmsnorm
from aiter.ops.rmsnorm import (
    rmsnorm2d_fwd,
    rmsnorm2d_fwd_with_add,
    rmsnorm2d_fwd_with_add_dynamicquant,
    rmsnorm2d_fwd_with_dynamicquant,
)
from aiter.ops.triton.quant import (
    fused_rms_fp8_group_quant,
    fused_rms_fp8_per_tensor_static_quant,
    fused_rms_mxfp4_quant,
)
from aiter.utility.dtypes import fp8

from archkey.bench.entrant import Bound, NotServed, only
from archkey.bench.peers._refusals import require
from archkey.bench.peers._results import Last

__all__ = ["fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm", "rmsnorm_quant"]


def rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """The norm alone; `cast_before_weight` is not offered."""
    only(inputs, "x", "weight", "eps", weight_bias=0.0)
    x, weight, eps = inputs["x"], inputs["weight"], inputs.get("eps", 1e-6)
    _check_rows(x, weight)
    require(x.dim() == 2 or x.is_contiguous(), "heads with gaps")
    call = Last(lambda: rmsnorm2d_fwd(x, weight, eps))
    return Bound(call, lambda: {"out": call.result})


def fused_add_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """Residual add and norm into buffers of their own, as engines call it."""
    only(inputs, "x", "residual", "weight", "eps", weight_bias=0.0)
    x, residual, weight = inputs["x"], inputs["residual"], inputs["weight"]
    _check_rows(x, weight)
    require(residual.dtype == x.dtype and residual.is_contiguous(), "another residual")
    require(x.dim() == 2, "heads")
    eps = inputs.get("eps", 1e-6)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = torch.empty_like(residual)

    def run() -> None:
        rmsnorm2d_fwd_with_add(out, x, residual, total, weight, eps)

    how = "out and the sum in buffers of their own, not in place"
    return Bound(run, lambda: {"out": out, "residual_out": total}, how)


def fused_qk_rmsnorm(inputs: Mapping[str, Any]) -> Bound:
    """Two norms in one launch; from 16384 tokens on the library launches two."""
    only(inputs, "q", "q_weight", "q_eps", "k", "k_weight", "k_eps", weight_bias=0.0)
    q, k = inputs.get("q"), inputs["k"]
    if q is None:
        raise NotServed("k alone")
    _check_rows(k, inputs["k_weight"])
    _check_rows(q, inputs["q_weight"])
    require(q.dim() == k.dim() == 2, "heads")
    q_out, k_out = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k))

    def run() -> None:
        aiter_fused_qk_rmsnorm(
            q_out_quantized=q_out,
            q=q,
            q_weight=inputs["q_weight"],
            q_epsilon=inputs["q_eps"],
            k_out=k_out,
            k=k,
            k_weight=inputs["k_weight"],
            k_epsilon=inputs["k_eps"],
        )

    return Bound(run, lambda: {"q_out": q_out, "k_out": k_out})


def rmsnorm_quant(inputs: Mapping[str, Any]) -> Bound:
    """The kinds fp8_tensor, fp8_token, fp8_group and mxfp4."""
    only(
        inputs, "x", "weight", "eps", "quant", "scale", "group_size", "residual", "scale_mode",
        "scale_layout", "x2", "x2_weight", "x2_eps", weight_bias=0.0,
    )  # fmt: skip
    quant, x = inputs["quant"], inputs["x"]
    require(x.dim() == 2, "heads")
    require(quant in KINDS, f"{', '.join(KINDS)} only")
    return KINDS[quant](inputs)


def _fp8_token(inputs: Mapping[str, Any]) -> Bound:
    """In HIP."""
    _check_scales(inputs, "fp32", "row")
    require(inputs.get("x2") is None, "a second norm")
    x, weight, eps, residual = inputs["x"], inputs["weight"], inputs["eps"], inputs.get("residual")
    _check_rows(x, weight)
    out = torch.empty(x.shape, dtype=fp8, device=x.device)
    scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    if residual is None:

        def run() -> None:
            rmsnorm2d_fwd_with_dynamicquant(out, x, scale, weight, eps)

        return Bound(run, lambda: {"out": out, "out_scale": scale})
    require(residual.dtype == x.dtype and residual.is_contiguous(), "another residual")
    total = torch.empty_like(residual)

    def run_with_add() -> None:
        rmsnorm2d_fwd_with_add_dynamicquant(out, x, residual, total, scale, weight, eps)

    return Bound(run_with_add, lambda: {"out": out, "out_scale": scale, "residual_out": total})


def _fp8_tensor(inputs: Mapping[str, Any]) -> Bound:
    _check_scales(inputs, None, "row")
    operands = _operands(inputs)

    def run() -> Any:
        codes, *others = fused_rms_fp8_per_tensor_static_quant(
            *operands[:3], inputs["scale"], *operands[3:], dtype_quant=fp8,
            res1=inputs.get("residual"),
        )  # fmt: skip
        return (codes, None), *others

    return _triton(run)


def _fp8_group(inputs: Mapping[str, Any]) -> Bound:
    layout = inputs.get("scale_layout", "row")
    _check_scales(inputs, "fp32", "row", "col")
    operands, columns = _operands(inputs), layout == "col"

    def run() -> Any:
        return fused_rms_fp8_group_quant(
            *operands,
            group_size=inputs.get("group_size", 128),
            dtype_quant=fp8,
            res1=inputs.get("residual"),
            transpose_scale=columns,
            is_x_scale_strided=columns,
        )

    return _triton(run)


def _mxfp4(inputs: Mapping[str, Any]) -> Bound:
    _check_scales(inputs, "even", "row", "shuffled_gfx950")
    shuffled = inputs.get("scale_layout") == "shuffled_gfx950"
    x, weight, eps, x2, x2_weight, x2_eps = _operands(inputs)
    second = {} if x2 is None else {"x2": x2, "x2_weight": x2_weight, "x2_epsilon": x2_eps}

    def run() -> Any:
        return fused_rms_mxfp4_quant(
            x,
            weight,
            eps,
            **second,
            res1=inputs.get("residual"),
            shuffle=shuffled,
            scale_shuffle_padding=shuffled,
        )

    return _triton(run)


KINDS = {
    "fp8_tensor": _fp8_tensor,
    "fp8_token": _fp8_token,
    "fp8_group": _fp8_group,
    "mxfp4": _mxfp4,
}


def _operands(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Both norms' inputs, in the Triton functions' order."""
    require(inputs["x"].stride(1) == 1, "columns with gaps")
    residual = inputs.get("residual")
    # The sum is stored in x's dtype.
    require(residual is None or residual.dtype == inputs["x"].dtype, "another residual")
    return tuple(inputs.get(n) for n in ("x", "weight", "eps", "x2", "x2_weight", "x2_eps"))


def _triton(run: Any) -> Bound:
    """A call that returns ((codes, scales), y, second norm, sum), None for what it has not."""
    call = Last(run)

    def outputs() -> dict[str, torch.Tensor]:
        (codes, scales), y, second, total = call.result
        found = {
            "out": codes,
            "out_scale": scales,
            "unquantized_out": y,
            "residual_out": total,
            "x2_out": second,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    return Bound(call, outputs)


def _check_scales(inputs: Mapping[str, Any], mode: str | None, *layouts: str) -> None:
    require(inputs.get("scale_mode") in (None, mode), f"scale_mode {mode} only")
    require(inputs.get("scale_layout", "row") in layouts, f"scale_layout {', '.join(layouts)} only")


def _check_rows(x: torch.Tensor, weight: torch.Tensor) -> None:
    require(x.stride(-1) == 1 and weight.is_contiguous(), "columns with gaps")
    require(weight.dtype == x.dtype, "weight of x's dtype only")

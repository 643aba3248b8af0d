# SPDX-License-Identifier: Apache-2.0
"""RMSNorm in plain torch, with its fused and quantising forms.

    y = x * rsqrt(mean(x^2) + eps) * (w + weight_bias)        over the last dimension, N wide

x is `[T, N]` or `[T, h, N]`, w is `[N]`; any float dtypes and strides. Float results are returned
unrounded in `compute_dtype`.
"""

from __future__ import annotations

import torch

from archkey.formats.fp8 import encode_fp8, quantize_fp8
from archkey.formats.mxfp4 import quantize_mxfp4, shuffle_gfx950
from archkey.formats.nvfp4 import quantize_nvfp4, swizzle_128x4

__all__ = ["fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm", "rmsnorm_quant"]


def rmsnorm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor]:
    """(y,) with y of x's shape.

    cast_before_weight  round `x * rsqrt(...)` to x's dtype before the product with the weight, as
                        Hugging Face's Llama does
    """
    cast_to = x.dtype if cast_before_weight else None
    return (_norm(x.to(compute_dtype), weight, eps, weight_bias, cast_to),)


def fused_add_rmsnorm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, s) with `s = x + residual` and y the norm of s before s is rounded."""
    cast_to = x.dtype if cast_before_weight else None
    total = x.to(compute_dtype) + residual.to(compute_dtype)
    return _norm(total, weight, eps, weight_bias, cast_to), total


def fused_qk_rmsnorm(
    q: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    q_eps: float | None,
    k: torch.Tensor,
    k_weight: torch.Tensor,
    k_eps: float,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(q_out, k_out), two independent norms; q_out is None when q is None."""

    def half(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rmsnorm(
            x, weight, eps, weight_bias, cast_before_weight, compute_dtype=compute_dtype
        )[0]

    k_out = half(k, k_weight, k_eps)
    if q is None or q_weight is None or q_eps is None:
        return None, k_out
    return half(q, q_weight, q_eps), k_out


def rmsnorm_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    quant: str,
    scale: torch.Tensor | None = None,
    group_size: int = 128,
    residual: torch.Tensor | None = None,
    fp8_dtype: str = "float8_e4m3fn",
    scale_mode: str | None = None,
    scale_layout: str = "row",
    x2: torch.Tensor | None = None,
    x2_weight: torch.Tensor | None = None,
    x2_eps: float | None = None,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor | None,
]:
    """(out, out_scale, y, s, y2): the codes of y and their scales; y and s as in the norms above.

    | quant      | out                | scale  | out_scale                | scale_layout        |
    |------------|--------------------|--------|--------------------------|---------------------|
    | fp8_tensor | `[.., N]` fp8      | `[1]`  | None                     | row                 |
    | fp8_token  | `[.., N]` fp8      | None   | `[.., 1]` float32        | row                 |
    | fp8_group  | `[.., N]` fp8      | None   | `[.., G]` float32        | row, col            |
    | mxfp4      | `[.., N/2]` uint8  | None   | `[.., ceil(N/32)]` uint8 | row, shuffled_gfx950|
    | nvfp4      | `[.., N/2]` uint8  | `[1]`  | `[.., N/16]` e4m3fn      | row, swizzled_128x4 |

    Every scale dequantises, `y ~ code * scale`; a given one is float32. fp8 is `fp8_dtype`, and
    G is N / group_size.
    scale_mode    mxfp4: "even", "rceil" (default), "floor", "ceil"; fp8_token and fp8_group:
                  "fp32" (default), "pow2"
    scale_layout  "col" has row's shape and values with the tokens next to each other in memory;
                  the other two are two-dimensional, padded (see `archkey.formats`), for `[T, N]`
    x2            a second, unquantised norm y2: MLA's kv_a beside its q_a
    cast_before_weight  as in rmsnorm; y too is rounded to x's dtype before it is quantised

    s is None without residual, y2 without x2. The codes and scales are those of y in float32
    whatever `compute_dtype` is: they are the contract, and a float64 y would move some of them
    across a rounding threshold.
    """
    total = x.to(compute_dtype)
    if residual is not None:
        total = total + residual.to(compute_dtype)
    cast_to = x.dtype if cast_before_weight else None
    y = _norm(total, weight, eps, weight_bias, cast_to)
    y32 = y
    if compute_dtype != torch.float32:
        total32 = x.float() if residual is None else x.float() + residual.float()
        y32 = _norm(total32, weight, eps, weight_bias, cast_to)
    if cast_before_weight:
        y, y32 = y.to(x.dtype).to(compute_dtype), y32.to(x.dtype).float()
    out, out_scale = _quantize(y32, quant, scale, group_size, fp8_dtype, scale_mode)
    if out_scale is not None:
        out_scale = _lay_out(out_scale, quant, scale_layout)
    y2 = None
    if x2 is not None and x2_weight is not None and x2_eps is not None:
        y2 = _norm(x2.to(compute_dtype), x2_weight, x2_eps, weight_bias, cast_to)
    return out, out_scale, y, None if residual is None else total, y2


def _norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    weight_bias: float,
    cast_to: torch.dtype | None = None,
) -> torch.Tensor:
    """The formula, in x's dtype."""
    y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    if cast_to is not None:
        y = y.to(cast_to).to(x.dtype)
    return y * (weight.to(x.dtype) + weight_bias)


def _quantize(
    y: torch.Tensor,
    quant: str,
    scale: torch.Tensor | None,
    group_size: int,
    fp8_dtype: str,
    scale_mode: str | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes and row-major scales of float32 y."""
    if quant in ("fp8_tensor", "nvfp4"):
        if scale is None:
            raise ValueError(f"scale: {quant} needs a float32 tensor of one element, found None")
        if quant == "nvfp4":
            return quantize_nvfp4(y, scale)
        return encode_fp8(y / scale, fp8_dtype), None
    if quant == "mxfp4":
        return quantize_mxfp4(y, scale_mode or "rceil")
    if quant in ("fp8_token", "fp8_group"):
        group = group_size if quant == "fp8_group" else None
        return quantize_fp8(y, fp8_dtype, group, scale_mode or "fp32")
    kinds = "fp8_tensor, fp8_token, fp8_group, mxfp4, nvfp4"
    raise ValueError(f"quant: expected one of {kinds}, found {quant!r}")


def _lay_out(scale: torch.Tensor, quant: str, layout: str) -> torch.Tensor:
    """Row-major scales in the layout that a matmul reads."""
    if layout == "row":
        return scale
    if (quant, layout) == ("fp8_group", "col"):
        return scale.movedim(-1, 0).contiguous().movedim(0, -1)
    if (quant, layout) == ("mxfp4", "shuffled_gfx950"):
        return shuffle_gfx950(scale)
    if (quant, layout) == ("nvfp4", "swizzled_128x4"):
        return swizzle_128x4(scale)
    raise ValueError(f"scale_layout: {quant} has no layout {layout!r}")

# SPDX-License-Identifier: Apache-2.0
"""Linear layers with quantised weights, in plain torch: dequantised, then multiplied."""

from __future__ import annotations

import torch

from archkey.formats.mxfp4 import MXFP4_BLOCK, dequantize_mxfp4, unshuffle_gfx950

__all__ = ["mxfp4_linear"]


def mxfp4_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    x_scale_layout: str = "row",
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor]:
    """(out,) with `out = dequant(x) @ dequant(weight)^T + bias` of `[.., N]`, unrounded.

    x       `[.., K]` of floats, or `[.., K/2]` of packed e2m1 with x_scale
    weight  `[N, K/2]` packed e2m1; weight_scale `[N, ceil(K/32)]` e8m0
    x_scale   `[.., ceil(K/32)]`, or with x_scale_layout "shuffled_gfx950" as
              `archkey.formats.shuffle_gfx950` makes it
    """
    if x_scale is not None:
        if x_scale_layout == "shuffled_gfx950":
            blocks = -(-2 * x.shape[-1] // MXFP4_BLOCK)
            x_scale = unshuffle_gfx950(x_scale, x.shape[0], blocks)
        x = dequantize_mxfp4(x, x_scale)
    y = x.to(compute_dtype) @ dequantize_mxfp4(weight, weight_scale).to(compute_dtype).T
    return (y if bias is None else y + bias.to(compute_dtype),)

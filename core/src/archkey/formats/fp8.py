# SPDX-License-Identifier: Apache-2.0
"""FP8 (e4m3) codes and their scales, in plain torch.

Two encodings share the name e4m3 and differ by a factor of two for the same byte: `float8_e4m3fn`
(OCP; NVIDIA, CDNA4) and `float8_e4m3fnuz` (CDNA3). They are never viewed as one another here.

A scale is the factor that dequantises: `value = code * scale`.
"""

from __future__ import annotations

import torch

__all__ = [
    "AMAX_FLOOR",
    "FP8_MAX",
    "SCALE_ROUNDINGS",
    "decode_fp8",
    "encode_fp8",
    "fp8_max",
    "fp8_scale",
    "quantize_fp8",
]

FP8_MAX = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0}
"""Largest finite value of each dtype (OCP OFP8 1.0; `torch.finfo`)."""

AMAX_FLOOR = 1e-10
"""Least amax a dynamic scale is made from: a zero row gets a normal float32 scale, not 0/0.

`torch.finfo(float32).tiny` would not do: divided by 448 it is subnormal, which GPUs flush to zero.
"""

SCALE_ROUNDINGS = ("fp32", "pow2")
"""How a dynamic scale is rounded: not at all, or up to a power of two (DeepGEMM's ue8m0)."""


def fp8_max(dtype: str) -> float:
    """Largest finite value of the FP8 type that torch names `dtype`; TypeError for another type."""
    try:
        return FP8_MAX[dtype]
    except KeyError:
        raise TypeError(f"fp8 dtype: expected one of {', '.join(FP8_MAX)}, found {dtype}") from None


def encode_fp8(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round `values` (any shape) to nearest-even FP8, saturating at ±max; ±inf saturates too.

    NaN stays NaN. In e4m3fnuz there is no -0 and byte 0x80 is NaN: a negative value that
    underflows becomes +0.
    """
    limit = fp8_max(dtype)
    # Clamped first: torch's own cast turned overflow into NaN in some releases.
    codes: torch.Tensor = values.float().clamp(-limit, limit).to(getattr(torch, dtype))
    return codes


def decode_fp8(codes: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Float32 values of FP8 `codes` `[..., N]`.

    `scale` is a number, a tensor of one element, or `[..., G]` with G dividing N: one factor for
    each run of N / G columns.
    """
    values = codes.float()
    if isinstance(scale, float) or scale.numel() == 1:
        return values * scale
    group = values.shape[-1] // scale.shape[-1]
    return values * scale.repeat_interleave(group, dim=-1)


def fp8_scale(amax: torch.Tensor, dtype: str, rounding: str = "fp32") -> torch.Tensor:
    """The scale `max(amax, AMAX_FLOOR) / max` of float32 `amax` (any shape), float32.

    rounding  "fp32" as it is; "pow2" the next power of two, `2^ceil(log2(scale))`: no value
              saturates, and the scale is exact in an exponent byte (ue8m0)

    A NaN or infinite amax gives a NaN or infinite scale.
    """
    if rounding not in SCALE_ROUNDINGS:
        raise ValueError(f"rounding: expected one of {SCALE_ROUNDINGS}, found {rounding!r}")
    scale = amax.float().clamp_min(AMAX_FLOOR) / fp8_max(dtype)
    if rounding == "fp32":
        return scale
    # Carry any mantissa bit into the exponent, then drop the mantissa: an exact ceil of log2.
    power = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(scale.isfinite(), power, scale)


def quantize_fp8(
    values: torch.Tensor,
    dtype: str,
    group_size: int | None = None,
    rounding: str = "fp32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[..., N]` and float32 scales `[..., G]` of `values` `[..., N]`, scaled dynamically.

    One scale for each run of `group_size` columns, or one for the whole row (None, G = 1).
    ValueError when N is not a multiple of `group_size`.
    """
    width = values.shape[-1]
    group = width if group_size is None else group_size
    if group <= 0 or width % group:
        raise ValueError(f"group_size: expected a divisor of {width}, found {group}")
    groups = values.float().reshape(*values.shape[:-1], width // group, group)
    scale = fp8_scale(groups.abs().amax(dim=-1), dtype, rounding)
    return encode_fp8(groups / scale.unsqueeze(-1), dtype).flatten(-2), scale

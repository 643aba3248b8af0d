# SPDX-License-Identifier: Apache-2.0
"""FP8 codes and their scales, in plain torch.

    dtype             largest   least    infinity   NaN        zero       hardware
    float8_e4m3fn         448   2^-9     none       7f, ff     00, 80     OCP: NVIDIA, CDNA4
    float8_e4m3fnuz       240   2^-10    none       80         00         CDNA3
    float8_e5m2         57344   2^-16    7c, fc     7d..7f,    00, 80     OCP: NVIDIA, CDNA4
                                                    fd..ff
    float8_e5m2fnuz     57344   2^-17    none       80         00         CDNA3

A finite code of a fnuz type is half of what the same byte is in the OCP type, so the types are
never viewed as one another here; `normalize_e4m3fn_to_e4m3fnuz` converts.

A scale is the factor that dequantises: `value = code * scale`.
"""

from __future__ import annotations

import torch

from archkey.formats._checks import check_codes, check_columns, check_numbers, check_rows
from archkey.ops._checks import FLOATS, bad_type, bad_value, shape_text

__all__ = [
    "AMAX_FLOOR",
    "FP8_MAX",
    "SCALE_ROUNDINGS",
    "decode_fp8",
    "dequantize_fp8",
    "encode_fp8",
    "fp8_max",
    "fp8_scale",
    "normalize_e4m3fn_to_e4m3fnuz",
    "normalize_e4m3fnuz_to_e4m3fn",
    "quantize_fp8",
]

FP8_MAX = {
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}
"""Largest finite value of each dtype (OCP OFP8 1.0; `torch.finfo`)."""

AMAX_FLOOR = 1e-10
"""Least amax a dynamic scale is made from: a zero row gets a normal float32 scale, not 0/0.

`torch.finfo(float32).tiny` would not do: divided by 448 it is subnormal, which GPUs flush to zero.
"""

SCALE_ROUNDINGS = ("fp32", "pow2")
"""How a dynamic scale is rounded: not at all, or up to a power of two (DeepGEMM's ue8m0)."""


def fp8_max(dtype: str) -> float:
    """Largest finite value of the FP8 type that torch names `dtype`.

    ArgumentTypeError for another type.
    """
    if dtype not in FP8_MAX:
        bad_type("fp8_max", "dtype", f"one of {', '.join(FP8_MAX)}", dtype)
    return FP8_MAX[dtype]


def encode_fp8(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round `values` (any shape) to nearest-even FP8, saturating at ±max; ±inf saturates too.

    values  bfloat16, float16, float32, or float64, which is rounded to float32 first
    dtype   a name in `FP8_MAX`

    NaN stays NaN. In the fnuz types there is no -0 and byte 0x80 is NaN: a negative value that
    underflows becomes +0.
    """
    limit = fp8_max(dtype)
    check_numbers("encode_fp8", "values", values)
    # Clamped first: torch's own cast turned overflow into NaN in some releases.
    codes: torch.Tensor = values.float().clamp(-limit, limit).to(getattr(torch, dtype))
    return codes


def decode_fp8(codes: torch.Tensor) -> torch.Tensor:
    """Float32 values of FP8 `codes` (any shape, a dtype in `FP8_MAX`), exact."""
    check_codes("decode_fp8", "codes", codes, tuple(FP8_MAX))
    return codes.float()


def fp8_scale(amax: torch.Tensor, dtype: str, rounding: str = "fp32") -> torch.Tensor:
    """The scale `max(amax, AMAX_FLOOR) / max` of `amax` (any shape and float dtype), float32.

    rounding  "fp32" as it is; "pow2" the next power of two, `2^ceil(log2(scale))`: no value
              saturates, and the scale is exact in an exponent byte (ue8m0, `encode_e8m0`)

    A NaN or infinite amax gives a NaN or infinite scale.
    """
    check_numbers("fp8_scale", "amax", amax)
    if rounding not in SCALE_ROUNDINGS:
        bad_value("fp8_scale", "rounding", f"one of {SCALE_ROUNDINGS}", repr(rounding))
    amax = amax.float().clamp_min(AMAX_FLOOR)
    # Not by a number: torch multiplies by its reciprocal then, on GPUs alone.
    scale = amax / torch.full_like(amax, fp8_max(dtype))
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

    values    bfloat16, float16, float32, or float64, which is rounded to float32 first
    rounding  of scales, see `fp8_scale`

    One scale for each run of `group_size` columns, or one for the whole row (None, G = 1).
    ArgumentValueError when N is not a multiple of `group_size`.
    """
    width = check_rows("quantize_fp8", values)
    group = width if group_size is None else group_size
    if group <= 0 or width % group:
        bad_value("quantize_fp8", "group_size", f"a divisor of {width}", group)
    groups = values.float().reshape(*values.shape[:-1], width // group, group)
    scale = fp8_scale(groups.abs().amax(dim=-1), dtype, rounding)
    return encode_fp8(groups / scale.unsqueeze(-1), dtype).flatten(-2), scale


def dequantize_fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 `[..., N]` of FP8 `codes` `[..., N]` and their scales.

    scale  bfloat16, float16 or float32: one element for all, or `[..., G]` with G dividing N, one
           factor for each run of N / G columns
    """
    op = "dequantize_fp8"
    values = decode_fp8(codes)
    check_codes(op, "scale", scale, FLOATS)
    if scale.numel() == 1:
        return values * scale.reshape(()).float()
    width = check_columns(op, "codes", codes)
    *lead, groups = scale.shape
    if lead != list(codes.shape[:-1]) or not groups or width % groups:
        expected = f"of one element, or of shape {[*codes.shape[:-1], 'G']} with G dividing {width}"
        bad_value(op, "scale", expected, shape_text(scale))
    return values * scale.float().repeat_interleave(width // groups, dim=-1)


def normalize_e4m3fn_to_e4m3fnuz(
    codes: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers for hardware with e4m3fnuz: new codes, and twice the scale.

    codes  float8_e4m3fn, any shape; scale  float32, any shape: what dequantises the codes

    Exact. Bytes stay, and each stands for half of what it was, but for -0 (0x80), which becomes +0,
    and NaN, which becomes e4m3fnuz's. (vLLM and SGLang, whose function by this name this is, take
    NaN for ±240.)
    """
    op = "normalize_e4m3fn_to_e4m3fnuz"
    check_codes(op, "codes", codes, ("float8_e4m3fn",))
    check_codes(op, "scale", scale, ("float32",))
    data = codes.view(torch.uint8)
    data = torch.where(data == 0x80, 0, data)
    data = torch.where((data & 0x7F) == 0x7F, 0x80, data)
    return data.view(torch.float8_e4m3fnuz), scale * 2


def normalize_e4m3fnuz_to_e4m3fn(
    codes: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers for hardware with e4m3fn: new codes, and half the scale.

    codes  float8_e4m3fnuz, any shape; scale  float32, any shape: what dequantises the codes

    Exact, or refused: ±240 would be ±480, which e4m3fn lacks, so that ArgumentValueError says how
    many there are. This reads the codes, hence waits for their device: it is for loading weights.
    """
    op = "normalize_e4m3fnuz_to_e4m3fn"
    check_codes(op, "codes", codes, ("float8_e4m3fnuz",))
    check_codes(op, "scale", scale, ("float32",))
    data = codes.view(torch.uint8)
    largest = int(((data & 0x7F) == 0x7F).sum())
    if largest:
        hint = "Round them anew: quantize_fp8(dequantize_fp8(codes, scale), 'float8_e4m3fn')."
        bad_value(op, "codes", "smaller than 240, half of e4m3fn's 480", f"{largest} of ±240", hint)
    data = torch.where(data == 0x80, 0x7F, data)
    return data.view(torch.float8_e4m3fn), scale / 2

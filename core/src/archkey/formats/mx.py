# SPDX-License-Identifier: Apache-2.0
"""What all OCP Microscaling (MX 1.0) formats share: e8m0 scales, one for each block of 32.

A scale is a byte b that stands for 2^(b - 127); 255 is NaN. It is made from the largest magnitude
of its block, amax, and never from anything else:

    floor   2^floor(log2 amax) / 2^emax    section 6.3 of the standard; clips
    even    the same with amax first rounded to the element's mantissa: from 2 - 2^-(m + 1) times
            a power of two on, it counts as the next one. Quark, torchao's EVEN, aiter's MXFP4 (not
            its MXFP8, which has FP4's threshold, 1.75); clips
    rceil   the least power of two >= amax / max: NVIDIA's, torchao's RCEIL; never clips
    ceil    2^ceil(log2 amax) / 2^emax     torchao's CEIL; never clips

emax, m and max are the exponent of the largest element, its mantissa bits, and its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F

from archkey.formats._checks import check_codes, check_numbers
from archkey.ops._checks import bad_type, bad_value

__all__ = [
    "MX_BLOCK",
    "MX_ELEMENTS",
    "SCALE_CARRIES",
    "MxElement",
    "decode_e8m0",
    "e8m0_scale",
    "encode_e8m0",
]

MX_BLOCK = 32


class MxElement(NamedTuple):
    """An element type: exponent of its largest value (emax), mantissa bits, largest value."""

    exponent: int
    mantissa_bits: int
    most: float


MX_ELEMENTS: Mapping[str, MxElement] = MappingProxyType(
    {
        "float4_e2m1fn": MxElement(2, 1, 6.0),
        "float8_e4m3fn": MxElement(8, 3, 448.0),
        "float8_e5m2": MxElement(15, 2, 57344.0),
    }
)
"""Element types by the names of ml_dtypes (OCP MX 1.0, section 5.3)."""


def _carries(element: MxElement) -> Mapping[str, int]:
    mantissa = int((element.most / 2.0**element.exponent - 1) * 2**23)  # of float32
    return MappingProxyType(
        {
            "floor": 0,
            "even": 1 << (22 - element.mantissa_bits),
            "rceil": 0x7FFFFF - mantissa,
            "ceil": 0x7FFFFF,
        }
    )


SCALE_CARRIES = {name: _carries(element) for name, element in MX_ELEMENTS.items()}
"""For each element type and scale rule: what is added to amax as float32 bits before its mantissa
is dropped. It carries into the exponent from where on the rule takes the next power of two."""


def encode_e8m0(values: torch.Tensor) -> torch.Tensor:
    """The byte of the least power of two that is not below each of `values`, uint8, same shape.

    Exact for powers of two, such as the scales of `fp8_scale(..., "pow2")`; the others are rounded
    up, as PTX `cvt.rp.satfinite.ue8m0x2.f32` does. 0 and what lies below 2^-127 is byte 0, what
    lies above 2^127 is byte 254; NaN, infinities and negative numbers give 255, NaN.

    values  bfloat16, float16, float32, or float64, which is rounded to float32 first
    """
    check_numbers("encode_e8m0", "values", values)
    values = values.float().contiguous()
    byte = (values.view(torch.int32) + 0x7FFFFF) >> 23
    byte = torch.where(values <= 2.0**-127, 0, byte.clamp(0, 254))
    return torch.where(values.isfinite() & (values >= 0), byte, 255).to(torch.uint8)


def decode_e8m0(scale: torch.Tensor) -> torch.Tensor:
    """Float32 value 2^(b - 127) of each byte of `scale` (uint8 or float8_e8m0fnu); 255 is NaN."""
    check_codes("decode_e8m0", "scale", scale, ("uint8", "float8_e8m0fnu"))
    scale = scale.view(torch.uint8)
    # Byte 0 is 2^-127, the one value that float32 holds as a subnormal.
    bits = torch.where(scale == 0, 1 << 22, scale.to(torch.int32) << 23)
    return torch.where(scale == 255, torch.nan, bits.to(torch.int32).view(torch.float32))


def e8m0_scale(amax: torch.Tensor, scale_mode: str, element: str = "float4_e2m1fn") -> torch.Tensor:
    """The e8m0 byte for blocks of largest magnitude `amax` (any float dtype and shape), uint8.

    scale_mode  "floor", "even", "rceil" or "ceil": see this module
    element     the type of the block's elements, a name in `MX_ELEMENTS`

    Zero, and whatever has a scale below 2^-127, gives byte 0; NaN and inf give 255.
    """
    op = "e8m0_scale"
    check_numbers(op, "amax", amax)
    if element not in MX_ELEMENTS:
        bad_type(op, "element", f"one of {', '.join(MX_ELEMENTS)}", repr(element))
    carries = SCALE_CARRIES[element]
    if scale_mode not in carries:
        bad_value(op, "scale_mode", f"one of {', '.join(carries)}", repr(scale_mode))
    amax = amax.float().contiguous()
    exponent = (amax.view(torch.int32) + carries[scale_mode]) >> 23
    byte = (exponent - MX_ELEMENTS[element].exponent).clamp_min(0)
    return torch.where(amax.isfinite(), byte, 255).to(torch.uint8)


def scaled_blocks(
    values: torch.Tensor, scale_mode: str, element: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` `[..., N]` over their scales, float32 `[..., N]`, and the scales `[..., B]`, uint8.

    B is ceil(N / 32). A last block of fewer columns takes its amax over those alone. Where amax
    is not finite the whole block is NaN.
    """
    width = values.shape[-1]
    padded = F.pad(values.float(), (0, -width % MX_BLOCK))
    blocks = padded.reshape(*padded.shape[:-1], padded.shape[-1] // MX_BLOCK, MX_BLOCK)
    scale = e8m0_scale(blocks.abs().amax(dim=-1), scale_mode, element)
    # 1 / 2^(b - 127), exact: b of a finite block is at most 253, so the exponent field is 1..254.
    inverse = ((254 - scale.to(torch.int32)) << 23).view(torch.float32)
    inverse = torch.where(scale == 255, torch.nan, inverse)
    return (blocks * inverse.unsqueeze(-1)).flatten(-2)[..., :width], scale


def spread_scales(scale: torch.Tensor, width: int) -> torch.Tensor:
    """The float32 factor of each of `width` columns, from row-major scales `[..., B]`."""
    return decode_e8m0(scale).repeat_interleave(MX_BLOCK, dim=-1)[..., :width]

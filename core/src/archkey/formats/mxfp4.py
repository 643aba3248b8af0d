# SPDX-License-Identifier: Apache-2.0
"""MXFP4 (OCP Microscaling 1.0) in plain torch: e2m1 elements, one e8m0 scale per 32 columns.

    element   a sign and {0, 0.5, 1, 1.5, 2, 3, 4, 6}; two to a byte, the even column's nibble low
    scale     a byte b that stands for 2^(b - 127); 255 is NaN

A row of N values is `[N / 2]` bytes of elements and `[ceil(N / 32)]` scale bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = [
    "E2M1_VALUES",
    "MXFP4_BLOCK",
    "SCALE_MODES",
    "decode_e2m1",
    "decode_e8m0",
    "dequantize_mxfp4",
    "e8m0_scale",
    "encode_e2m1",
    "pack_e2m1",
    "quantize_mxfp4",
    "shuffle_gfx950",
    "unpack_e2m1",
    "unshuffle_gfx950",
]

MXFP4_BLOCK = 32
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

SCALE_MODES = {
    "floor": 0,  # 2^floor(log2 amax) / 4: OCP MX 1.0; clips values up to 8/6 of the range
    "even": 0x200000,  # the same with amax >= 1.75 * 2^n counted as 2^(n+1): Quark, aiter's Triton
    "rceil": 0x3FFFFF,  # least power of two >= amax / 6, never clips: NVIDIA, torchao's RCEIL
    "ceil": 0x7FFFFF,  # 2^ceil(log2 amax) / 4, never clips: torchao's CEIL
}
"""Scale rules: how much is added to the float32 bits of amax before its mantissa is dropped."""

_ELEMENT_EXPONENT = 2  # 6 = 1.5 * 2^2: the exponent of the largest element


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Nearest-even e2m1 codes 0..15 of `values`, uint8, same shape; 6 and above saturates.

    Ties go to the even code: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4,
    5 -> 4. The sign of a zero is kept. NaN, which e2m1 cannot hold, becomes +6 as in PTX `cvt`.
    """
    a = values.abs()
    # A code counts the midpoints passed; a tie passes where the upper code is the even one.
    code = (a > 0.25).to(torch.uint8)
    for passed in (a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5.0):
        code += passed
    code |= values.signbit().to(torch.uint8) << 3
    return torch.where(values.isnan(), 7, code)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Float32 values of e2m1 `codes` 0..15, same shape."""
    both = (*E2M1_VALUES, *(-v for v in E2M1_VALUES))
    return torch.tensor(both, device=codes.device)[codes.long()]


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[..., N]` to bytes `[..., N / 2]`; ValueError when N is odd."""
    width = codes.shape[-1]
    if width % 2:
        raise ValueError(f"e2m1 packing: expected an even number of columns, found {width}")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Bytes `[..., N / 2]` to codes `[..., N]`."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def e8m0_scale(amax: torch.Tensor, scale_mode: str) -> torch.Tensor:
    """The e8m0 byte for blocks of largest magnitude `amax` (float32, any shape), uint8.

    Zero, and whatever lies below 2^-125, gives byte 0; NaN and inf give 255.
    """
    try:
        carry = SCALE_MODES[scale_mode]
    except KeyError:
        known = ", ".join(SCALE_MODES)
        raise ValueError(f"scale_mode: expected one of {known}, found {scale_mode!r}") from None
    amax = amax.float().contiguous()
    exponent = (amax.view(torch.int32) + carry) >> 23
    byte = (exponent - _ELEMENT_EXPONENT).clamp_min(0)
    return torch.where(amax.isfinite(), byte, 255).to(torch.uint8)


def decode_e8m0(scale: torch.Tensor) -> torch.Tensor:
    """Float32 value of each e8m0 byte; 255 is NaN."""
    # Byte 0 is 2^-127, the one value that float32 holds as a subnormal.
    bits = torch.where(scale == 0, 1 << 22, scale.to(torch.int32) << 23)
    return torch.where(scale == 255, torch.nan, bits.to(torch.int32).view(torch.float32))


def quantize_mxfp4(values: torch.Tensor, scale_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed elements `[..., N / 2]` and scales `[..., ceil(N / 32)]`, uint8, of `[..., N]`.

    A last block of fewer than 32 columns takes its amax over those alone. ValueError for odd N.
    """
    width = values.shape[-1]
    padded = F.pad(values.float(), (0, -width % MXFP4_BLOCK))
    blocks = padded.reshape(*padded.shape[:-1], padded.shape[-1] // MXFP4_BLOCK, MXFP4_BLOCK)
    scale = e8m0_scale(blocks.abs().amax(dim=-1), scale_mode)
    # 1 / 2^(b - 127), exact: b of a finite block is at most 253, so the exponent field is 1..254.
    inverse = ((254 - scale.to(torch.int32)) << 23).view(torch.float32)
    inverse = torch.where(scale == 255, torch.nan, inverse)
    codes = encode_e2m1(blocks * inverse.unsqueeze(-1)).flatten(-2)
    return pack_e2m1(codes[..., :width]), scale


def dequantize_mxfp4(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 `[..., N]` of packed elements `[..., N / 2]` and row-major scales `[..., B]`."""
    values = decode_e2m1(unpack_e2m1(packed))
    factors = decode_e8m0(scale).repeat_interleave(MXFP4_BLOCK, dim=-1)
    return values * factors[..., : values.shape[-1]]


def shuffle_gfx950(scale: torch.Tensor) -> torch.Tensor:
    """Scales `[T, B]` in the order of CDNA4's scaled matrix instructions, `[ceil256(T), ceil8(B)]`.

    Tiles of 32 rows and 8 blocks; inside a tile the axes (2, 16) x (2, 4) are stored as
    (4, 16, 2, 2). The row pitch is the padded width, and padding is 0, not 1.0 (aiter#2900).
    """
    rows, blocks = scale.shape
    padded = F.pad(scale, (0, -blocks % 8, 0, -rows % 256))
    height, width = padded.shape
    tiles = padded.reshape(height // 32, 2, 16, width // 8, 2, 4)
    return tiles.permute(0, 3, 5, 2, 4, 1).reshape(height, width)


def unshuffle_gfx950(shuffled: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """Undo `shuffle_gfx950`: the first `rows` x `blocks` scales in row-major order."""
    height, width = shuffled.shape
    tiles = shuffled.reshape(height // 32, width // 8, 4, 16, 2, 2)
    return tiles.permute(0, 5, 3, 1, 4, 2).reshape(height, width)[:rows, :blocks]

# SPDX-License-Identifier: Apache-2.0
"""MXFP4 (OCP Microscaling 1.0) in plain torch: e2m1 elements, one e8m0 scale per 32 columns.

    element   a sign and {0, 0.5, 1, 1.5, 2, 3, 4, 6}; two to a byte, the even column's nibble low
    scale     a byte b that stands for 2^(b - 127); 255 is NaN

A row of N values is `[N / 2]` bytes of elements and `[ceil(N / 32)]` scale bytes. The rules for
scales are those of `archkey.formats.mx`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from archkey.formats._checks import (
    check_bytes_2d,
    check_codes,
    check_columns,
    check_numbers,
    check_rows,
    check_scales,
    check_tiled,
)
from archkey.formats.mx import MX_BLOCK, SCALE_CARRIES, scaled_blocks, spread_scales
from archkey.ops._rmsnorm_quant_kinds import TILES

__all__ = [
    "E2M1_VALUES",
    "MXFP4_BLOCK",
    "SCALE_MODES",
    "decode_e2m1",
    "dequantize_mxfp4",
    "encode_e2m1",
    "pack_e2m1",
    "quantize_mxfp4",
    "shuffle_gfx950",
    "unpack_e2m1",
    "unshuffle_gfx950",
]

MXFP4_BLOCK = MX_BLOCK
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_ELEMENT = "float4_e2m1fn"
SCALE_MODES = SCALE_CARRIES[_ELEMENT]
"""Scale rules: how much is added to the float32 bits of amax before its mantissa is dropped. Only
"floor" (values up to 8/6 of the range) and "even" (up to 7/6) clip."""

_TILE = TILES["shuffled_gfx950"]


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Nearest-even e2m1 codes 0..15 of `values`, uint8, same shape; 6 and above saturates.

    values  any shape; bfloat16, float16, float32 or float64

    Ties go to the even code: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4,
    5 -> 4. The sign of a zero is kept. NaN, which e2m1 cannot hold, becomes +6 as in PTX `cvt`.
    """
    check_numbers("encode_e2m1", "values", values)
    a = values.abs()
    # A code counts the midpoints passed; a tie passes where the upper code is the even one.
    code = (a > 0.25).to(torch.uint8)
    for passed in (a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5.0):
        code += passed
    code |= values.signbit().to(torch.uint8) << 3
    return torch.where(values.isnan(), 7, code)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Float32 values of e2m1 `codes` 0..15 (uint8, any shape), same shape."""
    check_codes("decode_e2m1", "codes", codes, ("uint8",))
    both = (*E2M1_VALUES, *(-v for v in E2M1_VALUES))
    return torch.tensor(both, device=codes.device)[codes.long()]


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[..., N]` to bytes `[..., N / 2]`, uint8; ArgumentValueError when N is odd."""
    check_codes("pack_e2m1", "codes", codes, ("uint8",))
    check_columns("pack_e2m1", "codes", codes, multiple=2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Bytes `[..., N / 2]` to codes `[..., N]`, uint8.

    packed  uint8, or float4_e2m1fn_x2, torch's name for the same bytes
    """
    check_codes("unpack_e2m1", "packed", packed, ("uint8", "float4_e2m1fn_x2"))
    check_columns("unpack_e2m1", "packed", packed)
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def quantize_mxfp4(values: torch.Tensor, scale_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed elements `[..., N / 2]` and scales `[..., ceil(N / 32)]`, uint8, of `[..., N]`.

    values      bfloat16, float16, float32, or float64, which is rounded to float32 first
    scale_mode  "floor", "even", "rceil" or "ceil"

    A last block of fewer than 32 columns takes its amax over those alone. A block with a NaN or an
    infinity has scale 255 and elements 6. ArgumentValueError for odd N.
    """
    check_rows("quantize_mxfp4", values, multiple=2)
    scaled, scale = scaled_blocks(values, scale_mode, _ELEMENT)
    return pack_e2m1(encode_e2m1(scaled)), scale


def dequantize_mxfp4(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 `[..., N]` of packed elements `[..., N / 2]` and row-major scales `[..., B]`.

    packed  uint8 or float4_e2m1fn_x2
    scale   uint8 or float8_e8m0fnu, B = ceil(N / 32)
    """
    values = decode_e2m1(unpack_e2m1(packed))
    *lead, width = values.shape
    shape = (*lead, -(-width // MXFP4_BLOCK))
    check_scales("dequantize_mxfp4", scale, ("uint8", "float8_e8m0fnu"), shape)
    return values * spread_scales(scale, width)


def shuffle_gfx950(scale: torch.Tensor) -> torch.Tensor:
    """Scales `[T, B]` in the order of CDNA4's scaled matrix instructions, `[ceil256(T), ceil8(B)]`.

    scale  a dtype of one byte: uint8 or float8_e8m0fnu

    Tiles of 32 rows and 8 blocks; inside a tile the axes (2, 16) x (2, 4) are stored as
    (4, 16, 2, 2). The row pitch is the padded width, and padding is 0, not 1.0 (aiter#2900).
    """
    rows, blocks = check_bytes_2d("shuffle_gfx950", "scale", scale)
    more = [-n % tile for n, tile in zip((rows, blocks), _TILE, strict=True)]
    padded = F.pad(scale.view(torch.uint8), (0, more[1], 0, more[0]))
    height, width = padded.shape
    tiles = padded.reshape(height // 32, 2, 16, width // 8, 2, 4)
    return tiles.permute(0, 3, 5, 2, 4, 1).reshape(height, width).view(scale.dtype)


def unshuffle_gfx950(shuffled: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """Undo `shuffle_gfx950`: the first `rows` x `blocks` scales in row-major order.

    ArgumentValueError when `shuffled` is not `[ceil256(rows), ceil8(blocks)]`.
    """
    height, width = check_tiled("unshuffle_gfx950", "shuffled", shuffled, _TILE, rows, blocks)
    tiles = shuffled.view(torch.uint8).reshape(height // 32, width // 8, 4, 16, 2, 2)
    plain = tiles.permute(0, 5, 3, 1, 4, 2).reshape(height, width)
    return plain[:rows, :blocks].contiguous().view(shuffled.dtype)

# SPDX-License-Identifier: Apache-2.0
"""NVFP4 in plain torch: e2m1 elements, an e4m3fn scale per 16 columns, one float32 scale for all.

    value = element * block_scale * global_scale

`global_scale` dequantises, `amax / (448 * 6)` of the whole tensor. Libraries that ask for the
encoding factor (FlashInfer's `global_scale`) want its reciprocal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from archkey.formats._checks import (
    check_bytes_2d,
    check_one,
    check_rows,
    check_scales,
    check_tiled,
)
from archkey.formats.fp8 import decode_fp8, encode_fp8
from archkey.formats.mxfp4 import decode_e2m1, encode_e2m1, pack_e2m1, unpack_e2m1
from archkey.ops._rmsnorm_quant_kinds import TILES

__all__ = [
    "NVFP4_BLOCK",
    "dequantize_nvfp4",
    "quantize_nvfp4",
    "swizzle_128x4",
    "unswizzle_128x4",
]

NVFP4_BLOCK = 16

_TILE = TILES["swizzled_128x4"]


def quantize_nvfp4(
    values: torch.Tensor, global_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed elements uint8 `[..., N / 2]`, scales float8_e4m3fn `[..., N / 16]` of `[..., N]`.

    values        bfloat16, float16, float32, or float64, which is rounded to float32 first
    global_scale  float32, one element

    A block so small that its scale rounds to zero is stored as (signed) zeros. The scale of a block
    with a NaN is NaN, and its elements are 6; scales saturate at 448, that of a block with an
    infinity too, and elements at 6.
    ArgumentValueError when N is not a multiple of 16.
    """
    op = "quantize_nvfp4"
    width = check_rows(op, values, multiple=NVFP4_BLOCK)
    check_one(op, "global_scale", global_scale)
    blocks = values.float().reshape(*values.shape[:-1], width // NVFP4_BLOCK, NVFP4_BLOCK)
    amax = blocks.abs().amax(dim=-1)
    # Not by a number: torch multiplies by its reciprocal then, on GPUs alone.
    scale = encode_fp8(amax / torch.full_like(amax, 6.0) / global_scale, "float8_e4m3fn")
    factor = (scale.float() * global_scale).unsqueeze(-1)
    # A zero factor is replaced, not divided by: 0 * sign keeps the sign and makes no NaN.
    scaled = torch.where(factor == 0, blocks * 0.0, blocks / factor)
    return pack_e2m1(encode_e2m1(scaled).flatten(-2)), scale


def dequantize_nvfp4(
    packed: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Float32 `[..., N]` of packed elements `[..., N / 2]` and row-major scales `[..., N / 16]`.

    packed        uint8 or float4_e2m1fn_x2
    scale         float8_e4m3fn
    global_scale  float32, one element
    """
    op = "dequantize_nvfp4"
    values = decode_e2m1(unpack_e2m1(packed))
    *lead, width = values.shape
    check_scales(op, scale, ("float8_e4m3fn",), (*lead, width // NVFP4_BLOCK))
    check_one(op, "global_scale", global_scale)
    factors = (decode_fp8(scale) * global_scale).repeat_interleave(NVFP4_BLOCK, dim=-1)
    return values * factors


def swizzle_128x4(scale: torch.Tensor) -> torch.Tensor:
    """Scales `[T, B]`, one byte each, as sm100's matrix units read them: `[ceil128(T), ceil4(B)]`.

    scale  a dtype of one byte: float8_e4m3fn, or uint8 or float8_e8m0fnu of the MX formats

    Tiles of 128 rows and 4 blocks, 512 bytes each, row of tiles after row of tiles. Inside a tile
    the rows are split (4, 32) and stored as (32, 4, block): cuBLAS' layout for block scaling
    factors. Padding is 0.
    """
    rows, blocks = check_bytes_2d("swizzle_128x4", "scale", scale)
    more = [-n % tile for n, tile in zip((rows, blocks), _TILE, strict=True)]
    padded = F.pad(scale.view(torch.uint8), (0, more[1], 0, more[0]))
    height, width = padded.shape
    tiles = padded.reshape(height // 128, 4, 32, width // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width).view(scale.dtype)


def unswizzle_128x4(swizzled: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    """Undo `swizzle_128x4`: the first `rows` x `blocks` scales in row-major order.

    ArgumentValueError when `swizzled` is not `[ceil128(rows), ceil4(blocks)]`.
    """
    height, width = check_tiled("unswizzle_128x4", "swizzled", swizzled, _TILE, rows, blocks)
    tiles = swizzled.view(torch.uint8).reshape(height // 128, width // 4, 32, 4, 4)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(height, width)
    return plain[:rows, :blocks].contiguous().view(swizzled.dtype)

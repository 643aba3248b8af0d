# SPDX-License-Identifier: Apache-2.0
"""Packed FP8 caches of sparse MLA: how rows get in and out, byte by byte, in plain torch.

The layouts themselves are data that the operators' contracts share: see `PackedKV`.
"""

from __future__ import annotations

from typing import Any

import torch

from archkey.errors import UnknownName
from archkey.formats._checks import NUMBERS, check_codes
from archkey.formats.fp8 import encode_fp8, fp8_scale
from archkey.ops._checks import bad_value, check_shape
from archkey.ops._sparse_kv import PACKED, PackedKV

__all__ = ["PACKED", "PackedKV", "empty_cache", "load", "packed", "store"]


def packed(name: str) -> PackedKV:
    """The layout called `name`; `UnknownName` lists the others."""
    if name not in PACKED:
        raise UnknownName("packed KV format", name, PACKED)
    return PACKED[name]


def empty_cache(
    layout: PackedKV, num_blocks: int, page_size: int, *, device: Any = None
) -> torch.Tensor:
    """A zeroed uint8 cache `[num_blocks, page_size, row_bytes]` with the layout's block stride."""
    stride, row = layout.block_bytes(page_size), layout.row_bytes
    blocks = torch.zeros(num_blocks, stride, dtype=torch.uint8, device=device)
    return blocks.as_strided((num_blocks, page_size, row), (stride, row, 1))


def store(
    cache: torch.Tensor,
    slots: torch.Tensor,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor | None,
    layout: PackedKV,
    scale_mode: str,
) -> None:
    """Quantise rows into `cache` at `slots`, in place. All in float32.

    cache       `[num_blocks, page_size, row_bytes]` uint8; other slots keep their bytes
    slots       `[n]` int64, each within the cache
    k_nope      `[n, nope_dim]`; k_rope `[n, rope_dim]`, None where the layout has no rope; any
                float dtypes; rope is kept as bfloat16
    scale_mode  "fp32" or "pow2": a tile's scale is `amax / max_fp8` as it is, or rounded up to a
                power of two, and never 0 (`archkey.formats.fp8_scale`); a layout with ue8m0 scales
                has "pow2" alone

    ArgumentTypeError or ArgumentValueError before anything is written.
    """
    op = "store"
    _check_cache(op, cache, slots, layout)
    _check_part(op, "k_nope", k_nope, slots, layout.nope_dim)
    if layout.rope_dim and k_rope is not None:
        _check_part(op, "k_rope", k_rope, slots, layout.rope_dim)
    elif layout.rope_dim or k_rope is not None:
        expected = "given with" if layout.rope_dim else "None with"
        found = "None" if k_rope is None else type(k_rope).__name__
        bad_value(op, "k_rope", f"{expected} {layout.name}", found)
    if layout.scale_dtype != "float32" and scale_mode != "pow2":
        hint = "An exponent byte cannot hold another scale."
        bad_value(op, "scale_mode", f"'pow2' for {layout.name}", repr(scale_mode), hint)
    tiles = k_nope.float().reshape(-1, layout.tiles, layout.tile)
    scale = fp8_scale(tiles.abs().amax(-1), layout.code_dtype, scale_mode)
    codes = encode_fp8(tiles / scale[..., None], layout.code_dtype).flatten(1)

    code_plane, scale_plane, rope_plane = _planes(cache, layout)
    at = slots // cache.shape[1], slots % cache.shape[1]
    code_plane[at] = codes.view(torch.uint8)
    scale_plane[at] = scale.to(getattr(torch, layout.scale_dtype)).view(torch.uint8)
    if k_rope is not None:
        rope_plane[at] = k_rope.to(torch.bfloat16).contiguous().view(torch.uint8)


def load(
    cache: torch.Tensor, slots: torch.Tensor, layout: PackedKV, *, dtype: torch.dtype
) -> torch.Tensor:
    """Rows `[n, head_dim]` of `cache` at `slots`, as `dtype`. No byte of another slot is read.

    cache  `[num_blocks, page_size, row_bytes]` uint8
    slots  `[n]` int64, each within the cache
    dtype  a float dtype; the scale is rounded to it, then its product with the code, which is exact
    """
    _check_cache("load", cache, slots, layout)
    at = slots // cache.shape[1], slots % cache.shape[1]
    codes, scales, rope = (plane[at] for plane in _planes(cache, layout))
    tiles = codes.view(getattr(torch, layout.code_dtype)).to(dtype)
    scale = scales.view(getattr(torch, layout.scale_dtype)).to(dtype)
    latent = tiles.reshape(-1, layout.tiles, layout.tile) * scale[..., None]
    if not layout.rope_dim:
        return latent.flatten(1)
    return torch.cat([latent.flatten(1), rope.view(torch.bfloat16).to(dtype)], dim=1)


def _check_cache(op: str, cache: torch.Tensor, slots: torch.Tensor, layout: PackedKV) -> None:
    check_codes(op, "cache", cache, ("uint8",))
    check_shape(op, "cache", cache, (None, None, layout.row_bytes))
    check_codes(op, "slots", slots, ("int64",))
    check_shape(op, "slots", slots, (None,))


def _check_part(op: str, name: str, part: torch.Tensor, slots: torch.Tensor, width: int) -> None:
    check_codes(op, name, part, NUMBERS)
    check_shape(op, name, part, (slots.shape[0], width))


def _planes(
    cache: torch.Tensor, layout: PackedKV
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Byte views of codes, scales and rope, each `[num_blocks, page_size, bytes]`."""
    nope, rope = layout.nope_dim, 2 * layout.rope_dim
    if not layout.planar:
        scales_end = nope + layout.scale_bytes
        return cache[..., :nope], cache[..., nope:scales_end], cache[..., scales_end:]
    blocks, page_size, _ = cache.shape
    flat = cache.view(blocks, page_size * layout.row_bytes)
    rows_end = page_size * (nope + rope)
    rows = flat[:, :rows_end].view(blocks, page_size, nope + rope)
    scales = flat[:, rows_end:].view(blocks, page_size, layout.scale_bytes)
    return rows[..., :nope], scales[..., : layout.tiles], rows[..., nope:]

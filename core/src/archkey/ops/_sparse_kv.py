# SPDX-License-Identifier: Apache-2.0
"""Packed FP8 caches of sparse MLA: the byte layouts, as data.

A token is a latent of FP8 codes with one scale per tile of neighbouring values, and a rope part
kept in bfloat16: `latent = code * scale[tile]`. The layouts are FlashMLA's (flash_mla_interface.py
and tests/quant.py of deepseek-ai/FlashMLA); columns give the bytes of one token's row.

| format         | row | latent              | scales                       | rope     | blocks |
|----------------|-----|---------------------|------------------------------|----------|--------|
| `fp8_v32`      | 656 | 0..511, tiles 128   | 512..527, 4 x float32        | 528..655 | inline |
| `fp8_v32_nope` | 528 | 0..511, tiles 128   | 512..527, 4 x float32        | none     | inline |
| `fp8_model1`   | 584 | 0..447, tiles 64    | 8 behind all rows, 7 x ue8m0 | 448..575 | planar |

A planar block of p tokens holds p rows of 576 bytes (latent, rope), then p rows of 8 bytes (seven
scales, one unused), and is padded to a multiple of 576 bytes. Formats whose name ends in `_fnuz`
hold e4m3fnuz codes (gfx942) in the same places: the flavour is part of the name because the bytes
do not tell, and read as the other one they are off by a factor of two (sglang#28455).

A cache is a uint8 tensor `[num_blocks, page_size, row_bytes]` whose blocks are contiguous inside;
slot `block * page_size + offset` is one token.
"""

from __future__ import annotations

from dataclasses import dataclass

_PLANAR_BLOCK = 576  # bytes; FlashMLA's copy descriptors ask for it


@dataclass(frozen=True)
class PackedKV:
    """One byte layout. Dims and tiles count values; dtypes are torch's names."""

    name: str
    code_dtype: str
    scale_dtype: str
    nope_dim: int
    rope_dim: int
    tile: int
    planar: bool

    @property
    def head_dim(self) -> int:
        """Width of an unpacked row: latent and rope."""
        return self.nope_dim + self.rope_dim

    @property
    def tiles(self) -> int:
        """Scales of a token."""
        return self.nope_dim // self.tile

    @property
    def scale_bytes(self) -> int:
        """Bytes that a token's scales take, padding included."""
        return 8 if self.planar else 4 * self.tiles

    @property
    def row_bytes(self) -> int:
        """Bytes of a token."""
        return self.nope_dim + self.scale_bytes + 2 * self.rope_dim

    @property
    def block_multiple(self) -> int:
        """What the distance between blocks must be a multiple of [bytes]."""
        return _PLANAR_BLOCK if self.planar else 16

    def block_bytes(self, page_size: int) -> int:
        """Bytes of a block of `page_size` tokens, a planar block's padding included."""
        used = page_size * self.row_bytes
        return -(-used // _PLANAR_BLOCK) * _PLANAR_BLOCK if self.planar else used


def _flavour(suffix: str, fp8: str) -> tuple[PackedKV, ...]:
    return (
        PackedKV("fp8_v32" + suffix, fp8, "float32", 512, 64, 128, planar=False),
        PackedKV("fp8_v32_nope" + suffix, fp8, "float32", 512, 0, 128, planar=False),
        PackedKV("fp8_model1" + suffix, fp8, "float8_e8m0fnu", 448, 64, 64, planar=True),
    )


PACKED = {
    layout.name: layout
    for layout in _flavour("", "float8_e4m3fn") + _flavour("_fnuz", "float8_e4m3fnuz")
}
"""Every packed layout by its name."""

# SPDX-License-Identifier: Apache-2.0
"""The numbers that the shared body of mla_prefill takes; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from archkey.kernels.attention_tunings import check_tiles

__all__ = ["MlaPrefillTile", "MlaPrefillTuning"]


class MlaPrefillTile(NamedTuple):
    """What a program of the prefill body computes, and the calls that it is for.

    A row is a query with one of the query heads that share a KV head.

    most       calls whose longest sequence has up to so many rows; 0: any number
    rows       rows of a tile
    keys       keys of a step
    num_warps  warps (wavefronts) of a program
    stages     steps whose loads are on their way at once
    """

    most: int
    rows: int
    keys: int
    num_warps: int
    stages: int


@dataclass(frozen=True)
class MlaPrefillTuning:
    """How the prefill body works.

    tiles  from few rows to many; a call takes the first that is for its longest sequence, and the
           last one is for any. A `MlaPrefillTile`, or its fields in order
    cache  [MiB] keys and values that programs which run at the same time should share: so many
           heads are worked through together, with the longest tiles of all of them first
    """

    tiles: tuple[MlaPrefillTile, ...]
    cache: int = 32

    def __post_init__(self) -> None:
        tiles = tuple(MlaPrefillTile(*tile) for tile in self.tiles)
        object.__setattr__(self, "tiles", tiles)
        check_tiles(tiles)
        if self.cache < 1:
            raise ValueError(f"cache must be at least 1 MiB, is {self.cache}")

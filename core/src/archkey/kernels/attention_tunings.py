# SPDX-License-Identifier: Apache-2.0
"""The numbers that the shared body of attention takes; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["AttentionTile", "AttentionTuning", "check_tiles"]


class AttentionTile(NamedTuple):
    """What a program of the attention body computes, and the sequences that it is for.

    A row is a query with one of the query heads that share a KV head.

    most       sequences of up to so many rows, which one tile holds; 0: of any number
    rows       rows of a tile
    keys       keys of a step
    num_warps  warps (wavefronts) of a program
    stages     steps whose loads are on their way at once
    fill       programs that a compute unit should have: where there are fewer, keys are split; 0:
               never
    """

    most: int
    rows: int
    keys: int
    num_warps: int
    stages: int
    fill: int = 0


@dataclass(frozen=True)
class AttentionTuning:
    """How the attention body works.

    tiles  from few rows to many; a sequence goes to the first that is for its rows, and the last
           one is for any. An `AttentionTile`, or its fields in order
    """

    tiles: tuple[AttentionTile, ...]

    def __post_init__(self) -> None:
        tiles = tuple(AttentionTile(*tile) for tile in self.tiles)
        object.__setattr__(self, "tiles", tiles)
        check_tiles(tiles)
        for tile in tiles:
            if tile.fill < 0 or (tile.fill and not tile.most):
                raise ValueError(f"a tile for any number of rows is not split: fill {tile.fill}")


def check_tiles(tiles: tuple[Any, ...]) -> None:
    """ValueError unless `tiles` are for more and more rows, and each of them can be."""
    most = [tile.most for tile in tiles]
    if most[-1:] != [0] or most[:-1] != sorted({*most[:-1]} - {0}):
        raise ValueError(f"tiles must be for more and more rows, then for any (0), not {most}")
    for tile in tiles:
        for name, low in {"rows": 16, "keys": 16, "num_warps": 1}.items():
            value = getattr(tile, name)
            if value < low or value & (value - 1):
                raise ValueError(f"{name} must be a power of two from {low}, is {value}")
        if tile.stages < 1:
            raise ValueError(f"stages must be at least 1, is {tile.stages}")
        if tile.most > tile.rows:
            raise ValueError(f"{tile.most} rows do not fit a tile of {tile.rows}")

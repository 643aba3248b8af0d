# SPDX-License-Identifier: Apache-2.0
"""The numbers that the shared body of MLA decode takes; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MlaDecodeTile", "MlaDecodeTuning"]


class MlaDecodeTile(NamedTuple):
    """What a program of the decode body computes, and the calls that it is for.

    A row is a query with one of its heads; all rows of a sequence share their keys.

    most       calls of up to so many rows a sequence; 0: of any number
    rows       rows of a tile
    keys       keys of a step
    num_warps  warps (wavefronts) of a program
    stages     steps whose loads are on their way at once
    fill       programs that a compute unit should have: where there are fewer, keys are split
    """

    most: int
    rows: int
    keys: int
    num_warps: int
    stages: int
    fill: int


@dataclass(frozen=True)
class MlaDecodeTuning:
    """How the decode body works.

    tiles  from few rows to many; a call goes to the first that is for its rows, and the last one is
           for any. A `MlaDecodeTile`, or its fields in order
    """

    tiles: tuple[MlaDecodeTile, ...]

    def __post_init__(self) -> None:
        tiles = tuple(MlaDecodeTile(*tile) for tile in self.tiles)
        object.__setattr__(self, "tiles", tiles)
        most = [tile.most for tile in tiles]
        if most[-1:] != [0] or most[:-1] != sorted({*most[:-1]} - {0}):
            raise ValueError(f"tiles must be for more and more rows, then for any (0), not {most}")
        for tile in tiles:
            for name, low in {"rows": 16, "keys": 16, "num_warps": 1}.items():
                value = getattr(tile, name)
                if value < low or value & (value - 1):
                    raise ValueError(f"{name} must be a power of two from {low}, is {value}")
            for name in ("stages", "fill"):
                if getattr(tile, name) < 1:
                    raise ValueError(f"{name} must be at least 1, is {getattr(tile, name)}")

    def tile_for(self, rows: int) -> MlaDecodeTile:
        """The tile for a call of `rows` rows a sequence; of 0, which means any number, the last."""
        if not rows:
            return self.tiles[-1]
        return next(tile for tile in self.tiles if not tile.most or rows <= tile.most)

# SPDX-License-Identifier: Apache-2.0
"""The numbers that the shared body of mxfp4_linear takes; nothing here is imported from triton.

Apart from the norms', whose digests they would change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["LinearTile", "Mxfp4LinearTuning"]


class LinearTile(NamedTuple):
    """What a program of the MXFP4 linear body computes, and the calls that take it.

    rows       calls of up to so many rows; 0 is any number
    t, n, k    rows and columns of out, and columns of x in a step
    stages     steps whose loads are on their way at once
    num_warps  warps (wavefronts) of a program
    fill       programs that a compute unit should have: where out has fewer tiles, K is split; 0
               leaves it whole
    """

    rows: int
    t: int
    n: int
    k: int
    stages: int
    num_warps: int
    fill: int


@dataclass(frozen=True)
class Mxfp4LinearTuning:
    """How the MXFP4 linear body works.

    tiles  from few rows to many; a call takes the first that is for its rows, and the last one is
           for any. A `LinearTile`, or its fields in order
    group  tiles of rows that go through all of N together, so that their x stays in L2
    half   codes are scaled as bfloat16, where the hardware multiplies it, not as float32
    """

    tiles: tuple[LinearTile, ...]
    group: int = 8
    half: bool = False

    def __post_init__(self) -> None:
        tiles = tuple(LinearTile(*tile) for tile in self.tiles)
        object.__setattr__(self, "tiles", tiles)
        rows = [tile.rows for tile in tiles]
        if rows[-1:] != [0] or rows[:-1] != sorted({*rows[:-1]} - {0}):
            raise ValueError(f"tiles must be for more and more rows, then for any (0), not {rows}")
        if self.group < 1:
            raise ValueError(f"group must be at least 1, is {self.group}")
        least = {"t": 16, "n": 16, "k": 32, "num_warps": 1}  # k: a block of scales
        for tile in tiles:
            for name, low in least.items():
                value = getattr(tile, name)
                if value < low or value & (value - 1):
                    raise ValueError(f"{name} must be a power of two from {low}, is {value}")
            for name, low in (("stages", 1), ("fill", 0)):
                if getattr(tile, name) < low:
                    raise ValueError(f"{name} must be at least {low}, is {getattr(tile, name)}")

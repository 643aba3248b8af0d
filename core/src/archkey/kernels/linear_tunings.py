# SPDX-License-Identifier: Apache-2.0
"""The numbers that the shared body of mxfp4_linear takes; nothing here is imported from triton.

Apart from the norms', whose digests they would change.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mxfp4LinearTuning"]


@dataclass(frozen=True)
class Mxfp4LinearTuning:
    """How a program of the MXFP4 linear body works.

    few_t      calls of up to so many rows take a tile of few_t x few_n, in steps of few_k columns,
               with the loads of few_stages steps on their way at once
    tile_t     larger ones take tiles of tile_t x tile_n, in steps of tile_k, with stages
    num_warps  warps (wavefronts) of a program
    group      tiles of rows that go through all of N together, so that their x stays in L2
    half       codes are scaled as bfloat16, where the hardware multiplies it, not as float32
    """

    few_t: int
    few_n: int
    few_k: int
    few_stages: int
    tile_t: int
    tile_n: int
    tile_k: int
    stages: int
    num_warps: int
    group: int = 8
    half: bool = False

    def __post_init__(self) -> None:
        least = {"few_k": 32, "tile_k": 32, "num_warps": 1}  # a block of scales
        for name in ("few_t", "few_n", "few_k", "tile_t", "tile_n", "tile_k", "num_warps"):
            value = getattr(self, name)
            if value < least.get(name, 16) or value & (value - 1):
                allowed = f"a power of two from {least.get(name, 16)}"
                raise ValueError(f"{name} must be {allowed}, is {value}")
        for name in ("few_stages", "stages", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")

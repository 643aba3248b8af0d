# SPDX-License-Identifier: Apache-2.0
"""The numbers that shared bodies take. Plugins fill tables with them; nothing here is imported

from triton, so a plugin's tables can be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RmsNormTuning"]


@dataclass(frozen=True)
class RmsNormTuning:
    """How a program of the RMSNorm body works.

    tile       elements that a program holds in registers: as many rows as fit, at least one
    num_warps  warps (wavefronts) of a program
    block      longest row, in elements, that is held as a whole; longer rows are read twice
    """

    tile: int
    num_warps: int
    block: int = 16384

    def __post_init__(self) -> None:
        for name in ("tile", "num_warps", "block"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")

# SPDX-License-Identifier: Apache-2.0
"""The numbers that the bodies of MLA decode take; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MlaDecodeTuning"]


@dataclass(frozen=True)
class MlaDecodeTuning:
    """How a decode body works. A row is a query with one of its heads.

    rows       rows of a tile, which a program computes
    keys       keys of a step
    num_warps  warps (wavefronts) of a program
    stages     steps whose loads are on their way at once
    resident   programs that a compute unit holds at once; keys are split to fill all of them
    """

    rows: int
    keys: int
    num_warps: int
    stages: int
    resident: int

    def __post_init__(self) -> None:
        for name, low in {"rows": 16, "keys": 16, "num_warps": 1}.items():
            value = getattr(self, name)
            if value < low or value & (value - 1):
                raise ValueError(f"{name} must be a power of two from {low}, is {value}")
        for name in ("stages", "resident"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")

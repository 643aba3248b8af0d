# SPDX-License-Identifier: Apache-2.0
"""The numbers that the body of KDA's gates takes; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KdaGateTuning"]


@dataclass(frozen=True)
class KdaGateTuning:
    """How a program of the body of kda_gate and kda_gate_chunk_cumsum works.

    tokens     that a program takes; for sums it takes a chunk
    channels   of one head that a program takes
    num_warps  warps (wavefronts) of a program
    """

    tokens: int
    channels: int
    num_warps: int

    def __post_init__(self) -> None:
        for name in ("tokens", "channels", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")

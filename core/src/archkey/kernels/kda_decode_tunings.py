# SPDX-License-Identifier: Apache-2.0
"""The numbers that the body of KDA's decode takes; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KdaDecodeTuning"]


@dataclass(frozen=True)
class KdaDecodeTuning:
    """How a program of the body of fused_recurrent_kda and kda_packed_decode works.

    columns    columns of V of a state, all of K long, that a program holds in registers
    num_warps  warps (wavefronts) of a program
    """

    columns: int
    num_warps: int

    def __post_init__(self) -> None:
        for name in ("columns", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")

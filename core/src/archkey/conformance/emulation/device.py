# SPDX-License-Identifier: Apache-2.0
"""The device that stands in for a card of an emulated target. Needs no numpy until it launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archkey.probe import Device
from archkey.target import Target

__all__ = ["TARGETS", "Emulated", "emulated"]

TARGETS = ("rocm_gfx942", "rocm_gfx950", "cuda_sm90", "cuda_sm100")
"""Keys of the targets that can be emulated."""


@dataclass(frozen=True)
class Emulated(Device):
    """A target whose machine code is executed on this machine's CPU, on tensors in host memory."""

    def launcher(self, compiled: Any) -> Callable[..., None]:
        """`launch(grid, *arguments)` on the emulator."""
        from archkey.conformance.emulation.dialects import dialect_of

        return dialect_of(self.target.key).launcher(compiled)


def emulated(target: str) -> Emulated | None:
    """The device for a target's key; None if there is no emulator of it."""
    if target not in TARGETS:
        return None
    found = Target.parse(target)
    return Emulated(
        found,
        index=0,
        name=f"emulator of {found.arch}",
        source="emulation",
        torch_type="cpu",
        simulated=True,
    )

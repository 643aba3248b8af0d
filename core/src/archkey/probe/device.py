# SPDX-License-Identifier: Apache-2.0
"""The values that a probe returns: `Device`, `Note`, `Probe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archkey.target import Target

__all__ = ["Device", "Note", "Probe"]


@dataclass(frozen=True)
class Device:
    """A target at an index, with what the driver says about this very card.

    A fact that the driver does not state is None; nothing is guessed from the target or the name.
    """

    target: Target
    index: int
    """Position among the visible devices of the platform, as the vendor's runtime counts."""
    name: str
    source: str
    """Who said so: "nvml", "kfd", "cpu", "pretend", or the name of a vendor's entry point.

    "kfd+amdsmi" where amdsmi added a fact that sysfs does not state.
    """
    compute_units: int | None = None
    """Streaming multiprocessors (NVIDIA), compute units (AMD), usable logical cores (cpu)."""
    shared_memory_bytes: int | None = None
    """Most shared memory (LDS) that one thread block (workgroup) can have, in bytes."""
    l2_bytes: int | None = None
    """The L2 cache that one thread block works through, in bytes; on gfx942 that of one XCD."""
    memory_bytes: int | None = None
    partition: str = ""
    """MIG profile ("1g.10gb") or AMD compute and memory mode ("CPX/NPS4"); empty without one."""
    uuid: str | None = None
    driver: str | None = None
    """The driver's version."""
    torch_type: str = ""
    """torch's name for where its tensors live, if that is not the platform's: "npu", or "cpu" of an
    accelerator that works in host memory. Read `torch_kind`."""

    simulated: bool = False
    """A program that stands in for the card: what runs on it is evidence of level "emulated"."""

    @property
    def torch_kind(self) -> str:
        """The type of torch device that its tensors are on; torch calls an AMD GPU "cuda" too."""
        platform = self.target.platform
        return self.torch_type or ("cuda" if platform in ("cuda", "rocm") else platform)

    def launcher(self, compiled: Any) -> Callable[..., None] | None:
        """How a simulator launches a compiled Triton program; None: through Triton's driver."""
        return None

    def to_json(self) -> dict[str, str | int | None]:
        """All fields as JSON values; the target as text that `Target.parse` reads."""
        own = {"target": str(self.target), "torch_type": self.torch_kind}
        return {**vars(self), **own}

    def kind_to_json(self) -> dict[str, str | int | None]:
        """The same without what tells one card from its twin: for records that are shared."""
        return {k: v for k, v in self.to_json().items() if k not in ("uuid", "index")}


@dataclass(frozen=True)
class Note:
    """What happened when a source was asked, for the reader who misses a device."""

    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


@dataclass(frozen=True)
class Probe:
    """The devices of this machine, best known vendors first and the cpu last, and how it went."""

    devices: tuple[Device, ...]
    notes: tuple[Note, ...]

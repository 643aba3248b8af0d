# SPDX-License-Identifier: Apache-2.0
"""The normal form of a quantisation scheme: what a module's weight is, whoever wrote it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NO_ACTIVATION", "UNQUANTIZED", "Activation", "Scheme"]


@dataclass(frozen=True)
class Activation:
    """How the input of a module is quantised."""

    format: str = "none"
    """As `Scheme.weight`."""
    per: str = ""
    """What shares a scale: "tensor", "token", "group" (columns of a token); "" for none."""
    scaling: str = "none"
    """When scales are made: "static" before, and stored; "dynamic" at run time; "none"."""
    group: int = 0
    """Columns of a group; 0 if `per` is no group."""
    scale_mode: str = ""
    """How a dynamic scale is rounded, in the producer's word: "even", "floor", "ue8m0"."""

    def __str__(self) -> str:
        if self.format == "none":
            return "not quantised"
        what = f"per {self.group} columns" if self.per == "group" else f"per {self.per}"
        mode = f", {self.scale_mode}" if self.scale_mode else ""
        return f"{self.format} {self.scaling} {what}{mode}"


NO_ACTIVATION = Activation()


@dataclass(frozen=True)
class Scheme:
    """How the weight `[N, K]` of a linear module is stored, and how its input is quantised."""

    weight: str = "none"
    """"mxfp4", "mxfp8", "nvfp4", "fp8" (OCP's e4m3fn), or "none": the model's own dtype."""
    per: str = ""
    """What shares a scale: "tensor", "channel" (a row), "group" (of a row), "block"; ""."""
    block: tuple[int, int] = (0, 0)
    """Rows and columns that share a scale, for "group" `(1, size)` and for "block"; else (0, 0)."""
    scale: str = ""
    """What the scale of a group or block is: "e8m0", "e4m3fn", "float32"; ""."""
    activation: Activation = NO_ACTIVATION
    layout: str = "plain"
    """The producer's way to store it: a key of `archkey.checkpoint.storage.LAYOUTS`."""

    @property
    def quantized(self) -> bool:
        """Whether the weight is stored in another format than the model's dtype."""
        return self.weight != "none"

    def __str__(self) -> str:
        if not self.quantized:
            return "not quantised"
        if self.per in ("group", "block"):
            rows, columns = self.block
            size = str(columns) if self.per == "group" else f"{rows}x{columns}"
            return f"{self.weight}, {self.scale} scale per {self.per} of {size}"
        return f"{self.weight}, scale per {self.per}"

    def to_json(self) -> dict[str, Any]:
        """The fields, `activation` nested."""
        return asdict(self)


UNQUANTIZED = Scheme()

# SPDX-License-Identifier: Apache-2.0
"""What a launch did: instructions by class, bytes, operations of the matrix units."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Counters", "class_of"]

_CLASSES = (
    ("matrix", r"(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)"),
    ("tensor memory", r"tcgen05\."),
    ("matrix moves", r"(?:ldmatrix|stmatrix)\."),
    ("global", r"(?:ld|st|atom|red)\.(?:\w+\.)*?global"),
    ("shared", r"(?:ld|st|atom|red)\.(?:\w+\.)*?shared"),
    ("parameters", r"ld\.param"),
    ("asynchronous", r"(?:cp\.|mbarrier\.|fence\.|tensormap\.)"),
    ("barriers", r"(?:bar|barrier|wgmma|griddepcontrol|membar|setmaxnreg)\b"),
    ("warp", r"(?:shfl|vote|redux|elect|match|activemask)\b"),
    ("branches", r"(?:bra|brx|ret|exit|call)\b"),
    ("conversions", r"cvt\."),
    ("special functions", r"(?:ex2|lg2|rsqrt|sqrt|rcp|sin|cos|tanh|div)\."),
    ("floats", r".*\.(?:f|bf)\d+(?:x2)?$"),
    ("integers", r""),
)


def class_of(name: str) -> str:
    """The class of a mnemonic."""
    return next(found for found, pattern in _CLASSES if re.match(pattern, name))


@dataclass
class Counters:
    """Of all workgroups that ran.

    instructions  of warps, by class
    loaded        bytes that threads read of global memory, each as often as it is read
    stored        bytes that threads write to it
    copied        bytes that cp.async and bulk copies read of it
    flops         multiplications and additions of the matrix units
    """

    instructions: Counter[str] = field(default_factory=Counter)
    loaded: int = 0
    stored: int = 0
    copied: int = 0
    flops: int = 0

    def add(self, other: Counters, times: float = 1) -> None:
        """And what another has, so many times; whole numbers."""
        for name, count in other.instructions.items():
            self.instructions[name] += round(count * times)
        self.loaded += round(other.loaded * times)
        self.stored += round(other.stored * times)
        self.copied += round(other.copied * times)
        self.flops += round(other.flops * times)

    def to_json(self) -> dict[str, object]:
        """All counts; `instructions` by class, sorted."""
        return {**vars(self), "instructions": dict(sorted(self.instructions.items()))}

# SPDX-License-Identifier: Apache-2.0
"""The class of each mnemonic of PTX, for counts of instructions."""

from __future__ import annotations

import re

__all__ = ["class_of"]

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

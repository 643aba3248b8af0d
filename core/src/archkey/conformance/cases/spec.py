# SPDX-License-Identifier: Apache-2.0
"""How edge and random cases are written down: a frozen dataclass of metadata, and its text.

A family has one dataclass for an operator's calls. Edges are rows of it, random cases are drawn
fields of it, and `describe` makes the label of both.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import torch

from archkey.conformance.case import Maker

__all__ = ["DTYPES", "LAYOUTS", "describe", "lay"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

LAYOUTS = {
    "packed": (0, 0),
    "slice": (64, 96),  # still aligned to 16 elements, where the width is
    "odd": (1, 3),
}
"""How rows may lie: columns left free before a row, and before and after it."""


def lay(make: Maker, values: torch.Tensor, layout: str) -> torch.Tensor:
    """`values` `[.., N]` in a layout with last stride 1.

    packed, slice, odd  of a row that is wider by what LAYOUTS says
    heads     of more heads (dimension -2) than are there: rows are not evenly spaced
    repeated  the first entry of dimension 0, expanded: stride 0; for inputs only
    far0, far1   the last entry of that dimension lies past element 2^31
    """
    if layout == "packed":
        return values
    if layout == "repeated":
        return values[:1].expand(values.shape)
    if layout in ("far0", "far1"):
        return make.far(values, int(layout[-1]))
    *lead, rows, width = values.shape
    if layout == "heads":
        room = values.new_zeros((*lead, rows + 2, width))[..., 1 : rows + 1, :]
    else:
        before, free = LAYOUTS[layout]
        room = values.new_zeros((*lead, rows, width + free))[..., before : before + width]
    return room.copy_(values)


def describe(spec: Any) -> str:
    """Every field of a dataclass that is not its default, `name=value`; a true flag is its name."""
    told = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.default is MISSING or value != field.default:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else value
            told.append(field.name if value is True else f"{field.name}={text}")
    return ", ".join(told)

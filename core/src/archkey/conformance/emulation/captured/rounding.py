# SPDX-License-Identifier: Apache-2.0
"""How far apart two runs of one program may be, and why: what rounding explains.

Both run the same instructions on the same bytes, so what they may differ in is what PTX leaves
open: approximations (`ex2`, `rsqrt`, `div.full`: some units of float32), and how a matrix unit
adds, where `accumulators` does not say. That is in float32 and would not be seen in a result of 16
bits, but that a number is rounded in between: one near the middle of two may turn over.

- A result that is rounded to its dtype may turn over: `LAST` units in its last place.
- An operand of a matrix product that was computed, such as attention's probabilities, may turn over
  before. It changes by a unit of its format, and is one of many that are added: `PART` of the
  largest in the row at most.
- A sum of float32 is right to some units of the largest, however small the result is.

Integers, and bytes outside of what a launch writes, are equal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

__all__ = ["LAST", "PART", "TABLE", "Allowed", "Rounding", "allowed", "last_place", "rounding_of"]

LAST = 1.0
"""Units in the last place of the result's dtype."""

PART = 2.0**-4
"""Of a sum, that one of its elements is: products are of 16 elements at least."""


class Rounding(NamedTuple):
    """A format that a program rounds to in between.

    instructions  those whose operands have it, a regular expression
    row           what that may change, relative to the largest in a row
    why           in words
    """

    name: str
    instructions: str
    row: float
    why: str


_MATRIX = r"(?:mma\.sync|wgmma\.mma_async)\S*"

# The first whose instructions a program has is its coarsest.
TABLE = (
    Rounding("e5m2", _MATRIX + r"\.e5m2", 2.0**-2 * PART, "an operand in FP8 turns over"),
    Rounding("e4m3", _MATRIX + r"\.e4m3", 2.0**-3 * PART, "an operand in FP8 turns over"),
    Rounding("bf16", _MATRIX + r"\.bf16", 2.0**-7 * PART, "an operand in bfloat16 turns over"),
    Rounding("tf32", _MATRIX + r"\.tf32", 2.0**-10 * PART, "an operand in TF32 turns over"),
    Rounding("f16", _MATRIX + r"\.f16", 2.0**-10 * PART, "an operand in float16 turns over"),
    Rounding("f32", r"", 2.0**-18, "sums and approximations of float32: some units of 2^-23"),
)


class Allowed(NamedTuple):
    """A difference may be `last` units in the last place, and `row` of the row's largest."""

    last: float
    row: float


def rounding_of(text: str) -> Rounding:
    """The coarsest of `TABLE` that a program in PTX has."""
    return next(one for one in TABLE if re.search(one.instructions, text))


def allowed(text: str, dtype: torch.dtype) -> Allowed:
    """For a tensor that the program writes."""
    if not dtype.is_floating_point:
        return Allowed(0.0, 0.0)
    return Allowed(LAST, rounding_of(text).row)


def last_place(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of `dtype` at each of `values`, float64."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(values.abs().clamp(min=limits.smallest_normal))
    return limits.eps * torch.ldexp(torch.ones_like(values), exponent - 1)

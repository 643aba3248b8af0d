# SPDX-License-Identifier: Apache-2.0
"""How far an output may lie from the float64 reference, with the reason for every number.

The error of a float output is ||out - ref|| / ||ref|| over the finite elements; infinities and
NaN must stand in the same places, or the error is infinite. The error of an integer output, and
of codes, is the share of elements that differ.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Tolerance", "distance", "tolerance"]


class Tolerance(NamedTuple):
    """The largest error that passes."""

    value: float
    reason: str


# One rounding of a value spread evenly over a binade costs 2^-(p+1)/sqrt(3) of its size on
# average: 0.0016 for bfloat16 (p = 8), 0.0002 for float16 (p = 11). Twice that is allowed.
_BY_DTYPE = {
    "float64": Tolerance(1e-6, "computed in float32 and widened"),
    "float32": Tolerance(1e-5, "float32 sums of some thousand terms, no rounding on store"),
    "float16": Tolerance(5e-4, "one rounding to 11 bits: 0.0002 on average"),
    "bfloat16": Tolerance(4e-3, "one rounding to 8 bits: 0.0016 on average"),
    "float8_e4m3fn": Tolerance(4e-2, "one rounding to 4 bits: 0.026 on average"),
    "float8_e4m3fnuz": Tolerance(4e-2, "one rounding to 4 bits: 0.026 on average"),
}
_EXACT = Tolerance(0.0, "integers are exact")
_CODES = Tolerance(5e-3, "float32 against float64 may fall on the other side of a rounding tie")

# Outputs whose rounding is not that of their dtype: (operator, output) -> tolerance.
_BY_OUTPUT: dict[tuple[str, str], Tolerance] = {
    # Codes against codes: a float32 sum in another order falls on the other side of a tie. One FP8
    # code in 200 next to the right one is 0.006. y rounded to bfloat16 first is 0.008 to 0.013.
    ("rmsnorm_quant", "out"): Tolerance(6e-3, "one code in 200 may be a neighbour"),
}


def tolerance(operator: str, output: str, dtype: torch.dtype) -> Tolerance:
    """The tolerance of one output of an operator."""
    special = _BY_OUTPUT.get((operator, output))
    if special is not None:
        return special
    if dtype == torch.uint8:
        return _CODES
    return _BY_DTYPE.get(str(dtype).removeprefix("torch."), _EXACT)


def distance(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Error of `out` against `reference`, as the module says."""
    if out.shape != reference.shape:
        return float("inf")
    if not out.dtype.is_floating_point or not reference.dtype.is_floating_point:
        return float((out != reference).double().mean()) if out.numel() else 0.0
    got, want = out.double(), reference.double()
    finite = want.isfinite()
    same = torch.where(finite, got.isfinite(), (got == want) | (got.isnan() & want.isnan()))
    if not bool(same.all()):
        return float("inf")
    size = float(want[finite].norm())
    error = float((got - want)[finite].norm())
    return error / size if size > 0 else error

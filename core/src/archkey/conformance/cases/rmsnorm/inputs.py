# SPDX-License-Identifier: Apache-2.0
"""Calls of the RMSNorm family from metadata: what edge and random cases are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import lay

__all__ = ["CASTS_TO_0_7", "AddNorm", "Norm", "QkNorm", "values"]

CASTS_TO_0_7 = 1 / 0.49 - 1
"""With |x| = 1 and this eps, x * rstd is 0.7: in bfloat16 0.6992, in float16 0.7002, and no sum in
another order comes near a tie of either."""


@dataclass(frozen=True)
class Norm:
    """A call of rmsnorm.

    heads          0: `[T, N]`
    lay, out_lay   of x and of a new out, see `tensors.lay`
    out            "" the operator's default, "x", "residual", or the dtype of a new tensor
    weight         dtype of the weight; "" x's
    residual, residual_lay   of fused_add_rmsnorm: dtype ("" x's) and layout
    residual_out   of fused_add_rmsnorm: "" the operator's default, "x", or "new"
    """

    tokens: int
    width: int
    heads: int = 0
    dtype: str = "bf16"
    weight: str = ""
    out: str = ""
    lay: str = "packed"
    out_lay: str = "packed"
    residual: str = ""
    residual_lay: str = "packed"
    residual_out: str = ""
    eps: float = 1e-6
    bias: float = 0.0
    cast: bool = False
    values: str = "normal"

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        shape = (self.tokens, *((self.heads,) if self.heads else ()), self.width)
        x = lay(make, values(make, shape, DTYPES[self.dtype], self.values), self.lay)
        given = {
            "x": x,
            "weight": _weight(make, self.width, self.weight or self.dtype, self.bias),
            "eps": self.eps,
            "weight_bias": self.bias,
            "cast_before_weight": self.cast,
        }
        if self.out in DTYPES:
            given["out"] = _new(make, shape, self.out, self.out_lay)
        elif self.out == "x":
            given["out"] = x
        return given


@dataclass(frozen=True)
class AddNorm(Norm):
    """A call of fused_add_rmsnorm."""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        given = dict(super().__call__(make))
        x, dtype = given["x"], self.residual or self.dtype
        added = values(make, tuple(x.shape), DTYPES[dtype], self.values)
        if self.values == "signs":  # the sum has them
            added.zero_()
        given["residual"] = lay(make, added, self.residual_lay)
        if self.out == "residual":
            given["out"] = given["residual"]
        if self.residual_out == "x":
            given["residual_out"] = x
        elif self.residual_out == "new":
            given["residual_out"] = _new(make, tuple(x.shape), dtype, self.out_lay)
        return given


@dataclass(frozen=True)
class QkNorm:
    """A call of fused_qk_rmsnorm on the tokens of one projection row, or on tensors of their own.

    q, k      (heads, width); 0 heads: 2-D; q (0, 0): absent
    row       q and k are slices of one row, with `rope` more columns after them
    lay, out_lay   otherwise: of q and k; of new outputs
    out       "" the operator's default, "in place", or the dtype of new tensors
    """

    tokens: int
    q: tuple[int, int]
    k: tuple[int, int]
    dtype: str = "bf16"
    weight: str = ""
    row: bool = False
    rope: int = 64
    lay: str = "packed"
    out: str = ""
    out_lay: str = "packed"
    q_eps: float = 1e-6
    k_eps: float = 1e-5
    bias: float = 0.0
    cast: bool = False
    values: str = "normal"

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        dtype, weight = DTYPES[self.dtype], self.weight or self.dtype
        shapes = [
            (self.tokens, *((heads,) if heads else ()), width) for heads, width in (self.q, self.k)
        ]
        both = self.q[1] > 0
        if self.row:
            wide = [max(heads, 1) * width for heads, width in (self.q, self.k)]
            row = values(make, (self.tokens, sum(wide) + self.rope), dtype, self.values)
            halves = row.split([*wide, self.rope], dim=1)[:2]
            q, k = (half.unflatten(1, s[1:]) for half, s in zip(halves, shapes, strict=True))
        else:
            q, k = (
                lay(make, values(make, s, dtype, self.values), self.lay) if s[-1] else None
                for s in shapes
            )
        given = {
            "q": q if both else None,
            "q_weight": _weight(make, self.q[1], weight, self.bias) if both else None,
            "q_eps": self.q_eps if both else None,
            "k": k,
            "k_weight": _weight(make, self.k[1], weight, self.bias),
            "k_eps": self.k_eps,
            "weight_bias": self.bias,
            "cast_before_weight": self.cast,
        }
        if self.out == "in place":
            given |= {"k_out": k} | ({"q_out": q} if both else {})
        elif self.out:
            for name, shape in zip(("q_out", "k_out"), shapes, strict=True):
                if shape[-1]:
                    given[name] = _new(make, shape, self.out, self.out_lay)
        return given


def values(make: Maker, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> torch.Tensor:
    """Rows to be normed.

    normal, tiny (1e-3, so that eps counts), faint (1e-10), large (up to 6e4), shifted (mean 3),
    signs (+-1), last column (all else 0), zero rows (every other), not finite (inf, -inf and NaN,
    each in a row of its own, the others normal)
    """
    x = make.randn(*shape, dtype=torch.float32)
    rows = x.view(-1, shape[-1])
    if kind == "tiny":
        x *= 1e-3
    elif kind == "faint":
        x *= 1e-10
    elif kind == "large":
        x.clamp_(-3, 3).mul_(2e4)
    elif kind == "shifted":
        x += 3
    elif kind == "signs":
        x.copy_(torch.where(x < 0, -1.0, 1.0))
    elif kind == "last column":
        x[..., :-1] = 0
    elif kind == "zero rows":
        rows[::2] = 0
    elif kind == "not finite":
        for row, bad in zip(rows, (float("inf"), float("-inf"), float("nan")), strict=False):
            row[-1] = bad
    return x.to(dtype)


def _weight(make: Maker, width: int, dtype: str, bias: float) -> torch.Tensor:
    """Around 1 with what is added to it; close to it with a bias, so that rounding would show."""
    w = make.randn(width, dtype=torch.float32)
    return (w * (0.1 if bias else 1.0) + 1 - bias).to(DTYPES[dtype])


def _new(make: Maker, shape: tuple[int, ...], dtype: str, layout: str) -> torch.Tensor:
    return lay(make, torch.zeros(shape, dtype=DTYPES[dtype], device=make.device), layout)

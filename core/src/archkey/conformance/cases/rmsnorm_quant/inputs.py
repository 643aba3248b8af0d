# SPDX-License-Identifier: Apache-2.0
"""Calls of rmsnorm_quant from metadata: what edge and random cases are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.rmsnorm.inputs import values
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import lay
from archkey.ops._rmsnorm_quant_kinds import KINDS, scale_shape

__all__ = ["EXACT", "Quant"]

EXACT: Mapping[str, Any] = {"values": "exact", "weight": "bf16", "eps": 0.25}
"""With these, y is plus or minus the weight, or 0 in every fourth column, and nothing is rounded on
the way: three in four x are +-1, so that mean(x^2) + eps is 1. Widths are powers of two."""


@dataclass(frozen=True)
class Quant:
    """A call of rmsnorm_quant.

    group     group_size of fp8_group
    mode      scale_mode; "" the default. layout: scale_layout
    scale     the given one; 0: such that 16 is the largest number of the format
    heads     0: `[T, N]`
    weights   "normal" around 1; the others make y what `WEIGHTS` says
    residual, residual_out   dtype or "" for none; "" in place, "new" or "x"
    y         unquantized_out: "" none, a dtype, or "x"
    x2, x2_out   (heads, width), width 0 for none; "" the default, a dtype, or "x2"
    lay, out_lay, scale_lay   of x, residual and x2; of all outputs that are given; of out_scale
    residual_lay   of residual alone; "" that of x
    given     out and out_scale are given
    """

    tokens: int
    width: int
    quant: str
    group: int = 128
    mode: str = ""
    layout: str = "row"
    scale: float = 0.0
    heads: int = 0
    dtype: str = "bf16"
    weight: str = ""
    weights: str = "normal"
    values: str = "normal"
    eps: float = 1e-6
    bias: float = 0.0
    cast: bool = False
    residual: str = ""
    residual_out: str = ""
    y: str = ""
    x2: tuple[int, int] = (0, 0)
    x2_out: str = ""
    x2_eps: float = 1e-6
    lay: str = "packed"
    given: bool = False
    out_lay: str = "packed"
    scale_lay: str = "packed"
    residual_lay: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        kind = KINDS[self.quant]
        group = {"fp8_group": self.group, "fp8_token": self.width}.get(self.quant, kind.block)
        shape = (self.tokens, *((self.heads,) if self.heads else ()), self.width)

        def new(dtype: torch.dtype, shape: tuple[int, ...] = shape) -> torch.Tensor:
            return lay(make, torch.zeros(shape, dtype=dtype, device=make.device), self.out_lay)

        x = lay(make, _x(make, shape, self), self.lay)
        given: dict[str, Any] = {
            "x": x,
            "weight": _weight(make, self, kind.block or self.group),
            "eps": self.eps,
            "quant": self.quant,
            "scale_layout": self.layout,
            "weight_bias": self.bias,
            "cast_before_weight": self.cast,
            **_scale(make, self),
        }
        if self.quant == "fp8_group":
            given["group_size"] = self.group
        if self.mode:
            given["scale_mode"] = self.mode
        if self.residual:
            added = values(make, shape, DTYPES[self.residual], "normal")
            layout = self.residual_lay or ("packed" if self.lay == "repeated" else self.lay)
            given["residual"] = lay(make, added, layout)
        if self.residual_out:
            given["residual_out"] = x if self.residual_out == "x" else new(DTYPES[self.residual])
        if self.y:
            given["unquantized_out"] = x if self.y == "x" else new(DTYPES[self.y])
        if self.x2[1]:
            heads, width = self.x2
            x2_shape = (self.tokens, *((heads,) if heads else ()), width)
            x2 = lay(make, values(make, x2_shape, DTYPES[self.dtype], "tiny"), self.lay)
            w2 = make.randn(width, dtype=DTYPES[self.weight or self.dtype])
            given |= {"x2": x2, "x2_weight": w2 + 1, "x2_eps": self.x2_eps}
            if self.x2_out:
                given["x2_out"] = x2 if self.x2_out == "x2" else new(DTYPES[self.x2_out], x2_shape)
        if self.given:
            codes = (*shape[:-1], shape[-1] // 2) if kind.packed else shape
            given["out"] = new(torch.uint8 if kind.packed else make.fp8, codes)
            given["out_scale"] = _out_scale(make, self, shape, group)
        return given


def _ties(make: Maker) -> list[float]:
    """Half-way between FP8 codes of the largest binade: multiples of half a step, all odd."""
    top = 256 if make.fp8 == torch.float8_e4m3fn else 128
    return [top * (1 + n / 16) for n in (1, 3, 5, 7, 9, 11)]


def _beyond(make: Maker) -> list[float]:
    """Past the largest FP8 number: by half a step, one step, and far."""
    top = torch.finfo(make.fp8).max
    return [top * 1.0625 // 1, top * 1.25, top * 16.0]


def _subnormal(make: Maker) -> list[float]:
    """Odd halves of the least FP8 number; the first is a tie with zero, its negative too."""
    least = 2.0 ** (-9 if make.fp8 == torch.float8_e4m3fn else -10)
    return [least * n / 2 for n in (1, 3, 5, 7, 9, 11, 13)]


_E2M1_TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)

WEIGHTS: dict[str, Callable[[Maker], list[list[float]]]] = {
    # A list for each block, repeated through its columns; blocks take the lists in turn.
    "fp8 ties": lambda make: [_ties(make)],
    "fp8 saturation": lambda make: [_beyond(make)],
    "fp8 subnormals": lambda make: [_subnormal(make)],
    # 5.5 and 11: no scale rule has a threshold there, and the scale is 1 (of "ceil": 2 for 11).
    "fp4 ties": lambda make: [[5.5, *_E2M1_TIES]],
    "fp4 ties, twice": lambda make: [[11.0, *(2 * tie for tie in _E2M1_TIES)]],
    "fp4 ties to 6": lambda make: [[6.0, *_E2M1_TIES]],
    # On and beside where the rules of scales change: 1, 1.5, 1.75 times a power of two.
    "fp4 thresholds": lambda make: [
        [2.0**n * top, 2.0**n * 0.375]
        for n in (-3, 0, 2)
        for top in (1.0, 1.0078125, 1.25, 1.4921875, 1.5, 1.5078125, 1.7421875, 1.75, 1.9921875)
    ],
    "blocks of zeros": lambda make: [[0.0], [1.0, 3.0], [0.0], [0.5]],
    # The scale of the second kind of block rounds to zero in NVFP4.
    "blocks of dust": lambda make: [[6.0, 1.0], [2.0**-12]],
}
"""What y is in `EXACT` calls, up to its sign."""


def _weight(make: Maker, spec: Quant, block: int) -> torch.Tensor:
    dtype = DTYPES[spec.weight or spec.dtype]
    if spec.weights == "normal":
        w = make.randn(spec.width, dtype=torch.float32)
        return (w * (0.1 if spec.bias else 1.0) + 1 - spec.bias).to(dtype)
    lists = WEIGHTS[spec.weights](make)
    columns = []
    for n in range(spec.width):
        numbers = lists[n // block % len(lists)]
        # Every fourth column of x is zero: it takes no number from the list.
        columns.append(numbers[(n % block - n % block // 4) % len(numbers)])
    return make.tensor(columns, dtype)


def _x(make: Maker, shape: tuple[int, ...], spec: Quant) -> torch.Tensor:
    if spec.values != "exact":
        return values(make, shape, DTYPES[spec.dtype], spec.values)
    x = values(make, shape, DTYPES[spec.dtype], "signs")
    x[..., 3::4] = 0
    return x


def _scale(make: Maker, spec: Quant) -> dict[str, Any]:
    if not KINDS[spec.quant].given:
        return {}
    most = torch.finfo(make.fp8).max if spec.quant == "fp8_tensor" else 448 * 6
    return {"scale": make.tensor([spec.scale or 16 / most], torch.float32)}


def _out_scale(make: Maker, spec: Quant, shape: tuple[int, ...], group: int) -> torch.Tensor | None:
    """Room for the scales, in the layout that the call asks for."""
    name = KINDS[spec.quant].scale_dtype
    if name == "none":
        return None
    size = scale_shape(shape, group, spec.layout)
    if spec.layout == "col":  # the pitch of a column is free
        rows = math.prod(size[:-1])
        by_column = torch.zeros(size[-1], rows, dtype=getattr(torch, name), device=make.device)
        columns: torch.Tensor = lay(make, by_column, spec.scale_lay).unflatten(1, size[:-1])
        return columns.movedim(0, -1)
    room = torch.zeros(size, dtype=getattr(torch, name), device=make.device)
    return lay(make, room, spec.scale_lay if spec.layout == "row" else "packed")

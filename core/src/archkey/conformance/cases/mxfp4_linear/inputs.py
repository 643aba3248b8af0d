# SPDX-License-Identifier: Apache-2.0
"""Calls of mxfp4_linear from metadata: what its cases and workloads are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import lay
from archkey.formats.mxfp4 import shuffle_gfx950

__all__ = ["PACKED", "SCALES", "Linear"]

PACKED = "mxfp4"


class Scales(NamedTuple):
    """What the scales of the weights are, and an x that keeps results far from float32's ends.

    low, high  bytes, high excluded
    power      x is 2^power in size
    codes      bits that two codes of a byte may have: with 0xBB they are at most 1.5
    """

    low: int
    high: int
    power: int = 0
    codes: int = 0xFF


SCALES = {
    "normal": Scales(118, 130),
    "wide": Scales(60, 190),
    "least": Scales(0, 1, 60),  # 2^-127: the weights are subnormal numbers of bfloat16
    "largest": Scales(254, 255, -60, 0xBB),  # 2^127: more than 1.5 of it is no float32
    "NaN": Scales(118, 130),  # and 255 for some blocks, of zeros too
}


@dataclass(frozen=True)
class Linear:
    """A call of mxfp4_linear: out `[*tokens, n]` of x `[*tokens, k]`.

    dtype     of x; "mxfp4" is packed, and layout is that of its scales
    bias      its dtype, "" without one
    out       dtype of the out that is given, "" for none; out_dtype: "" for the default
    scales    of the weight, see `SCALES`
    values    "normal"; "not finite": an infinity and a NaN are in x; "zeros": a row is 0 and -0
    lay, weight_lay, scale_lay, out_lay   of x, weight, both scales, out
    own_dtypes   codes and scales under torch's own names for them
    """

    tokens: tuple[int, ...]
    k: int
    n: int
    dtype: str = "bf16"
    layout: str = "row"
    bias: str = ""
    out: str = ""
    out_dtype: str = ""
    scales: str = "normal"
    values: str = "normal"
    lay: str = "packed"
    weight_lay: str = "packed"
    scale_lay: str = "packed"
    out_lay: str = "packed"
    own_dtypes: bool = False

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        weight, weight_scale = self._weight(make)
        given: dict[str, Any] = {
            "weight": lay(make, weight, self.weight_lay),
            "weight_scale": lay(make, weight_scale, self.scale_lay),
        }
        if self.dtype == PACKED:
            x, given["x_scale"] = self._packed(make)
            given["x_scale_layout"] = self.layout
        else:
            x = self._floats(make)
        given = {"x": lay(make, x, self.lay), **given}
        if self.bias:
            given["bias"] = make.randn(self.n, dtype=DTYPES[self.bias])
        if self.out:
            room = torch.zeros(*self.tokens, self.n, dtype=DTYPES[self.out], device=make.device)
            given["out"] = lay(make, room, self.out_lay)
        if self.out_dtype:
            given["out_dtype"] = DTYPES[self.out_dtype]
        return _renamed(given) if self.own_dtypes else given

    @property
    def _blocks(self) -> int:
        return -(-self.k // 32)

    def _weight(self, make: Maker) -> tuple[torch.Tensor, torch.Tensor]:
        kind = SCALES[self.scales]
        codes = make.randint(0, 256, self.n, self.k // 2, dtype=torch.uint8) & kind.codes
        scale = make.randint(kind.low, kind.high, self.n, self._blocks, dtype=torch.uint8)
        if self.values == "zeros":
            codes[0] = 0x80
        if self.scales == "NaN":
            codes[self.n // 2, -16:] = 0
            scale[self.n // 2, -1] = scale[-1, 0] = 255
        return codes, scale

    def _packed(self, make: Maker) -> tuple[torch.Tensor, torch.Tensor]:
        power = SCALES[self.scales].power
        codes = make.randint(0, 256, *self.tokens, self.k // 2, dtype=torch.uint8)
        low, high = 120 + power, 128 + power
        scale = make.randint(low, high, *self.tokens, self._blocks, dtype=torch.uint8)
        if self.values == "not finite" and scale.numel():
            scale.view(-1)[-1] = 255
        if self.layout != "row":
            return codes, shuffle_gfx950(scale)
        return codes, lay(make, scale, self.scale_lay)

    def _floats(self, make: Maker) -> torch.Tensor:
        x = make.randn(*self.tokens, self.k, dtype=torch.float32) * 2.0 ** SCALES[self.scales].power
        if self.values == "not finite" and x.numel():
            x.view(-1)[-1], x.view(-1)[0] = torch.inf, torch.nan
        return x.to(DTYPES[self.dtype])


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Under torch's own dtypes, where it has them."""
    codes = getattr(torch, "float4_e2m1fn_x2", torch.uint8)
    scales = getattr(torch, "float8_e8m0fnu", torch.uint8)
    names = {"x": codes, "weight": codes, "weight_scale": scales, "x_scale": scales}
    return {
        name: value.view(names[name]) if name in names and value.dtype == torch.uint8 else value
        for name, value in given.items()
    }

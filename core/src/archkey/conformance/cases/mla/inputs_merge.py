# SPDX-License-Identifier: Apache-2.0
"""Calls of `merge_attn_states` as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.mla.values import real_values
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import empty, spread

__all__ = ["Merge"]


@dataclass(frozen=True)
class Merge:
    """A call of `merge_attn_states`.

    pairs     the two lse that occur in turn, row by row and head by head: an infinity, or a number
              to which random ones are added. A part that is empty was never written: NaN
    dtype     of the parts; out  of the output that is passed, "" for none
    in_place  "" or the parts that out and lse are: "aa", "bb", "ab"
    layout    of lse_a and lse_b, and of a lse that is passed: "" or "head-major"
    far       "out_a", "out_b", "lse_a", "lse_b", "out" or "lse"
    """

    tokens: int
    heads: int
    width: int = 128
    pairs: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    dtype: str = "bf16"
    out: str = ""
    in_place: str = ""
    layout: str = ""
    gap: int = 0
    far: str = ""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        tokens, heads, call = self.tokens, self.heads, dict[str, Any]()
        turn = torch.arange(tokens)[:, None] + torch.arange(heads)
        for part, name in enumerate("ab"):
            base = torch.tensor([pair[part] for pair in self.pairs])[turn % len(self.pairs)]
            lse = base.to(make.device) + make.randn(tokens, heads, dtype=torch.float32)
            out = real_values(make, tokens, heads, self.width).masked_fill(
                (lse.abs() == inf)[..., None], torch.nan if make.poisons else 0.0
            )
            call[f"out_{name}"] = self._laid(make, f"out_{name}", out.to(DTYPES[self.dtype]))
            call[f"lse_{name}"] = self._laid(make, f"lse_{name}", lse)
        if self.in_place:
            one, other = tuple(self.in_place)
            return {**call, "out": call[f"out_{one}"], "lse": call[f"lse_{other}"]}
        if self.out:
            out = empty(make, tokens, heads, self.width, dtype=DTYPES[self.out])
            call["out"] = self._laid(make, "out", out)
        if self.layout or self.far == "lse":
            lse = empty(make, tokens, heads, dtype=torch.float32)
            call["lse"] = self._laid(make, "lse", lse)
        return call

    def _laid(self, make: Maker, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with the strides that the call gives it."""
        if self.far == name:
            return make.far(tensor)
        if name.startswith("lse"):
            return tensor.T.contiguous().T if self.layout == "head-major" else tensor
        return spread(make, tensor, self.gap)

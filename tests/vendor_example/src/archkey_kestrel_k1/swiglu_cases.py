# SPDX-License-Identifier: Apache-2.0
"""Cases of kestrel_swiglu: experts of real models, edges, and random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.distributions import ACTIVATIONS, activations

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["ACCURACY", "CASES", "random"]


@dataclass(frozen=True)
class _Call:
    """Sizes of a call; `spread` is the standard deviation of x, `gap` what lies between rows."""

    tokens: int
    width: int
    dtype: str = "bfloat16"
    limit: float | None = None
    spread: float = 1.0
    gap: int = 0
    far: bool = False
    in_place: bool = False

    def __str__(self) -> str:
        parts = [f"T={self.tokens}, N={self.width}, {self.dtype}"]
        parts += [f"limit {self.limit}"] * (self.limit is not None)
        parts += [f"spread {self.spread:g}"] * (self.spread != 1)
        parts += [f"gap {self.gap}"] * (self.gap > 0)
        parts += ["far rows"] * self.far + ["in place"] * self.in_place
        return ", ".join(parts)

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        dtype = getattr(torch, self.dtype)
        x = make.randn(self.tokens, 2 * self.width + self.gap, dtype=dtype)
        x = (x * self.spread)[:, : 2 * self.width]
        if self.far:
            x = make.far(x)
        out = {"out": x[:, : self.width]} if self.in_place else {}
        return {"x": x, "limit": self.limit, **out}


@dataclass(frozen=True)
class _Real:
    """A call on numbers of `kind`, as real models have them."""

    kind: str
    tokens: int
    width: int

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        x = activations(make, self.kind, self.tokens, 2 * self.width)
        return {"x": x.to(torch.bfloat16), "limit": None}


ACCURACY = tuple(
    AccuracyCase("kestrel_swiglu", kind, "T=300, N=512", _Real(kind, 300, 512), edge=True)
    for kind in ACTIVATIONS
)


def _case(model: str, call: _Call, edge: bool = False) -> Case:
    return Case("kestrel_swiglu", model, str(call), call, edge)


CASES = (
    _case("DeepSeek-V3 expert", _Call(256, 2048)),
    _case("gpt-oss-120b expert", _Call(256, 2880, limit=7.0)),
    _case("no token", _Call(0, 64), edge=True),
    _case("width of one", _Call(3, 1, "float32"), edge=True),
    _case("gates that underflow", _Call(5, 96, "float32", spread=100.0), edge=True),
    _case("everything is clamped", _Call(5, 96, limit=0.01), edge=True),
    _case("rows of a wider tensor", _Call(9, 33, "float16", gap=7), edge=True),
    _case("over its own gate", _Call(9, 64, in_place=True), edge=True),
    _case("far rows", _Call(3, 32, far=True), edge=True),
)


def random(operator: str, size: int = 1) -> SearchStrategy[Case]:
    """Random cases; needs hypothesis, which is an optional dependency."""
    from hypothesis import strategies as st

    calls = st.builds(
        _Call,
        tokens=st.integers(0, 40 * size),
        width=st.integers(1, 600 * size),
        dtype=st.sampled_from(("bfloat16", "float16", "float32")),
        limit=st.sampled_from((None, 7.0, 0.5)),
        spread=st.sampled_from((1.0, 10.0)),
        gap=st.integers(0, 9),
        in_place=st.booleans(),
    )
    return calls.map(lambda call: _case("random", call))

# SPDX-License-Identifier: Apache-2.0
"""Random valid metadata for rmsnorm_quant. Addresses past 2^31 are left to the edge cases."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.rmsnorm.strategies import dtypes, layouts, tokens
from archkey.conformance.cases.rmsnorm_quant.inputs import Quant
from archkey.conformance.cases.spec import randoms
from archkey.ops._rmsnorm_quant_kinds import KINDS, TILES

__all__ = ["strategy"]

# Rows too small for their FP4 or FP8 codes, or not finite, are edge cases.
_VALUES = st.sampled_from(("normal", "shifted", "zero rows"))


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with `size` times as many rows as an interpreter would take."""
    return randoms(operator, _calls(size)) if operator == "rmsnorm_quant" else None


def _width(draw: st.DrawFn, quant: str) -> tuple[int, int]:
    """(N, group_size) that fit the kind; the group is 128 where it is not asked for."""
    if quant == "fp8_group":
        group = draw(st.sampled_from((128, 64, 32)) | st.integers(1, 200))
        return group * draw(st.integers(1, max(1, 800 // group))), group
    return KINDS[quant].multiple * draw(st.integers(1, 700 // KINDS[quant].multiple)), 128


@st.composite
def _calls(draw: st.DrawFn, size: int) -> Quant:
    quant = draw(st.sampled_from(tuple(KINDS)))
    kind = KINDS[quant]
    width, group = _width(draw, quant)
    layout = draw(st.sampled_from(kind.layouts))
    heads = 0 if layout in TILES else draw(st.integers(0, 3))
    dtype, residual = draw(dtypes), draw(st.just("") | dtypes)
    residual_out = draw(st.sampled_from(("", "new", "x"))) if residual else ""
    y = draw(st.sampled_from(("", "x")[: 1 if residual_out == "x" else 2]) | dtypes)
    read_only = "x" not in (residual_out, y)
    x2 = (draw(st.integers(0, 3)), draw(st.integers(0, 600)))
    x2_out: Any = draw(st.sampled_from(("", "x2")) | dtypes) if x2[1] else ""
    both = heads and (x2[0] or not x2[1])
    return Quant(
        draw(tokens(size)),
        width,
        quant,
        group,
        draw(st.sampled_from(("", *kind.modes))),
        layout,
        draw(st.sampled_from((0.0, 0.02))),
        heads,
        dtype,
        draw(dtypes),
        values=draw(_VALUES),
        bias=draw(st.sampled_from((0.0, 1.0))),
        cast=draw(st.booleans()),
        residual=dtype if residual_out == "x" else residual,
        residual_out=residual_out,
        y=y,
        x2=x2,
        x2_out=x2_out,
        x2_eps=draw(st.sampled_from((1e-6, 1e-3))),
        lay=draw(layouts(int(bool(both)), read_only and x2_out != "x2")),
        given=draw(st.booleans()),
        out_lay=draw(layouts(int(bool(both)), False)),
        scale_lay=draw(st.sampled_from(("packed", "slice", "odd"))),
    )

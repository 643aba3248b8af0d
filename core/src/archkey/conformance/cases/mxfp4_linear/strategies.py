# SPDX-License-Identifier: Apache-2.0
"""Random valid metadata for mxfp4_linear. Addresses past 2^31 are left to the edge cases."""

from __future__ import annotations

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.mxfp4_linear.inputs import PACKED, Linear
from archkey.conformance.cases.rmsnorm.strategies import dtypes, layouts
from archkey.conformance.cases.spec import randoms

__all__ = ["strategy"]


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with `size` times as many rows as an interpreter would take."""
    return randoms(operator, _calls(size)) if operator == "mxfp4_linear" else None


@st.composite
def _calls(draw: st.DrawFn, size: int) -> Linear:
    dtype = draw(dtypes | st.just(PACKED))
    layout = draw(st.sampled_from(("row", "shuffled_gfx950"))) if dtype == PACKED else "row"
    few = st.integers(0, 6) | st.integers(0, 70 * size)
    one = few.map(lambda n: (n,))
    more = st.lists(st.integers(1, 4), max_size=4).map(tuple)
    tokens = draw(one if layout != "row" else one | more)
    out = draw(st.just("") | dtypes)
    # float16 does not hold what the wide ones make, and x would not be 2^60.
    narrow = "fp16" in (dtype, out)
    scales = draw(st.sampled_from(("normal", "NaN") if narrow else ("normal", "NaN", "wide")))
    # "repeated" repeats the first entry, "heads" and gaps leave no evenly spaced rows of four.
    strided = 1 <= len(tokens) <= 2 and tokens[0] > 0
    return Linear(
        tokens,
        2 * draw(st.integers(1, 100) | st.integers(1, 300)),
        draw(st.integers(1, 20) | st.integers(1, 150)),
        dtype,
        layout,
        bias=draw(st.just("") | dtypes),
        out=out,
        scales=scales,
        values=draw(st.sampled_from(("normal", "normal", "zeros", "not finite"))),
        lay=draw(layouts(int(len(tokens) == 2), True)) if strided else "packed",
        weight_lay=draw(layouts(0, False)),
        scale_lay=draw(layouts(0, False)) if strided else "packed",
        out_lay=draw(layouts(int(len(tokens) == 2), False)) if strided else "packed",
        own_dtypes=draw(st.booleans()),
    )

# SPDX-License-Identifier: Apache-2.0
"""Random valid metadata for the RMSNorm family. Addresses past 2^31 are left to the edge cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.rmsnorm.inputs import CASTS_TO_0_7, AddNorm, Norm, QkNorm
from archkey.conformance.cases.spec import randoms

__all__ = ["dtypes", "layouts", "strategy", "tokens", "widths"]

dtypes = st.sampled_from(("bf16", "fp16", "fp32"))
_VALUES = st.sampled_from(("normal", "tiny", "shifted", "zero rows", "last column", "not finite"))
_MODELS = (128, 512, 1536, 2304, 4096, 6144, 7168, 18432)


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with `size` times as many rows as an interpreter would take."""
    make = _CALLS.get(operator)
    return randoms(operator, make(size)) if make else None


def tokens(size: int) -> st.SearchStrategy[int]:
    """Rows: few, none, or more than fill a tile."""
    return st.integers(0, 6 * size) | st.integers(0, 40 * size)


def widths() -> st.SearchStrategy[int]:
    """Any small width, or one of a model."""
    return st.integers(1, 600) | st.sampled_from(_MODELS)


def layouts(heads: int, repeated: bool) -> st.SearchStrategy[str]:
    """Layouts of rows with last stride 1; `repeated` for inputs that are only read."""
    names = ["packed", "slice", "odd"]
    return st.sampled_from(names + ["heads"] * (heads > 0) + ["repeated"] * repeated)


def _numbers(draw: st.DrawFn) -> dict[str, Any]:
    """Flags and values; a rounding in between is exact for those of `CASTS_TO_0_7` alone."""
    if draw(st.booleans()):
        return {"values": "signs", "eps": CASTS_TO_0_7, "cast": True}
    return {"values": draw(_VALUES), "eps": draw(st.sampled_from((1e-6, 1e-5, 1.0)))}


@st.composite
def _norms(draw: st.DrawFn, size: int) -> Norm:
    heads, out = draw(st.integers(0, 4)), draw(st.sampled_from(("", "x")) | dtypes)
    return Norm(
        draw(tokens(size)),
        draw(widths()),
        heads,
        draw(dtypes),
        draw(dtypes),
        out,
        draw(layouts(heads, out != "x")),
        draw(layouts(heads, False)),
        bias=draw(st.sampled_from((0.0, 1.0, -0.5))),
        **_numbers(draw),
    )


@st.composite
def _adds(draw: st.DrawFn, size: int) -> AddNorm:
    heads, dtype = draw(st.integers(0, 4)), draw(dtypes)
    out = draw(st.sampled_from(("", "x", "residual")) | dtypes)
    # Two outputs never share memory, and the sum has the residual's dtype.
    sums = {"": ("", "new"), "x": ("", "new"), "residual": ("new", "x")}.get(out, ("", "new", "x"))
    residual_out = draw(st.sampled_from(sums))
    return AddNorm(
        draw(tokens(size)),
        draw(widths()),
        heads,
        dtype,
        draw(dtypes),
        out,
        draw(layouts(heads, out not in ("", "x") and residual_out != "x")),
        draw(layouts(heads, False)),
        dtype if residual_out == "x" else draw(dtypes),
        draw(layouts(heads, out != "residual" and residual_out != "")),
        residual_out,
        bias=draw(st.sampled_from((0.0, 1.0, -0.5))),
        **_numbers(draw),
    )


@st.composite
def _qks(draw: st.DrawFn, size: int) -> QkNorm:
    row, out = draw(st.booleans()), draw(st.sampled_from(("", "in place")) | dtypes)
    q, k = (draw(st.tuples(st.integers(0, 4), widths())) for _ in range(2))
    heads = min(q[0], k[0])
    numbers = _numbers(draw)
    return QkNorm(
        draw(tokens(size)),
        (0, 0) if draw(st.booleans()) else q,
        k,
        draw(dtypes),
        draw(dtypes),
        row,
        draw(st.sampled_from((0, 1, 64))),
        draw(layouts(heads, out != "in place")),
        out,
        draw(layouts(heads, False)),
        numbers["eps"],
        numbers.pop("eps") if numbers.get("cast") else draw(st.sampled_from((1e-5, 1e-2))),
        draw(st.sampled_from((0.0, 1.0))),
        **{name: value for name, value in numbers.items() if name != "eps"},
    )


_CALLS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "rmsnorm": _norms,
    "fused_add_rmsnorm": _adds,
    "fused_qk_rmsnorm": _qks,
}

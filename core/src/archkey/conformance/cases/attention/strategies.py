# SPDX-License-Identifier: Apache-2.0
"""Random valid metadata for attention. Addresses past 2^31 are left to the edge cases.

The plain choice comes first everywhere: that is where hypothesis shrinks to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.attention.table_inputs import Ragged, Requests
from archkey.conformance.cases.spec import randoms

__all__ = ["strategy"]

_FLOATS = ("bf16", "fp16", "fp32")
_MODELS = ((64, 64), (128, 128), (256, 256), (192, 128), (80, 80), (512, 512))
_PAGES = (16, 1, 32, 64, 128, 528)
_KINDS = st.sampled_from(("number", "scalar", "tensor", "per_head", "expanded", "transposed"))
_DESCALES = (1.0, 0.75, 0.3, 2)  # an integer is a number, too
_GAPS = st.sampled_from((0, 16, 3))
_INTEGERS = st.sampled_from(("int32", "int64"))
_WHAT = ("q", "k", "v", "out", "table", "bias")


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with sequences `size` times as long as an interpreter would take."""
    make = _CALLS.get(operator)
    return randoms(operator, make(size)) if make else None


def _often(plain: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`plain` half of the time: with every option on, one could hide another."""
    return st.booleans().flatmap(lambda other: others if other else st.just(plain))


@st.composite
def _attention(draw: st.DrawFn, size: int) -> Attention:
    dtype = draw(st.sampled_from((*_FLOATS, "fp8")))
    cache = draw(st.sampled_from(("", "fp8"))) if dtype != "fp8" else ""
    kv_heads, group = draw(st.integers(1, 4)), draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16)))
    widths = st.integers(1, 512)
    dims = draw(st.sampled_from(_MODELS) | widths.map(lambda d: (d, d)) | st.tuples(widths, widths))
    # A rounding to FP8 is up to 0.06 of a number; over a row the average counts.
    out = draw(st.sampled_from((*_FLOATS, "fp8") if dims[1] >= 64 else _FLOATS))
    pairs = ("columns", "blocks", "halves") if dims[0] == dims[1] else ("columns",)
    page = draw(st.sampled_from(_PAGES) | st.integers(1, 40))
    call = Attention(
        draw(_lengths(size)),
        (kv_heads * group, kv_heads),
        dims,
        page,
        dtype,
        cache,
        out,
        draw(st.sampled_from(("new", "", "head-major"))),
        window=draw(_often(0, st.integers(1, 150 * size))),
        softcap=draw(_often(0.0, st.sampled_from((50.0, 2.0, 30)))),
        descales=draw(_descales(dtype)),
        kinds=draw(st.tuples(_KINDS, _KINDS, _KINDS)),
        output_scale=0.02 if out == "fp8" else draw(_often(None, st.sampled_from((0.3, 1, 4.0)))),
        output_kind=draw(st.sampled_from(("number", "scalar", "tensor"))),
        scale=draw(_often(0.0, st.sampled_from((0.02, 0.1)))),
        spare=draw(_often(0, st.integers(0, 5))),
        rows=draw(_often(0, st.integers(0, 3))),
        layout=draw(st.sampled_from(("NHD", "HND"))),
        pair=draw(_often("", st.sampled_from(pairs))),
        gap=draw(_GAPS),
        invariant=draw(st.sampled_from((False, True))),
        apart=" ".join(draw(st.lists(st.sampled_from(_WHAT), unique=True))),
        **draw(_vectors()),
    )
    return draw(_bounded(call))


@st.composite
def _lengths(draw: st.DrawFn, size: int) -> tuple[tuple[int, int], ...]:
    """Decodes alone, verification, or anything; at least one query."""
    keys = st.integers(0, 130 * size)
    most = draw(st.sampled_from((1, 4, 24 * size)))
    queries = st.just(1) if most == 1 else st.integers(0, most)
    sequences = st.lists(st.tuples(queries, keys), min_size=1, max_size=4)
    return tuple(draw(sequences.filter(lambda drawn: any(q for q, _ in drawn))))


@st.composite
def _descales(draw: st.DrawFn, dtype: str) -> tuple[float | None, ...]:
    given = st.sampled_from(_DESCALES)
    q = given if dtype == "fp8" else _often(None, given)
    return draw(q), draw(_often(None, given)), draw(_often(None, given))


@st.composite
def _vectors(draw: st.DrawFn) -> dict[str, Any]:
    """Optional tensors with a number a head, or for two queries."""
    dtypes = st.sampled_from(_FLOATS)
    return {
        "alibi": draw(_often("", dtypes)),
        "sinks": draw(_often("", dtypes)),
        "sink": draw(st.sampled_from((0.0, 3.0, -3.0, -inf))),
        "bias": draw(_often("", dtypes)),
        "tree": draw(st.sampled_from(("", "tree", "blind"))),
        "bias_room": draw(st.sampled_from((0, 5))),
    }


@st.composite
def _bounds(draw: st.DrawFn, tight: int, *loose: int) -> int:
    """0 for a tight bound, or one of those that hold."""
    return draw(st.sampled_from((0, *(bound for bound in loose if bound >= tight))))


@st.composite
def _bounded(draw: st.DrawFn, call: Attention) -> Attention:
    """With bounds of its lengths, and perhaps a workspace."""
    q_lens, kv_lens = zip(*call.lengths, strict=True)
    rows = draw(st.sampled_from((0, 3, -1)))
    workspace = sum(q_lens) + call.spare + rows
    return replace(
        call,
        most_q=draw(_bounds(max(q_lens), 1, 4, 16, 17, 200)),
        most_k=draw(_bounds(max(kv_lens), max(kv_lens) + 300)),
        segments=draw(_often(0, st.sampled_from((1, 2, 3, 8, 16)))),
        segment_rows=rows,
        threshold=draw(st.sampled_from((-1, *(n for n in (0, 1) if n <= workspace)))),
    )


@st.composite
def _tables(draw: st.DrawFn, size: int) -> dict[str, Any]:
    """What both builders of page tables have."""
    swa, slots = draw(st.booleans()), draw(_INTEGERS)
    huge = swa or slots == "int64"
    return {
        "lens": tuple(draw(st.lists(st.integers(0, 200 * size), max_size=6))),
        "page": draw(st.sampled_from((16, 1, 2, 4, 8, 32, 64, 128, 256))),
        "swa": swa,
        "fill_tail": draw(st.sampled_from((True, False))),
        "slots": slots,
        "lengths": draw(_INTEGERS),
        "evicted": draw(st.integers(0, 3)) if swa else 0,
        "negative": draw(_often(0, st.sampled_from((-1, -17, -300)))),
        "base": draw(_often(0, st.just(2**33))) if huge else 0,
        "columns": draw(st.integers(0, 5) | st.just(1500)),
        "rows": draw(st.integers(0, 3)),
        "gap": draw(st.sampled_from((0, 1, 16))),
        "beside": draw(st.booleans()),
    }


def _ragged(size: int) -> st.SearchStrategy[Ragged]:
    return st.builds(
        lambda shared, around: Ragged(**shared, around=around),
        _tables(size),
        st.sampled_from((0, 1, 30)),
    )


@st.composite
def _requests(draw: st.DrawFn, size: int) -> Requests:
    shared = draw(_tables(size))
    draft = draw(st.integers(0, min(8, *shared["lens"], 8)))
    return Requests(**shared, draft=draft, indices=draw(_INTEGERS))


_CALLS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "unified_attention": _attention,
    "ragged_kv_indices_to_page_table": _ragged,
    "req_to_token_to_page_table": _requests,
}

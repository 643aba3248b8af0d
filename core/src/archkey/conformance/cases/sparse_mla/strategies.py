# SPDX-License-Identifier: Apache-2.0
"""Random calls of the sparse MLA operators: hypothesis draws the metadata, the Maker the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.mla.strategies import gap, heads
from archkey.conformance.cases.mla.values import DEEPSEEK_SCALE, GLM_SCALE
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.sparse_mla.rows import Dequantize, Logical, Quantize
from archkey.conformance.cases.spec import randoms

__all__ = ["strategy"]

# The plain choice comes first everywhere: that is where hypothesis shrinks to.
_PAGES = st.sampled_from((64, 1, 2, 16, 48, 128))
_FORMS = st.sampled_from(("3d", "nhd", "hnd"))
_LISTS = st.sampled_from(("full", "minus one", "tail", "holes", "same", "empty rows", "empty"))
_SINKS = st.sampled_from(("", "finite", "inf"))
_OUT = st.sampled_from(("", "bf16", "fp16"))
_LSE = st.sampled_from(("new", "", "head-major"))
_SCALES = st.sampled_from((DEEPSEEK_SCALE, GLM_SCALE, 0.03))
_SLOTS = st.sampled_from(("int64", "int32", ""))
_WIDTHS = {"bf16": (576, 512), "fp8_v32": (576,), "fp8_v32_nope": (512,), "fp8_model1": (512,)}
_PACKED = tuple(name for name in _WIDTHS if name != "bf16")


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with sequences `size` times as long as an interpreter would take."""
    make = _CALLS.get(operator)
    return randoms(operator, make(size)) if make else None


def _format(draw: st.DrawFn) -> dict[str, Any]:
    """A format, a width that it has, and how much of it is V."""
    name = draw(st.sampled_from(tuple(_WIDTHS)))
    width = draw(st.sampled_from(_WIDTHS[name]))
    head_dim_v = draw(st.sampled_from((512, 256, 100, 17, width)))
    return {"kv_format": name, "width": width, "head_dim_v": head_dim_v}


def _blocks(draw: st.DrawFn, page: int, size: int) -> int:
    """Blocks of a pool of at least two slots."""
    return draw(st.integers(2, 2 + 300 * size // page))


@st.composite
def _prefill(draw: st.DrawFn, size: int) -> SparsePrefill:
    form = draw(st.sampled_from(("flat", "unit", "paged")))
    page = draw(_PAGES) if form == "paged" else 1
    return SparsePrefill(
        draw(heads),
        draw(st.integers(1, 5 * size)),
        draw(st.integers(1, 150 * size)),
        **_format(draw),
        blocks=_blocks(draw, page, size),
        page=page,
        form=form,
        lists=draw(_LISTS),
        unit=draw(st.booleans()),
        length=draw(st.booleans()),
        sink=draw(_SINKS),
        gap=draw(gap),
        out=draw(_OUT),
        lse=draw(_LSE),
        scale=draw(_SCALES),
    )


@st.composite
def _decode(draw: st.DrawFn, size: int) -> SparseDecode:
    page, extra_page = draw(_PAGES), draw(_PAGES)
    extra_k = draw(st.one_of(st.just(0), st.integers(1, 100 * size)))
    each = st.sampled_from(("", "batch", "row"))
    return SparseDecode(
        draw(heads),
        draw(st.integers(1, 3 * size)),
        draw(st.integers(1, 150 * size)),
        **_format(draw),
        q_len=draw(st.integers(1, 3)),
        blocks=_blocks(draw, page, size),
        page=page,
        form=draw(_FORMS),
        lists=draw(_LISTS),
        length=draw(each),
        sink=draw(_SINKS),
        extra_k=extra_k,
        extra_blocks=_blocks(draw, extra_page, size),
        extra_page=extra_page,
        extra_length=draw(each) if extra_k else "",
        gap=draw(gap),
        out=draw(_OUT),
        lse=draw(_LSE),
        scale=draw(_SCALES),
    )


@st.composite
def _quantize(draw: st.DrawFn, size: int) -> Quantize:
    name, page = draw(st.sampled_from(_PACKED)), draw(_PAGES)
    blocks = draw(st.integers(2, 2 + 64 * size // page))
    paged, slots = draw(st.booleans()), draw(_SLOTS)
    out = draw(st.sampled_from(("uint8", "int8", "fp8", *(() if slots else ("",)))))
    return Quantize(
        blocks * page if paged else draw(st.integers(1, blocks * page)),
        name,
        "pow2" if name == "fp8_model1" else draw(st.sampled_from(("fp32", "pow2"))),
        blocks,
        page,
        dtype=draw(st.sampled_from(("bf16", "fp16", "fp32"))),
        values=draw(st.sampled_from(("plain", "zeros", "tiny"))),
        slots=slots,
        paged=paged,
        joint=not paged and draw(st.booleans()),
        out=out,
        form=draw(_FORMS),
        gap=draw(gap),
    )


@st.composite
def _dequantize(draw: st.DrawFn, size: int) -> Dequantize:
    page, slots = draw(_PAGES), draw(_SLOTS)
    return Dequantize(
        draw(st.integers(1, 60 * size)),
        draw(st.sampled_from(_PACKED)),
        draw(st.integers(2, 2 + 64 * size // page)),
        page,
        slots=slots,
        out=draw(_OUT),
        form=draw(_FORMS),
        gap=draw(gap),
    )


def _logical(size: int) -> st.SearchStrategy[Logical]:
    return st.builds(
        Logical,
        st.lists(st.integers(0, 300 * size), min_size=1, max_size=4).map(tuple),
        st.integers(1, 200 * size),
        page=st.sampled_from((64, 1, 3, 16, 128)),
        q_len=st.integers(0, 3),
        gap=gap,
    )


_CALLS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "sparse_mla_prefill": _prefill,
    "sparse_mla_decode": _decode,
    "quantize_sparse_kv": _quantize,
    "dequantize_sparse_kv": _dequantize,
    "logical_to_physical_indices": _logical,
}

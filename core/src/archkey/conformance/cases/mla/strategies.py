# SPDX-License-Identifier: Apache-2.0
"""Random calls of the MLA operators: hypothesis draws the metadata, the Maker the values."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.mla.values import DEEPSEEK_SCALE, GLM_SCALE
from archkey.conformance.cases.spec import randoms

__all__ = ["gap", "heads", "strategy"]

_WIDTHS = ((192, 128), (256, 256), (128, 128))
_PAGES = (16, 1, 32, 64, 128)
_DTYPES = ("bf16", "fp16", "fp8")
_LSE = ("new", "", "head-major")
_OUT = ("", "bf16", "fp16")
_SPLITS = (0, 0, 1, 2, 3, 7, 16, 40)
_LSES = (0.0, 4.0, -4.0, 90.0, -90.0, -inf, inf)

# The plain choice comes first everywhere: that is where hypothesis shrinks to.
heads = st.sampled_from((16, 1, 2, 3, 8, 9, 12, 32, 63, 64, 126, 128))
gap = st.sampled_from((0, 16, 3, 5))
_descale = st.sampled_from((None, 0.37, 2.0, 0.083))
_invariant = st.sampled_from((False, False, True))
_scale = st.sampled_from((DEEPSEEK_SCALE, GLM_SCALE, 0.03))


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with sequences `size` times as long as an interpreter would take."""
    make = _CALLS.get(operator)
    return randoms(operator, make(size)) if make else None


def _names(*names: str) -> st.SearchStrategy[str]:
    """Some of `names`, separated by blanks."""
    return st.lists(st.sampled_from(names), unique=True).map(lambda some: " ".join(sorted(some)))


@st.composite
def _decode(draw: st.DrawFn, size: int) -> Decode:
    window = draw(st.one_of(st.just(-1), st.integers(0, 150 * size)))
    most = 1 if window >= 0 else 5
    kv_lens = tuple(draw(st.lists(st.integers(0, 150 * size), min_size=1, max_size=3 * size)))
    longest = "tight" if window >= 0 else draw(st.sampled_from(("tight", "loose", "")))
    q_lens: int | tuple[int, ...] = draw(st.integers(1, most))
    spare = 0
    if draw(st.booleans()):
        each = st.lists(st.integers(0, most), min_size=len(kv_lens), max_size=len(kv_lens))
        q_lens = tuple(draw(each.filter(any)))
        spare = draw(st.integers(0, 3))
    width = draw(st.sampled_from((576, 512)))
    return Decode(
        draw(heads),
        kv_lens,
        q_lens,
        page=draw(st.sampled_from(_PAGES)),
        width=width,
        head_dim_v=draw(st.sampled_from((512, 256, 100, 17, width))),
        dtype=(dtype := draw(st.sampled_from(_DTYPES))),
        cache=draw(st.sampled_from(("", "fp8"))) if dtype != "fp8" else "",
        q_descale=draw(_descale),
        kv_descale=draw(_descale),
        tensors=draw(_names("q", "kv")),
        causal=draw(st.booleans().map(lambda drawn: not drawn)),
        window=window,
        form=draw(st.sampled_from(("3d", "nhd", "hnd"))),
        gap=draw(gap),
        spare=spare,
        out=draw(st.sampled_from(_OUT)),
        lse=draw(st.sampled_from(_LSE)),
        longest=longest,
        scale=draw(_scale),
        invariant=(invariant := draw(_invariant)),
        splits=draw(st.sampled_from((0, 1) if invariant else _SPLITS)),
    )


@st.composite
def _prefill(draw: st.DrawFn, size: int) -> Prefill:
    lengths = st.lists(
        st.tuples(st.integers(0, 40 * size), st.integers(0, 100 * size)), min_size=1, max_size=3
    )
    spare = draw(st.integers(0, 3))
    q_lens, k_lens = zip(
        *draw(lengths.filter(lambda drawn: spare or any(q for q, _ in drawn))), strict=True
    )
    kv_heads, group = draw(st.sampled_from(((4, 1), (1, 1), (3, 1), (2, 4), (3, 3), (9, 1))))
    return Prefill(
        kv_heads * group,
        q_lens,
        k_lens,
        widths=draw(st.sampled_from(_WIDTHS)),
        kv_heads=kv_heads if group > 1 else 0,
        dtype=draw(st.sampled_from(_DTYPES)),
        q_descale=draw(_descale),
        k_descale=draw(_descale),
        v_descale=draw(_descale),
        tensors=draw(_names("q", "k", "v")),
        causal=draw(st.booleans().map(lambda drawn: not drawn)),
        projection=draw(st.booleans()),
        gap=draw(gap),
        spare=spare,
        out=draw(st.sampled_from(_OUT)),
        lse=draw(st.sampled_from(_LSE)),
        longest=draw(st.sampled_from(("tight", "loose"))),
        scale=draw(_scale),
        invariant=draw(_invariant),
    )


def _merge(size: int) -> st.SearchStrategy[Merge]:
    pair = st.tuples(st.sampled_from(_LSES), st.sampled_from(_LSES))
    return st.builds(
        Merge,
        st.integers(1, 20 * size),
        heads,
        width=st.sampled_from((128, 256, 512, 64, 100, 127)),
        pairs=st.lists(pair, min_size=1, max_size=4).map(tuple),
        dtype=st.sampled_from(("bf16", "fp16", "fp32")),
        out=st.sampled_from(("", "bf16", "fp16", "fp32")),
        in_place=st.sampled_from(("", "aa", "bb", "ab", "ba")),
        layout=st.sampled_from(("", "head-major")),
        gap=gap,
    )


_CALLS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "mla_decode": _decode,
    "mla_prefill": _prefill,
    "merge_attn_states": _merge,
}

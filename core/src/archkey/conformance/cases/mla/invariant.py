# SPDX-License-Identifier: Apache-2.0
"""MLA with batch_invariant, and the same sequences in other batches, in chunks, token by token.

Every arrangement of a decode writes its latents into pages of its own; what its queries do not see
is poisoned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.mla.inputs import Decode, Prefill
from archkey.conformance.cases.spec import describe

__all__ = ["CASES"]

Part = tuple[int, int, int]
"""Queries of a sequence: its number, the first and the end."""

Call = Decode | Prefill

_CUTS = (0, 1, 8, 25, 10**9)
"""Queries at which a prefill is cut: chunks of 1, of odd numbers, and the rest."""


def _again(call: Any, make: Maker) -> Iterator[Arrangement]:
    """Of a Decode or a Prefill.

    No sequence of `call` has more queries than keys: what comes before them has no name then.
    """
    sequences = call.drawn(make)
    q_lens = [len(sequence.q) for sequence in sequences]
    starts = list(accumulate(q_lens, initial=0))

    def entire(about: str, **changes: Any) -> Arrangement:
        return Arrangement(about, replace(call, **changes).of(make, sequences), range(starts[-1]))

    def arranged(about: str, parts: list[Part], q_len: int = 0) -> Arrangement:
        cut = [_cut(call, i, sequences[i], begin, end) for i, begin, end in parts]
        each = tuple(end - begin for _, begin, end in parts)
        keys = {_KEYS[type(call)]: tuple(length for length, _ in cut)}
        inputs = replace(call, q_lens=q_len or each, **keys).of(make, [own for _, own in cut])
        rows = [starts[i] + t for i, begin, end in parts for t in range(begin, end)]
        return Arrangement(about, inputs, rows)

    whole = [(i, 0, n) for i, n in enumerate(q_lens)]
    for part in whole:
        if part[2]:
            yield arranged("each alone", [part])
    yield arranged("among others, in another order", [*whole[::-1], whole[0]])
    yield entire("under looser bounds", longest="loose")
    for begin, end in pairwise(_CUTS):
        chunk = [(i, begin, min(end, n)) for i, n in enumerate(q_lens) if begin < n]
        if chunk:
            yield arranged(f"in chunks, from query {begin}", chunk)
    tokens = [(i, t, t + 1) for i, n in enumerate(q_lens) for t in range(n)]
    yield arranged("token by token", tokens)
    if isinstance(call, Decode):
        yield entire("on other pages")
        yield entire("without bounds", longest="")
        yield entire("in one split", splits=1)
        yield arranged("token by token, not ragged", tokens, q_len=1)


_KEYS: Mapping[type, str] = MappingProxyType({Decode: "kv_lens", Prefill: "k_lens"})
"""What the lengths of keys are called."""


def _cut(call: Any, number: int, whole: Any, begin: int, end: int) -> tuple[int, Any]:
    """How many keys there are once queries up to `end` are, and what these queries see."""
    later = len(whole.q) - end if call.causal else 0
    q, *keys = whole
    seen = (part[: len(part) - later] for part in keys)
    lengths: tuple[int, ...] = getattr(call, _KEYS[type(call)])
    return lengths[number] - later, type(whole)(q[begin:end], *seen)


# 16 bits hide most sums in another order: hundreds of keys, and float16, which hides fewer.
_LENGTHS: dict[str, Any] = {"q_lens": (1, 0, 9, 4, 1), "kv_lens": (260, 7, 40, 4, 16)}
_FEW: dict[str, Any] = {"q_lens": (1, 3), "kv_lens": (200, 70)}
_D = Decode(16, dtype="fp16", **_LENGTHS, invariant=True)
_FP8: dict[str, Any] = {"dtype": "fp8", "q_descale": 0.37, "kv_descale": 0.083}
_CACHE: dict[str, Any] = {"cache": "fp8", "kv_descale": 0.083, "tensors": "kv"}

_DECODE = (
    _D,
    replace(_D, dtype="bf16"),
    replace(_D, heads=1),
    replace(_D, heads=128, **_FEW),
    replace(_D, page=1),
    replace(_D, width=512),
    replace(_D, width=512, heads=1, page=1),
    replace(_D, q_lens=4, kv_lens=(260, 33, 4)),
    replace(_D, q_lens=1, kv_lens=(260, 33, 0, 7), dtype="bf16"),
    replace(_D, q_lens=1, kv_lens=(260, 33, 0, 7), window=200),
    replace(_D, **_FEW, causal=False),
    replace(_D, **_FP8, out="fp16"),
    replace(_D, **_FP8, page=1, heads=1),
    replace(_D, **_CACHE),
    replace(_D, **_CACHE, dtype="bf16", width=512, page=1),
)

_P = Prefill(2, (1, 0, 11, 33, 3), (130, 7, 70, 33, 3), dtype="fp16", invariant=True)
_FP8_QKV: dict[str, Any] = {
    "dtype": "fp8",
    "q_descale": 0.37,
    "k_descale": 0.083,
    "v_descale": 0.0191,
}
_PREFILL = (
    _P,
    replace(_P, dtype="bf16", projection=True),
    replace(_P, heads=1),
    replace(_P, heads=6, kv_heads=2),
    replace(_P, heads=16, q_lens=(1, 3), k_lens=(70, 20)),
    replace(_P, widths=(256, 256), q_lens=(1, 9), k_lens=(200, 33)),
    replace(_P, widths=(128, 128)),
    replace(_P, causal=False, q_lens=(2, 9), k_lens=(200, 33)),
    replace(_P, **_FP8_QKV, out="fp16"),
    replace(_P, **_FP8_QKV, widths=(256, 256), q_lens=(1, 9), k_lens=(130, 33)),
)

_SERVED: dict[str, Any] = {"kv_lens": (9000, 1001, 4, 2995, 640), "page": 64}
_MIXED: dict[str, Any] = {"q_lens": (1, 4, 3, 33, 130), **_SERVED}
_V3 = Decode(128, **_SERVED, invariant=True)
_LARGE = (
    _V3,
    replace(_V3, heads=16, **_MIXED),
    replace(_V3, heads=16, **_MIXED, **_FP8),
    replace(_V3, heads=8, **_MIXED, **_CACHE),
    replace(_V3, heads=16, page=1, q_lens=2),
    Prefill(16, (1, 0, 333, 1030), (4000, 40, 1500, 1030), projection=True, invariant=True),
    Prefill(8, (1, 33, 300), (2100, 1000, 300), (256, 256), projection=True, invariant=True),
    Prefill(8, (1, 33, 300), (2100, 1000, 300), **_FP8_QKV, invariant=True),
)


def _case(call: Call, **kind: bool) -> Case:
    operator = "mla_decode" if isinstance(call, Decode) else "mla_prefill"
    about, again = "same bits in any batch", partial(_again, call)
    return Case(operator, about, describe(call), call, **kind, again=again)


CASES = (
    *(_case(call, edge=True) for call in (*_DECODE, *_PREFILL)),
    *(_case(call, large=True) for call in _LARGE),
)

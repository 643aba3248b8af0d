# SPDX-License-Identifier: Apache-2.0
"""Calls with batch_invariant, and the same sequences in other batches, in chunks, token by token.

Every arrangement writes its keys into pages of its own; what its queries do not see is poisoned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from math import inf
from typing import Any

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.attention.inputs import Attention, Sequence
from archkey.conformance.cases.spec import describe

__all__ = ["CASES"]

Part = tuple[int, int, int]
"""Queries of a sequence: its number, the first and the end."""


def _again(call: Attention, make: Maker) -> Iterator[Arrangement]:
    """No sequence of `call` has more queries than keys: what comes before them has no name then."""
    vectors, sequences = call.drawn(make)
    q_lens = [q_len for q_len, _ in call.lengths]
    starts = list(accumulate(q_lens, initial=0))

    def arranged(about: str, parts: list[Part], bounded: Attention = call) -> Arrangement:
        cut = [_cut(call, sequences[i], i, begin, end) for i, begin, end in parts]
        lengths = tuple(length for length, _ in cut)
        inputs = replace(bounded, lengths=lengths).of(make, vectors, [own for _, own in cut])
        rows = [starts[i] + t for i, begin, end in parts for t in range(begin, end)]
        return Arrangement(about, inputs, rows)

    whole = [(i, 0, n) for i, n in enumerate(q_lens)]
    for part in whole:
        if part[2]:
            yield arranged("each alone", [part])
    yield arranged("among others, in another order", [*whole[::-1], whole[0]])
    yield arranged("on other pages", whole)
    longest = max(kv_len for _, kv_len in call.lengths)
    loose = replace(call, most_q=2 * max(q_lens) + 100, most_k=longest + 3000)
    yield arranged("under looser bounds", whole, loose)
    for begin, end in pairwise(_CUTS):
        chunk = [(i, begin, min(end, n)) for i, n in enumerate(q_lens) if begin < n]
        if chunk:
            yield arranged(f"in chunks, from query {begin}", chunk)
    tokens = [(i, t, t + 1) for i, n in enumerate(q_lens) for t in range(n)]
    yield arranged("token by token", tokens)


_CUTS = (0, 1, 8, 25, 10**9)
"""Queries at which a prefill is cut: chunks of 1, of odd numbers, and the rest."""


def _cut(
    call: Attention, whole: Sequence, number: int, begin: int, end: int
) -> tuple[tuple[int, int], Sequence]:
    """Lengths of a part of a sequence, its queries, and the keys that they see."""
    q_len, kv_len = call.lengths[number]
    length = end - begin, kv_len - q_len + end
    first = call.first(q_len, kv_len)  # of the keys that `whole` has
    seen = slice(call.first(*length) - first, length[1] - first)
    return length, Sequence(whole.q[begin:end], whole.k[seen], whole.v[seen])


# Kernels split no few keys, and 16 bits hide a sum in another order: 600 keys, and mostly float32.
_LENGTHS = ((1, 600), (0, 7), (27, 161), (9, 9), (1, 16))
_SERVED = ((1, 4), (1, 1001), (1, 1998), (1, 2995), (1, 9000), (33, 900), (130, 130), (3, 3))

_FP32: dict[str, Any] = {"dtype": "fp32", "out": "fp32"}
_FP8: dict[str, Any] = {"dtype": "fp8", "descales": (0.75, 0.5, 0.25), "kinds": ("tensor",) * 3}
_CACHE: dict[str, Any] = {"cache": "fp8", "descales": (None, 0.5, 0.25), "kinds": ("tensor",) * 3}
_GPT_OSS: dict[str, Any] = {"window": 20, "sinks": "bf16"}

_EDGES: tuple[dict[str, Any], ...] = (
    *({"heads": (5, 1), "dims": (d, d), **_FP32} for d in (64, 128, 192, 256)),
    *({"heads": (5, 1), "dims": (d, d)} for d in (128, 256)),
    {"heads": (6, 2), "dims": (192, 128), **_FP32},
    {"page": 1, "window": 1},
    {"page": 64, "layout": "HND"},
    {"page": 20, "dims": (80, 80), **_FP32},
    _GPT_OSS,
    {**_GPT_OSS, **_FP32, "window": 300},
    {**_FP32, "softcap": 2.0, "alibi": "fp32"},
    {"sinks": "fp32", "sink": -inf, "dtype": "fp16", "out": "fp16"},
    {**_CACHE, **_FP32},
    {**_CACHE, **_GPT_OSS, "heads": (5, 1), "dims": (128, 128), "page": 64},
    _FP8,
    {**_FP8, **_GPT_OSS, "softcap": 2.0, "alibi": "bf16", "dims": (256, 256)},
)

_LARGE: tuple[dict[str, Any], ...] = (
    {"heads": (8, 1), "dims": (256, 256)},
    {"heads": (5, 1), "dims": (128, 128), **_CACHE, "page": 64},
    {"heads": (16, 2), "window": 128, "sinks": "bf16"},
    {"heads": (16, 2), "dims": (128, 128), **_FP8},
    {"heads": (16, 2), "window": 128, "sinks": "bf16", "softcap": 30.0},
    {"heads": (8, 2), "dims": (128, 128), "alibi": "bf16"},
)


def _case(call: Attention, **kind: bool) -> Case:
    about, again = "same bits in any batch", partial(_again, call)
    return Case("unified_attention", about, describe(call), call, **kind, again=again)


CASES = (
    *(_case(Attention(_LENGTHS, **fields, invariant=True), edge=True) for fields in _EDGES),
    *(_case(Attention(_SERVED, **fields, invariant=True), large=True) for fields in _LARGE),
)

# SPDX-License-Identifier: Apache-2.0
"""Decodes whose keys are cut into a given number of parts, each several times over.

A kernel may be right in one call and wrong in the next, identical one: with 16 splits aiter's
sparse decode gave NaN in about half of them (aiter#4350). So each call is made several times, which
are to have the same bits; that all split counts agree follows from the one truth that each is held
against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.mla.inputs import Decode
from archkey.conformance.cases.spec import describe

__all__ = ["CASES"]

_SPLITS = (1, 2, 3, 7, 16, 40)
"""More than there are steps of keys at the end: parts without keys."""


def _again(call: Decode, times: int, make: Maker) -> Iterator[Arrangement]:
    inputs = call(make)
    rows = range(inputs["q"].shape[:-2].numel())
    return (Arrangement("once more", inputs, rows) for _ in range(times))


# Sequences of several steps, without keys, and with fewer keys than a step or a split has.
_D = Decode(16, (150, 0, 5))
_FP8: dict[str, Any] = {"dtype": "fp8", "q_descale": 0.37, "kv_descale": 0.083}
_EDGES = (
    *(replace(_D, splits=n) for n in _SPLITS),
    *(replace(_D, splits=n, page=1, q_lens=(2, 0, 4)) for n in (3, 16)),
    *(replace(_D, splits=n, **_FP8, heads=3) for n in (2, 40)),
    replace(_D, splits=7, cache="fp8", kv_descale=0.083, heads=9),
    replace(_D, splits=16, width=512, q_lens=2),
    replace(_D, splits=3, window=70),
    replace(_D, splits=7, kv_lens=(0, 0)),
    replace(_D, splits=7, longest="loose"),
)

_V3 = Decode(128, (4001, 0, 17, 2048), q_lens=2)
_LARGE = (
    *(replace(_V3, splits=n) for n in (*_SPLITS, 1024)),
    *(replace(_V3, splits=n, heads=16, page=1, **_FP8) for n in (3, 16)),
)


def _case(call: Decode, times: int, **kind: bool) -> Case:
    about, again = "every split count, time and again", partial(_again, call, times)
    return Case("mla_decode", about, describe(call), call, **kind, again=again)


CASES = (
    *(_case(call, 2, edge=True) for call in _EDGES),
    *(_case(call, 4, large=True) for call in _LARGE),
)

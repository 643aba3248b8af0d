# SPDX-License-Identifier: Apache-2.0
"""MLA on the numbers of real models, for level accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.case import Maker
from archkey.conformance.cases.distributions import KINDS, about_windows, draw
from archkey.conformance.cases.mla.inputs_decode import Cached, Decode
from archkey.conformance.cases.mla.inputs_prefill import Prefill, Ragged
from archkey.conformance.cases.mla.values import stored
from archkey.conformance.cases.tensors import dtype_of

__all__ = ["CASES"]

_DESCALE = 0.37
"""Of an FP8 cache: no power of two, and the largest keys, of some hundred, just fit."""


@dataclass(frozen=True)
class RealDecode(Decode):
    """A call of `mla_decode`; kind  of its numbers, see `distributions`."""

    kind: str = ""

    def _sequences(self, make: Maker) -> Iterator[Cached]:
        """The row's own number says what it wants, so each sequence has one query."""
        dtypes = [dtype_of(make, name) for name in (self.dtype, self.cache or self.dtype)]
        for row, kv_len in enumerate(self.kv_lens):
            shape = 1, self.heads, self.width
            q, k, _ = draw(make, self.kind, shape, (kv_len, 1), self.scale, row=row)
            yield Cached(
                stored(q, dtypes[0], self.q_descale), stored(k[:, 0], dtypes[1], self.kv_descale)
            )


@dataclass(frozen=True)
class RealPrefill(Prefill):
    """A call of `mla_prefill`; kind  of its numbers, see `distributions`."""

    kind: str = ""

    def _sequences(self, make: Maker) -> Iterator[Ragged]:
        dtype, (d, dv) = dtype_of(make, self.dtype), self.widths
        for q_len, k_len in zip(self.q_lens, self.k_lens, strict=True):
            shape, keys = (q_len, self.heads, d), (k_len, self.kv_heads or self.heads)
            seen = k_len - q_len + 1
            drawn = draw(make, self.kind, shape, keys, self.scale, dv, seen=seen)
            numbers = zip(drawn, self._descales(), strict=True)
            yield Ragged(*(stored(x, dtype, descale) for x, descale in numbers))


# An interpreter has time for some.
_DECODES = (
    ("outlier channels", "fp8", 64),
    ("outlier channels", "", 128),
    ("sink", "fp8", 128),
    ("windows of keys", "fp8", 64),
    ("near ties", "", 64),
)
_PREFILLS = (("outlier channels", 64), ("sink", 128))
_SIZES: tuple[tuple[tuple[int, ...], bool], ...] = (
    ((4096, 8191, 1000, 2048), False),
    ((8192, 4001, 2048, 3000) * 128, True),
)


def _decode(kind: str, cache: str, heads: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    label = f"{cache or 'bf16'} cache, H={heads}, {len(lengths)} sequences"
    descale = _DESCALE if cache else None
    return {
        "operator": "mla_decode",
        "model": kind,
        "label": f"{label}, kv {min(lengths)}-{max(lengths)}",
        "inputs": RealDecode(heads, lengths, cache=cache, kv_descale=descale, kind=kind),
        "about": about_windows(kind, lengths),
    }


def _decodes() -> Iterator[AccuracyCase]:
    for kind, cache, heads in _DECODES:
        yield AccuracyCase(**_decode(kind, cache, heads, (300, 270)), edge=True)
    for i, kind in enumerate(KINDS):
        for j, cache in enumerate(("", "fp8")):
            for lengths, large in _SIZES:
                call = _decode(kind, cache, (64, 128)[(i + j) % 2], lengths)
                yield AccuracyCase(**call, large=large)


def _prefill(kind: str, heads: int, q_len: int, k_len: int) -> dict[str, Any]:
    return {
        "operator": "mla_prefill",
        "model": kind,
        "label": f"bf16, H={heads}, {q_len} queries, {k_len} keys",
        "inputs": RealPrefill(heads, (q_len,), (k_len,), kind=kind),
        "about": about_windows(kind, [k_len - q_len + 1] * q_len),
    }


def _prefills() -> Iterator[AccuracyCase]:
    for kind, heads in _PREFILLS:
        yield AccuracyCase(**_prefill(kind, heads, 4, 290), edge=True)
    for i, kind in enumerate(KINDS):
        yield AccuracyCase(**_prefill(kind, (64, 128)[i % 2], 8, 1024))
        yield AccuracyCase(**_prefill(kind, (128, 64)[i % 2], 512, 8192), large=True)


CASES = (*_decodes(), *_prefills())

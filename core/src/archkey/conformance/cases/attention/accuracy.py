# SPDX-License-Identifier: Apache-2.0
"""Unified attention on the numbers of real models, for level accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.case import Maker
from archkey.conformance.cases.attention.inputs import Attention, Sequence
from archkey.conformance.cases.distributions import KINDS, about_windows, draw
from archkey.conformance.cases.tensors import dtype_of

__all__ = ["CASES"]


@dataclass(frozen=True)
class RealAttention(Attention):
    """A call of unified_attention; kind  of its numbers, see `distributions`."""

    kind: str = ""

    def _sequences(self, make: Maker) -> list[Sequence]:
        dtypes = [dtype_of(make, name) for name in (self.dtype, *[self.cache or self.dtype] * 2)]
        descales = [1 if x is None else x for x in self.descales]
        (heads, kv_heads), (d, dv) = self.heads, self.dims
        sequences, row = [], 0
        for q_len, kv_len in self.lengths:
            shape, keys = (q_len, heads, d), (kv_len, kv_heads)
            drawn = draw(make, self.kind, shape, keys, d**-0.5, dv, row, kv_len - q_len + 1)
            numbers = zip(drawn, descales, dtypes, strict=True)
            sequences.append(Sequence(*((x / scale).to(dtype) for x, scale, dtype in numbers)))
            row += q_len
        return sequences


# Descales are no powers of two; the largest keys and values, of some hundred, just fit.
_CACHES: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("", (None, None, None)),
    ("fp8", (None, 0.37, 0.61)),
)


# An interpreter has time for the first of these, and for them with FP8 alone.
_SIZES: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("interpreter", ((1, 300), (3, 290))),
    ("cpu", ((1, 8192), (7, 2048))),
    ("card", ((1, 8192), (1, 4001)) * 128 + ((256, 4096),)),
)


def _cases() -> Iterator[AccuracyCase]:
    for i, kind in enumerate(KINDS):
        for cache, descales in _CACHES:
            for size, lengths in _SIZES if cache else _SIZES[1:]:
                heads = (64, 128)[i % 2]
                keys = [n for _, n in lengths]
                label = f"{cache or 'bf16'} cache, H={heads}, {sum(q for q, _ in lengths)} queries"
                call = RealAttention(
                    lengths, (heads, 8), (128, 128), cache=cache, descales=descales, kind=kind
                )
                yield AccuracyCase(
                    "unified_attention",
                    kind,
                    f"{label}, kv {min(keys)}-{max(keys)}",
                    call,
                    about=about_windows(kind, [n - q + 1 for q, n in lengths for _ in range(q)]),
                    edge=size == "interpreter",
                    large=size == "card",
                )


CASES = tuple(_cases())

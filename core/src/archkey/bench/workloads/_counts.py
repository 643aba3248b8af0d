# SPDX-License-Identifier: Apache-2.0
"""What the families of workloads share: labels of sizes, and counts that costs are made of."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch

__all__ = ["KILO", "Seen", "out_bytes", "rate", "seen", "short", "size", "spans"]

KILO = 1024


def short(n: int) -> str:
    """A length as people write it: 8192 is "8k"."""
    return f"{n // KILO}k" if n >= KILO and n % KILO == 0 else str(n)


def size(*tensors: torch.Tensor | None) -> int:
    """Bytes of the elements; strides and None count nothing."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def out_bytes(like: torch.Tensor, out: torch.Tensor | None = None) -> int:
    """Bytes of a number of an attention's output: two, unless `out` or a wider input says else."""
    return out.element_size() if out is not None else max(like.element_size(), 2)


def rate(*operands: torch.Tensor) -> str:
    """The matrix rate, see `Cost`: FP8's where all operands are."""
    return "float8" if all(x.element_size() == 1 for x in operands) else "bfloat16"


def spans(cu_seqlens: torch.Tensor) -> list[int]:
    """The lengths that cumulated lengths `[B + 1]` hold."""
    return [stop - start for start, stop in pairwise(cu_seqlens.tolist())]


class Seen(NamedTuple):
    """What attention of one sequence looks at.

    pairs  of a query and a key that it sees
    keys   that some query sees
    """

    pairs: int
    keys: int


@cache
def seen(queries: int, keys: int, causal: bool = True, window_left: int = -1) -> Seen:
    """What the last `queries` positions of `keys` see; the last query stands at the last key.

    window_left  earlier keys that a query sees, -1 for all
    """
    pairs = 0
    for position in range(keys - queries, keys):
        last = position if causal else keys - 1
        first = max(position - window_left, 0) if window_left >= 0 else 0
        pairs += max(last + 1 - first, 0)
    gone = max(keys - queries - window_left, 0) if window_left >= 0 else 0
    return Seen(pairs, keys - gone if queries else 0)

# SPDX-License-Identifier: Apache-2.0
"""Workloads cut down to what a CPU computes in a moment; heads, widths and options stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

__all__ = ["small"]

_MOST = {"batch": 3, "blocks": 4, "extra_blocks": 8, "keys": 200, "k": 64, "extra_k": 32}
"""Numbers of the same name in every kind of call; a pool of page 1 has more blocks."""


def _few(lengths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The first two and the last, none above `most`."""
    kept = lengths if len(lengths) <= 3 else (*lengths[:2], lengths[-1])
    return tuple(min(n, most) for n in kept)


def small(call: Any) -> Any:
    """`call` with few short sequences and small pools."""
    cut: dict[str, Any] = {
        name: min(getattr(call, name), most)
        for name, most in _MOST.items()
        if isinstance(getattr(call, name, None), int)
    }
    if getattr(call, "page", 64) == 1 and "blocks" in cut:
        cut["blocks"] = 200
    if isinstance(getattr(call, "tokens", None), int):
        cut["tokens"] = min(call.tokens, 7)
    kind = type(call).__name__
    if kind == "Linear":
        cut |= {"tokens": (min(call.tokens[0], 7),), "n": min(call.n, 200), "k": call.k}
    elif kind == "Prefill":
        longer = call.k_lens > call.q_lens
        cut["q_lens"] = _few(call.q_lens, 40)
        cut["k_lens"] = _few(call.k_lens, 90 if longer else 40)
    elif kind == "Attention":
        queries, keys = zip(*call.lengths, strict=True)
        cut["lengths"] = tuple(zip(_few(queries, 90), _few(keys, 90), strict=True))
        cut["window"] = min(call.window, 32)
    elif kind == "Decode":
        cut["kv_lens"] = _few(call.kv_lens, 90)
    elif kind in ("Ragged", "Requests"):
        cut["lens"] = _few(call.lens, 150)
    elif kind in ("ChunkKda", "RecurrentKda"):
        cut["lengths"] = _few(call.lengths, 70)
    elif kind == "Gate":
        cut["lengths"] = _few(call.lengths, 70)
        cut["shape"] = (1, sum(cut["lengths"]) or 70)
    return replace(call, **cut)

# SPDX-License-Identifier: Apache-2.0
"""chunk_kda with batch_invariant, and the same sequences in other batches.

A sequence's own length may say how it is cut, so it is whole in every arrangement. What is
promised is all that belongs to it: rows of o, last state, snapshot, and the states of its chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Any

from archkey.conformance.case import Arrangement, Case, Maker
from archkey.conformance.cases.kda.inputs import ChunkKda
from archkey.conformance.cases.spec import describe
from archkey.conformance.cases.tensors import bounds
from archkey.ops.kda_gate import chunk_layout

__all__ = ["CASES"]

_TOKENS = ("q", "k", "v", "g", "beta")
_STATES = ("initial_state", "track_state", "track_chunk_idx")


def _again(call: ChunkKda, make: Maker) -> Iterator[Arrangement]:
    """`call` has rows past its last sequence, which stand for those of every arrangement."""
    own = call(make)
    chunks = [-(-n // call.chunk) for n in call.lengths]
    starts, first = (list(accumulate(x, initial=0)) for x in (call.lengths, chunks))

    def arranged(about: str, order: list[int], padding: int = 0, bucket: int = -1) -> Arrangement:
        """The sequences in `order`; bucket  rows of padding in chunk_indices that are given."""
        lengths = [call.lengths[n] for n in order]
        tokens = [t for n in order for t in range(starts[n], starts[n + 1])]
        tokens += [starts[-1]] * padding
        inputs = {**own, **{name: own[name][:, tokens] for name in _TOKENS}}
        inputs |= {name: own[name][order] for name in _STATES if own.get(name) is not None}
        ends = bounds(make, lengths, own["cu_seqlens"].dtype)
        inputs |= {"cu_seqlens": ends, "cu_seqlens_cpu": ends.cpu()}
        rows = {"o": tokens, "final_state": order, "track_state": order}
        rows["h"] = [c for n in order for c in range(first[n], first[n + 1])]
        if bucket >= 0:
            count = sum(chunks[n] for n in order) + bucket
            pair = chunk_layout(ends.cpu(), len(tokens), call.chunk, rows=count)
            inputs |= {
                name: x.to(make.device)
                for name, x in zip(("chunk_indices", "chunk_offsets"), pair, strict=True)
            }
        return Arrangement(about, inputs, rows)

    whole = list(range(len(call.lengths)))
    for n in whole:
        if call.lengths[n]:
            yield arranged("each alone", [n])
    yield arranged("among others, in another order", [*whole[::-1], whole[0]], padding=3)
    yield arranged("between sequences without tokens", [n for i in whole for n in (_EMPTY, i)])
    if not call.h:  # its rows of padding belong to nobody
        yield arranged("with chunks of padding", whole, bucket=7)
    if call.lengths[-1] == 1:
        shortest = [whole[-1]] * (_MANY if max(call.lengths) > _LONG else 3)
        yield arranged("beside many others", [*whole, *shortest])


_EMPTY = 1  # of every call's sequences, the one without tokens
_LONG = 1000  # past it an interpreter has no time, and a card gets
_MANY = 300  # sequences more: too many chunks for small_grid

# Segments, if any, are of more than a chunk; float32 shows sums in another order.
_SHORT: dict[str, Any] = {
    "lengths": (130, 0, 65, 64, 1),
    "padding": 2,
    "heads": (1, 2),
    "dims": (64, 64),
    "final": "new",
    "state": "fp32",
    "cpu_lengths": True,
    "invariant": True,
}
_FP32: dict[str, Any] = {"dtype": "fp32"}
_SERVED: dict[str, Any] = {
    "gate": "raw",
    "g_dtype": "bf16",
    "beta": "raw",
    "beta_dtype": "bf16",
    "l2norm": "unit",
}
_LONGER: dict[str, Any] = _SHORT | {
    "lengths": (2100, 0, 9000, 63, 300, 64, 1),
    "dims": (128, 128),
    "heads": (4, 4),
}

_EDGES: tuple[dict[str, Any], ...] = (
    _FP32,
    {**_FP32, "chunk": 32, "low": -20.0},
    {**_SERVED, "v_first": True, "dims": (128, 128), "heads": (1, 1)},
    {**_FP32, "h": True, "track": True, "dims": (60, 100)},
)

_LARGE: tuple[dict[str, Any], ...] = (
    {**_SERVED, "v_first": True},
    {**_SERVED, "bound": -5.0, "safe": True, "state": "bf16"},
    {**_FP32, "low": -0.05},
    {"heads": (2, 6), "dims": (64, 64), "low": -3.2, "h": True},
)


def _case(call: ChunkKda, **kind: bool) -> Case:
    about, again = "same bits in any batch", partial(_again, call)
    return Case("chunk_kda", about, describe(call), call, **kind, again=again)


CASES = (
    *(_case(ChunkKda(**_SHORT | fields), edge=True) for fields in _EDGES),
    *(_case(ChunkKda(**_LONGER | fields), large=True) for fields in _LARGE),
)

# SPDX-License-Identifier: Apache-2.0
"""A prompt after a cached prefix: chunks of the prefix, merged, are one attention over all keys.

Engines read a long prefix in chunks of bounded size: new tokens see each other causally, then every
chunk of the prefix as a whole, and `merge_attn_states` adds what each gave. A batch has one list of
chunks, so a request with a short prefix has empty ones while others have some (sglang#22688).

What each target would choose runs: kernels interpreted or on the card, or the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import archkey
from archkey.conformance.cases.tensors import bounds
from archkey.conformance.judge import maker_of
from archkey.conformance.tolerances import bound, distance
from archkey.reference import mla as reference
from archkey.session import session_of

TARGETS = [
    *("cpu", "cuda_sm90"),
    pytest.param("rocm_gfx942", marks=pytest.mark.slow),  # the other flavour of FP8
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
        ],
    ),
]
V3, GLM = (192, 128), (256, 256)


@dataclass(frozen=True)
class Batch:
    """Requests of (new tokens, cached tokens); the prefix is read `chunk` tokens a request at once.

    spare  rows of q that belong to no request
    """

    requests: tuple[tuple[int, int], ...]
    chunk: int
    widths: tuple[int, int] = V3
    heads: int = 2
    fp8: bool = False
    dtype: torch.dtype = torch.bfloat16
    spare: int = 0

    @property
    def chunks(self) -> list[list[tuple[int, int]]]:
        """Of each chunk, where it begins and ends in each request's prefix."""
        starts = range(0, max(old for _, old in self.requests), self.chunk)
        return [
            [(min(at, old), min(at + self.chunk, old)) for _, old in self.requests] for at in starts
        ]


_TWO_OF_THREE = ((5, 0), (9, 40), (3, 16))
BATCHES = {
    "one request": Batch(((17, 60),), 16),
    "a prefix that ends with a chunk": Batch(((3, 32), (5, 16)), 16),
    "all chunks of a request empty": Batch(_TWO_OF_THREE, 16),
    "GLM, all chunks of a request empty": Batch(_TWO_OF_THREE, 16, GLM),
    "GLM": Batch(((9, 20),), 16, GLM, heads=3),
    "FP8": Batch(_TWO_OF_THREE, 16, fp8=True),
    "GLM FP8": Batch(((4, 33), (2, 0)), 32, GLM, fp8=True),
    "float16": Batch(((5, 0), (9, 33)), 32, dtype=torch.float16),
    "a request without new tokens": Batch(((0, 40), (4, 9), (0, 0)), 32),
    "no request has a prefix": Batch(((5, 0), (3, 0)), 16),
    "rows of no request": Batch(((0, 20), (2, 5)), 16, spare=3),
}


class Tensors:
    """Queries of the new tokens, and keys and values of each request, its prefix first."""

    def __init__(self, batch: Batch, session: Any) -> None:
        self.batch, self.session = batch, session
        self.make = make = maker_of(session)
        dtype = make.fp8 if batch.fp8 else batch.dtype
        (d, dv), heads = batch.widths, batch.heads
        lengths = [new + old for new, old in batch.requests]
        self.new = [new for new, _ in batch.requests]
        self.q = make.randn(sum(self.new) + batch.spare, heads, d).to(dtype)
        self.k = [make.randn(n, heads, d).to(dtype) for n in lengths]
        self.v = [make.randn(n, heads, dv).to(dtype) for n in lengths]
        self.descales = {"q_descale": 0.75, "k_descale": 0.5, "v_descale": 0.25}

    def attend(self, spans: list[tuple[int, int]], causal: bool) -> tuple[Any, Any]:
        """All queries over keys `spans` of each request."""
        return self.session.mla_prefill(  # type: ignore[no-any-return]
            **self.inputs(spans), causal=causal, return_lse=True
        )

    def inputs(self, spans: list[tuple[int, int]]) -> dict[str, Any]:
        """What a call over keys `spans` of each request is made with."""
        lengths = [end - begin for begin, end in spans]
        parts = zip(self.k, self.v, spans, strict=True)
        k, v = zip(*((k[begin:end], v[begin:end]) for k, v, (begin, end) in parts), strict=True)
        return {
            "q": self.q,
            "k": torch.cat(k),
            "v": torch.cat(v),
            "cu_seqlens_q": bounds(self.make, self.new),
            "cu_seqlens_k": bounds(self.make, lengths),
            "max_seqlen_q": max(self.new),
            "max_seqlen_k": max(lengths),
            "softmax_scale": self.batch.widths[0] ** -0.5,
            **self.descales,
        }

    def chunked(self) -> tuple[Any, Any]:
        """New tokens over each other, then each chunk of the prefix, merged in place."""
        requests = self.batch.requests
        out, lse = self.attend([(old, old + new) for new, old in requests], True)
        for spans in self.batch.chunks:
            part = self.attend(spans, False)
            self.session.merge_attn_states(out, lse, *part, out=out, lse=lse)
        return out, lse

    def whole(self) -> list[tuple[int, int]]:
        """All keys."""
        return [(0, old + new) for new, old in self.batch.requests]


def opened(target: str) -> Any:
    """A session of a pretended target, or of the card."""
    if target == "cuda":
        return session_of(torch.device("cuda", torch.cuda.current_device()))
    return archkey.open(target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", list(BATCHES))
def test_chunks_of_a_prefix_are_the_whole(name: str, target: str) -> None:
    session = opened(target)
    tensors = Tensors(BATCHES[name], session)
    inputs = tensors.inputs(tensors.whole()) | {"causal": True}
    want, want_lse = reference.mla_prefill(**inputs, compute_dtype=torch.float64)
    level = "device" if target == "cuda" else "interpreted"
    merges = len(tensors.batch.chunks)
    with torch.inference_mode():
        for found, lse, roundings in (
            (*tensors.attend(tensors.whole(), True), 1),
            (*tensors.chunked(), 1 + merges),
        ):
            # Each merge rounds once more what the parts before were rounded to.
            allowed = bound("mla_prefill", "out", found.dtype, level).value * roundings**0.5
            assert distance(found, want) <= allowed
            assert (
                distance(lse, want_lse, "lse")
                <= bound("mla_prefill", "lse", lse.dtype, level).value
            )


@pytest.mark.parametrize("target", TARGETS)
def test_empty_chunks_change_nothing(target: str) -> None:
    """What a request without a prefix had before the chunks of others, it has after them.

    Its output to the bit: the weight of what was there is 1. An lse may go through base 2.
    """
    session = opened(target)
    batch = BATCHES["all chunks of a request empty"]
    tensors = Tensors(batch, session)
    own = batch.requests[0][0]
    with torch.inference_mode():
        before, lse_before = tensors.attend([(o, o + n) for n, o in batch.requests], True)
        after, lse_after = tensors.chunked()
    assert torch.equal(after[:own], before[:own])
    torch.testing.assert_close(lse_after[:own], lse_before[:own], rtol=1e-6, atol=1e-6)
    assert not torch.equal(after[own:], before[own:])


@pytest.mark.parametrize("target", TARGETS)
def test_rows_without_any_key_stay_empty(target: str) -> None:
    """Rows of no request: every part is 0 and -inf, and so is what is merged from them."""
    session = opened(target)
    batch = BATCHES["rows of no request"]
    with torch.inference_mode():
        out, lse = Tensors(batch, session).chunked()
    assert not out[-batch.spare :].any()
    assert (lse[-batch.spare :] == -torch.inf).all()

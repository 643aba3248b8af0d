# SPDX-License-Identifier: Apache-2.0
"""Random valid metadata for the KDA family. Addresses past 2^31 are left to the edge cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st

from archkey.conformance.case import Case
from archkey.conformance.cases.kda.inputs import ChunkKda, Kda, RecurrentKda
from archkey.conformance.cases.kda.inputs_decode import Gate, Packed
from archkey.conformance.cases.spec import randoms

__all__ = ["strategy"]

_DTYPES = st.sampled_from(("bf16", "fp16", "fp32"))
_STATES = st.sampled_from(("fp32", "bf16"))
_LAYOUTS = st.sampled_from(("packed", "slice", "odd", "heads"))
_HEADS = st.tuples(st.integers(1, 4), st.integers(1, 3)).map(lambda n: (n[0], n[0] * n[1]))
_DIM = st.sampled_from((128, 64, 60, 100, 256, 16)) | st.integers(1, 40)
_DIMS = st.tuples(_DIM, _DIM.filter(lambda dim: dim >= 8))
_FLAG = st.booleans()


def strategy(operator: str, size: int) -> st.SearchStrategy[Case] | None:
    """Cases of `operator`, with `size` times as many tokens as an interpreter would take."""
    make = _CALLS.get(operator)
    return randoms(operator, make(size)) if make else None


def _parameters(draw: st.DrawFn) -> dict[str, Any]:
    """Of a raw gate: A_log may be absent with a bound. A fast one may leave nothing of it."""
    bound = draw(st.sampled_from((None, -5.0, -0.5, -20.0)))
    rates = ("normal", "mixed", "slow", "fast" if bound is None else "absent")
    return {
        "bound": bound,
        "A_log": draw(st.sampled_from(rates)),
        "dt_bias": draw(st.sampled_from(("normal", "extreme", "flat", "absent"))),
        "values": draw(st.sampled_from(("normal", "extreme", "threshold"))),
    }


def _gate(draw: st.DrawFn) -> dict[str, Any]:
    """A raw gate, or a finished one that keeps what safe_gate promises."""
    if draw(_FLAG):
        raw = _parameters(draw)
        bounded = raw["bound"] is not None and raw["bound"] >= -5
        return {"gate": "raw", "safe": bounded and draw(_FLAG), **raw}
    low, flat = draw(st.sampled_from((-1.0, 0.0, -0.3, -5.0, -20.0, -200.0))), draw(_FLAG)
    bounds = [b for b in (None, -5.0) if low >= -5]
    safe = bool(bounds) and draw(_FLAG)
    return {"low": low, "flat": flat, "safe": safe} | (
        {"bound": draw(st.sampled_from(bounds))} if safe else {}
    )


def _sequences(draw: st.DrawFn, size: int) -> dict[str, Any]:
    """A batch of one length, or packed sequences, ragged and empty ones among them."""
    length = st.integers(0, 9 * size) | st.integers(0, 70 * size)
    if draw(_FLAG):
        return {"lengths": (draw(length),), "batch": draw(st.integers(1, 3))}
    return {
        "lengths": tuple(draw(st.lists(length, max_size=5))),
        "padding": draw(st.sampled_from((0, 1, 9))),
        "cpu_lengths": draw(_FLAG),
    }


def _states(draw: st.DrawFn, operator: str, count: int) -> dict[str, Any]:
    """Where states come from and go to, as far as the arguments allow each other."""
    recurrent = operator == "fused_recurrent_kda"
    state = draw(st.just("") | _STATES)
    kinds = ("", "one", "column") + ("tokens",) * recurrent
    slots = draw(st.sampled_from(kinds)) if state and count else ""
    in_place = recurrent and bool(state) and draw(_FLAG)
    if in_place or (slots and not recurrent):
        finals = st.sampled_from(("", "same"))
    else:
        finals = st.sampled_from(("", "new") + ("same",) * (bool(state) and not slots)) | _STATES
    skipped = draw(st.sets(st.integers(0, count - 1))) if slots else ()
    return {
        "state": state,
        "slots": slots,
        "in_place": in_place,
        "final": draw(finals),
        "skipped": tuple(sorted(skipped)),
        "wide": draw(_FLAG),
        "v_first": draw(_FLAG),
        "pool_lay": draw(_LAYOUTS),
        "accepted": draw(st.sampled_from(("", "none", "all", "mixed")))
        if recurrent and slots
        else "",
    }


@st.composite
def _calls(draw: st.DrawFn, operator: str, size: int) -> Kda:
    given = _sequences(draw, size)
    count = given.get("batch") or len(given["lengths"])
    given |= _states(draw, operator, count) | _gate(draw)
    given |= {"beta": draw(st.sampled_from(("given", "raw", "doubled")))}
    # With beta next to 0 and a steep gate nothing is left that an error could be measured by.
    if given["beta"] == "given" and given.get("low", -200.0) >= -5:
        given["sharp"] = draw(_FLAG)
    if operator == "chunk_kda":
        given |= {"chunk": draw(st.sampled_from((64, 32))), "track": draw(_FLAG), "h": draw(_FLAG)}
        given["chunks"] = "batch" not in given and draw(_FLAG)
    kind = ChunkKda if operator == "chunk_kda" else RecurrentKda
    return kind(
        heads=draw(_HEADS),
        dims=draw(_DIMS),
        dtype=draw(_DTYPES),
        g_dtype=draw(_DTYPES),
        beta_dtype=draw(_DTYPES),
        lay=draw(st.just("row") | _LAYOUTS),
        g_lay=draw(_LAYOUTS),
        l2norm=draw(st.sampled_from(("", "unit", "small"))),
        scale=draw(st.sampled_from((None, 1.0, 0.1))),
        out=draw(st.sampled_from(("", "v")) | _DTYPES),
        out_lay=draw(_LAYOUTS),
        **given,
    )


@st.composite
def _packed(draw: st.DrawFn, size: int) -> Packed:
    batch, l2norm = draw(st.integers(0, 6 * size)), draw(_FLAG)
    return Packed(
        batch,
        draw(_HEADS),
        draw(_DIMS),
        draw(_DTYPES),
        draw(_DTYPES),
        draw(_DTYPES),
        **_parameters(draw),
        l2norm=l2norm,
        small=l2norm and draw(_FLAG),
        scale=draw(st.sampled_from((None, 1.0, 0.1))),
        state=draw(_STATES),
        skipped=tuple(sorted(draw(st.sets(st.integers(0, batch - 1) if batch else st.nothing())))),
        column=draw(_FLAG),
        wide=draw(_FLAG),
        lay=draw(st.sampled_from(("packed", "slice", "odd"))),
        pool_lay=draw(_LAYOUTS),
        out_lay=draw(_LAYOUTS),
    )


@st.composite
def _gates(draw: st.DrawFn, sums: bool, size: int) -> Gate:
    parameters = _parameters(draw)
    out = draw(st.sampled_from(("", "buffer", "bf16", "fp32")))
    given: dict[str, Any] = {}
    if sums:
        given = {
            "chunk": draw(st.sampled_from((64, 32))),
            "unit": draw(st.sampled_from(("ln", "log2"))),
        }
        lengths = tuple(draw(st.lists(st.integers(0, 70 * size), max_size=5)))
        shape: tuple[int, ...] = (draw(st.integers(0, 3)), draw(st.integers(0, 70 * size)))
        if lengths:
            shape = (1, sum(lengths) + draw(st.sampled_from((0, 9))))
            given |= {"lengths": lengths, "chunks": draw(_FLAG), "wide": draw(_FLAG)}
    else:
        shape = tuple(draw(st.lists(st.integers(0, 5 * size), max_size=3)))
    return Gate(
        shape,
        draw(st.integers(1, 5)),
        draw(_DIM.filter(lambda dim: dim >= 16)),  # some gates of a row are not 0
        draw(_DTYPES),
        lay=draw(_LAYOUTS),
        out=out,
        out_lay=draw(_LAYOUTS),
        **parameters,
        **given,
    )


_CALLS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "chunk_kda": partial(_calls, "chunk_kda"),
    "fused_recurrent_kda": partial(_calls, "fused_recurrent_kda"),
    "kda_packed_decode": _packed,
    "kda_gate": partial(_gates, False),
    "kda_gate_chunk_cumsum": partial(_gates, True),
}

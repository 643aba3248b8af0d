# SPDX-License-Identifier: Apache-2.0
"""The cases of attention: each wrong kernel fails where it is named; how cases belong together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.conformance import _mistakes_attention, _mistakes_page_table, _wrong
from tests.conformance._mistakes_attention import only_decode
from tests.conformance._wrong import Wrong, given, named

import archkey
from archkey.conformance.case import Maker
from archkey.conformance.judge import judge

OP = "unified_attention"


@_wrong.each((*_mistakes_attention.MISTAKES, *_mistakes_page_table.MISTAKES))
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)


# ---- batch invariance


def test_arrangements_are_other_calls_for_the_same_rows() -> None:
    """Each row is computed again alone, in another batch, in a chunk and as a decode."""
    case = named(OP, "same bits in any batch")[0]
    own = case.inputs(Maker())
    times: Counter[int] = Counter()
    assert case.again is not None
    for _, inputs, rows in case.again(Maker()):
        assert torch.equal(inputs["q"], own["q"][list(rows)])
        assert inputs["batch_invariant"]
        times.update(rows)
    assert set(times) == set(range(len(own["q"])))
    assert min(times.values()) == 6


def test_a_case_counts_the_elements_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one number of each row, where a call has one query a sequence."""

    def change(out: torch.Tensor, lse: torch.Tensor, inputs: dict[str, Any]) -> Any:
        out[:, 0, 0] *= 1.000001 if inputs["max_seqlen_q"] == 1 else 1
        return out, lse

    _wrong.put_in_place(monkeypatch, _mistakes_attention.results(change))
    case = next(case for case in named(OP, "same bits in any batch") if "dtype=fp32" in case.label)
    result = judge(archkey.open("cpu"), case)
    tokens = sum(q_len for q_len, _ in case.inputs.lengths)  # type: ignore[attr-defined]
    assert (result.error, result.tolerance, result.passed) == (tokens, 0.0, False)
    assert result.reason == "out: token by token"


# ---- decode alone, and in a mixed batch


def test_decodes_are_the_same_numbers_alone_and_in_a_mixed_batch() -> None:
    session = archkey.open("cpu")
    for alone, mixed in zip(
        named(OP, "decode alone"), named(OP, "decode in a mixed batch"), strict=True
    ):
        calls = [case.inputs(Maker()) for case in (alone, mixed)]
        rows, others = (call["q"].shape[0] for call in calls)
        assert rows < others
        for call in calls:
            session.unified_attention(**call)
        for name in ("out", "lse"):
            one, other = (call[name][:rows].float() for call in calls)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_bound_of_queries_changes_no_numbers() -> None:
    plain = [
        case for case in named(OP, "equal results under every bound") if "sinks" not in case.label
    ]
    calls = [case.inputs(Maker()) for case in plain]
    assert len({call["max_seqlen_q"] for call in calls}) > 3
    for call in calls[1:]:
        assert torch.equal(call["q"], calls[0]["q"])
        archkey.unified_attention(**call)
    archkey.unified_attention(**calls[0])
    for call in calls[1:]:
        assert torch.equal(call["out"], calls[0]["out"])


def test_what_is_wrong_of_decodes_alone_is_seen_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _wrong.put_in_place(monkeypatch, only_decode(given(window_left=-1)))
    session = archkey.open("cpu")
    assert not all(judge(session, case).passed for case in named(OP, "decode alone"))
    assert all(judge(session, case).passed for case in named(OP, "decode in a mixed batch"))

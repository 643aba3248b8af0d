# SPDX-License-Identifier: Apache-2.0
"""Level accuracy: losses fail by the name of a statistic, sound kernels pass with room to spare."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conformance import _gpu_arithmetic as gpu
from tests.conformance._wrong import REFERENCE, Wrong, given, put_in_place

import archkey
from archkey.conformance import exam, pool
from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.cases import accuracy_of
from archkey.conformance.cases.distributions import KINDS
from archkey.conformance.examine import Options, examine
from archkey.conformance.levels import Item, Level, Outcome
from archkey.ops import OPERATORS

PREFILL, DECODE = "sparse_mla_prefill", "sparse_mla_decode"
ROOM = 0.7
"""Of its limit, the most that a sound kernel may take; a loss takes more than 1.5 of it."""


def hold(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase, kernel: Wrong) -> Outcome:
    """The outcome of `case` for `kernel` in the place of the CPU's."""
    put_in_place(monkeypatch, kernel)
    item = Item(Level.ACCURACY, case.operator, REFERENCE, case.name)
    return examine(archkey.open("cpu"), item, Options(1), lambda name: None)


def cases(operator: str, *words: str, edge: bool = True) -> list[AccuracyCase]:
    """Those whose names have all of `words`; at least one."""
    found = [
        case
        for case in accuracy_of(OPERATORS[operator])
        if case.edge == edge and not case.large and all(word in case.name for word in words)
    ]
    assert found, f"no case of {operator} is about {words}"
    return found


def worst(outcome: Outcome) -> dict[str, float]:
    """By count: how much of its limit it takes."""
    return {
        f"{one['name']} of {one['output']} over {one['over']}": float(one["value"]) / one["limit"]
        for one in outcome.details["statistics"]
    }


def named(cases: list[AccuracyCase]) -> dict[str, Any]:
    return {"argvalues": cases, "ids": [f"{case.operator} {case.name}" for case in cases]}


# What tells each loss: one of these counts is over its limit, and says so first or among others.
TOLD = {
    "scales up to powers of two": "bias of out over a window (rows 0..1)",
    "scales to the nearest power of two": "bias of out over a window (rows 0..1)",
    "scales cut off to bfloat16": "bias of out over a window (rows 0..1)",
    "some codes in the other flavour": "noise of out over a row (row ",
    "a rope column left out": "noise of out over a row (row ",
    "weights in FP8": "noise of out over a row (row ",
    "lse to base 2": "error of lse over a row (row ",
    "0.3 % too small": "bias of out over a window (rows 0..1)",
}


@pytest.mark.parametrize("heads", [64, 128])
@pytest.mark.parametrize("loss", gpu.LOSSES)
def test_a_loss_fails_by_name(monkeypatch: pytest.MonkeyPatch, loss: str, heads: int) -> None:
    """sglang#22723 and its like, in the FP8 cache of DeepSeek-V3.2, at either number of heads."""
    (case,) = cases(DECODE, "outlier channels", "fp8_v32,", f"H={heads},")
    outcome = hold(monkeypatch, case, gpu.sparse(gpu.LOSSES[loss]))
    assert outcome.outcome == "failed"
    assert outcome.reason.startswith("outlier channels: ")
    assert TOLD[loss] in outcome.reason
    assert max(worst(outcome).values()) > 1.5


@pytest.mark.parametrize("case", **named([*cases(DECODE), *cases(PREFILL)]))
def test_a_sound_kernel_passes(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase) -> None:
    outcome = hold(monkeypatch, case, gpu.sparse(gpu.SOUND))
    assert outcome.outcome == "passed", outcome.reason
    assert max(worst(outcome).values()) < ROOM, worst(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("case", **named([*cases(DECODE, edge=False), *cases(PREFILL, edge=False)]))
def test_with_lists_of_2048_too(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase) -> None:
    """The sound kernel passes all of these; each loss that the numbers can show fails them."""
    outcome = hold(monkeypatch, case, gpu.sparse(gpu.SOUND))
    assert outcome.outcome == "passed", outcome.reason
    assert max(worst(outcome).values()) < ROOM, worst(outcome)
    for name, loss in gpu.LOSSES.items():
        if name.startswith("scales") and "fp8_v32" not in case.label:
            continue  # powers of two already, or none
        # Between ties weights do not matter, nor between keys whose values hardly differ.
        if case.model == "near ties" and name == "weights in FP8":
            continue
        outcome = hold(monkeypatch, case, gpu.sparse(loss))
        assert outcome.outcome == "failed", name


@pytest.mark.parametrize("case", **named(cases("mla_decode")))
def test_mla_decode(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase) -> None:
    outcome = hold(monkeypatch, case, gpu.mla_decode(gpu.SOUND))
    assert outcome.outcome == "passed", outcome.reason
    assert max(worst(outcome).values()) < ROOM, worst(outcome)
    for name in ("0.3 % too small", "lse to base 2", "a rope column left out"):
        outcome = hold(monkeypatch, case, gpu.mla_decode(gpu.LOSSES[name]))
        assert outcome.outcome == "failed", name


def too_small(name: str, by: float) -> Wrong:
    """The reference, and an output of it smaller by a share."""

    def kernel(right: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
        results = right(**inputs)
        return results | {name: results[name] * (1 - by)}

    return kernel


@pytest.mark.parametrize(
    ("operator", "by"),
    [
        ("mla_prefill", 3e-3),
        ("unified_attention", 3e-3),
        ("dequantize_sparse_kv", 5e-4),
        ("rmsnorm", 5e-4),
        ("fused_add_rmsnorm", 5e-4),
    ],
)
def test_every_family_sees_a_bias(
    monkeypatch: pytest.MonkeyPatch, operator: str, by: float
) -> None:
    case = cases(operator)[0]
    outcome = hold(monkeypatch, case, too_small("out", by))
    assert outcome.outcome == "failed"
    assert "bias of out over a window" in outcome.reason
    assert hold(monkeypatch, case, too_small("out", 0.0)).outcome == "passed"


def test_a_cache_of_other_scales_than_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes made with one scale, and another one stored: the round trip shows it."""

    def kernel(right: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
        layout = gpu.sparse_kv.packed(inputs["format"])
        out = right(**inputs)["out"]
        return {"out": gpu.with_scales(out, layout, gpu.cut_to_bfloat16)}

    case = cases("quantize_sparse_kv", "outlier channels", "fp8_v32, scales fp32")[0]
    outcome = hold(monkeypatch, case, kernel)
    assert outcome.outcome == "failed"
    assert "bias of row over a window (rows " in outcome.reason


def test_a_loss_in_one_window_of_keys_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only keys 256..511 are read as too small; only the row that wants them is wrong by it."""
    (case,) = cases("mla_decode", "windows of keys")

    def codes(keys: torch.Tensor) -> torch.Tensor:
        changed = keys.clone()
        changed[256:512, :512] *= 0.98
        return changed

    outcome = hold(monkeypatch, case, gpu.mla_decode(gpu.Loss(codes=codes)))
    assert outcome.outcome == "failed"
    assert "over a row (row 1, which wants keys 256..269)" in outcome.reason


def test_a_failure_of_another_kind_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises, or writes no number, has no statistics but a reason."""
    (case,) = cases(PREFILL, "outlier channels", "fp8_v32,")
    outcome = hold(monkeypatch, case, given(indices=lambda x: x[:, :, None, None]))
    assert outcome.outcome == "failed"
    assert "Error" in outcome.reason
    wrong = gpu.sparse(gpu.Loss(out=lambda x: x.masked_fill(x == x.max(), torch.nan)))
    outcome = hold(monkeypatch, case, wrong)
    assert outcome.outcome == "failed"
    assert "noise of out" in outcome.reason
    json.dumps(outcome.to_json(), allow_nan=False)


def test_what_every_family_has() -> None:
    """Both numbers of heads and every distribution, and sizes for interpreter, CPU and card."""
    for operator in (DECODE, PREFILL, "mla_decode", "mla_prefill", "unified_attention"):
        found = accuracy_of(OPERATORS[operator])
        assert {case.model for case in found} == set(KINDS)
        assert any(case.edge for case in found)
        assert any(case.large for case in found)
        small = [case.label for case in found if not case.large]
        assert all(any(f"H={heads}" in label for label in small) for heads in (64, 128))
    for name, operator in OPERATORS.items():
        names = [case.name for case in accuracy_of(operator)]
        assert len(set(names)) == len(names), name


@pytest.mark.slow
@pytest.mark.parametrize("case", **named([cases("mla_decode")[0], cases("rmsnorm")[0]]))
def test_our_bodies_interpreted(case: AccuracyCase) -> None:
    """Without a card a Triton body is interpreted, and its outcome says so."""
    items, _ = exam.questions(exam.find("cuda_sm90"), Level.ACCURACY, [case.operator])
    (item,) = [item for item in items if item.case == case.name]
    (outcome,) = pool.answers("cuda_sm90", Level.ACCURACY, [item], pool.Terms(1, 300.0, 1, 0))
    assert outcome.outcome == "passed", outcome.reason
    assert outcome.details["ran on"] == "interpreter"

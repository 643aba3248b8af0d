# SPDX-License-Identifier: Apache-2.0
"""Level accuracy for KDA: what others lost fails by name, sound arithmetic passes with room."""

from __future__ import annotations

import pytest
from tests.conformance import _kda_arithmetic as kda
from tests.conformance.test_accuracy import ROOM, cases, hold, named, worst

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.cases import accuracy_of
from archkey.conformance.cases.kda.accuracy import KINDS
from archkey.ops import OPERATORS

CHUNK, RECURRENT = "chunk_kda", "fused_recurrent_kda"
KERNELS = {CHUNK: kda.chunk, RECURRENT: kda.recurrent}
WIDE = {
    operator: [*cases(operator, edge=False), *cases(operator, "forgetting:", edge=True)]
    for operator in KERNELS
}


@pytest.mark.parametrize("case", **named([*WIDE[CHUNK], *WIDE[RECURRENT]]))
def test_a_sound_kernel_passes(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase) -> None:
    outcome = hold(monkeypatch, case, KERNELS[case.operator](kda.SOUND))
    assert outcome.outcome == "passed", outcome.reason
    assert max(worst(outcome).values()) < ROOM, worst(outcome)


# What tells each loss, on which numbers: this count is the worst, or one of those over its limit.
TOLD = [
    (CHUNK, "state in bfloat16", "long memory", "noise of final_state over a row (row "),
    (CHUNK, "gates to base 2 as if to base e", "forgetting", "noise of o over a window (rows "),
    (CHUNK, "gates to base 2 as if to base e", "long memory", "bias of o over a window (rows "),
    (CHUNK, "a state's decay without ln 2", "long memory", "bias of o over a window (rows "),
    (CHUNK, "a state's decay in bfloat16", "long memory", "bias of o over a window (rows "),
    (CHUNK, "sums of gates in bfloat16", "forgetting", "noise of final_state over a row (row "),
    (CHUNK, "betas cut off to bfloat16", "forgetting", "bias of o over a window (rows "),
    (CHUNK, "e^G apart from e^-G", "forgetting at once", "noise of o over a row (any)"),
    (CHUNK, "0.3 % too small", "outlier channels", "bias of o over a window (rows "),
    (RECURRENT, "state in bfloat16", "long memory", "noise of o over a window (rows "),
    (RECURRENT, "gates to base 2 as if to base e", "forgetting", "noise of o over a row (row "),
    (RECURRENT, "a state's decay in bfloat16", "long memory", "bias of o over a window (rows "),
    (RECURRENT, "gates cut off to bfloat16", "forgetting", "bias of final_state over a window ("),
    (RECURRENT, "betas cut off to bfloat16", "outlier channels", "bias of o over a window (rows "),
    (RECURRENT, "0.3 % too small", "forgetting at once", "bias of o over a window (rows "),
]


@pytest.mark.parametrize(("operator", "loss", "kind", "told"), TOLD)
def test_a_loss_fails_by_name(
    monkeypatch: pytest.MonkeyPatch, operator: str, loss: str, kind: str, told: str
) -> None:
    (case,) = cases(operator, f"{kind}: ", edge=False)
    outcome = hold(monkeypatch, case, KERNELS[operator](kda.LOSSES[loss]))
    assert outcome.outcome == "failed"
    assert outcome.reason.startswith(f"{kind}: ")
    assert told in outcome.reason
    assert max(worst(outcome).values()) > 1.5


def test_every_loss_is_told() -> None:
    assert {loss for _, loss, _, _ in TOLD} == {*kda.LOSSES}


def test_what_the_family_has() -> None:
    """Every distribution at sizes for interpreter, CPU and card; of a card's, 65536 tokens."""
    for operator in KERNELS:
        found = accuracy_of(OPERATORS[operator])
        for size in ("edge", "large"):
            assert [case.model for case in found if getattr(case, size)] == [*KINDS]
        assert [case.model for case in found if case.real] == [*KINDS]
    assert {sum(case.inputs.lengths) for case in cases_of_a_card()} == {65536}  # type: ignore[attr-defined]


def cases_of_a_card() -> list[AccuracyCase]:
    return [case for case in accuracy_of(OPERATORS[CHUNK]) if case.large]


@pytest.mark.slow
@pytest.mark.parametrize("case", **named(cases_of_a_card()))
def test_a_state_over_65536_tokens(monkeypatch: pytest.MonkeyPatch, case: AccuracyCase) -> None:
    """It does not drift in a sound kernel; where nothing is forgotten a rounded one is lost."""
    outcome = hold(monkeypatch, case, kda.chunk(kda.SOUND))
    assert outcome.outcome == "passed", outcome.reason
    assert max(worst(outcome).values()) < ROOM, worst(outcome)
    if case.model == "long memory":
        outcome = hold(monkeypatch, case, kda.chunk(kda.LOSSES["state in bfloat16"]))
        assert outcome.outcome == "failed"
        assert max(worst(outcome).values()) > 1.5

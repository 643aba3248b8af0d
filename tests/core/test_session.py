# SPDX-License-Identifier: Apache-2.0
"""Sessions: the way of a call, degraded choices, fingerprints."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from tests.core import _fakes
from tests.core._fakes import FAST, SLOW, TOY, Toy, card, kernel, last_resort, make, plugin, ran
from tests.core._fakes import alone as alone

import archkey
from archkey import session as room
from archkey.conditions import is_
from archkey.errors import ArgumentTypeError, UnknownName, Unsupported
from archkey.ops import Problem
from archkey.plugins import Loaded
from archkey.selection import Decision, select
from archkey.session import Session
from archkey.settings import Settings

# ---- the way of a call


def test_the_second_call_is_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make(FAST)
    calls: list[str] = []

    def counted(problem: Problem, *rest: Any) -> Decision:
        calls.append(problem.operator)
        return select(problem, *rest)

    monkeypatch.setattr(room, "select", counted)
    assert ran(session) == "fast"
    monkeypatch.setattr(Session, "_bind", None)  # a second look at anything would raise
    monkeypatch.setattr(room, "settings", None)
    assert ran(session) == "fast"
    assert calls == ["toy_op"]
    assert _fakes.BUILT == ["fast"]


def test_inside_an_override_too_nothing_is_decided_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make(FAST, SLOW)
    with archkey.override(toy_op="slow"):
        assert ran(session) == "slow"
        monkeypatch.setattr(room, "select", None)
        assert ran(session) == "slow"
    assert _fakes.BUILT == ["slow"]


@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        ("toy_op", ArgumentTypeError, "must be an operator's Problem, found 'toy_op'"),
        (Toy(operator="toy_opp"), UnknownName, "did you mean 'toy_op'"),
        (SimpleNamespace(operator="toy_op"), ArgumentTypeError, "problem must be a Toy, found"),
    ],
    ids=["text", "misspelt", "foreign"],
)
def test_what_is_no_problem(problem: Any, error: type[Exception], message: str) -> None:
    for ask in (make(FAST).decide, make(FAST).plan, make(FAST).explain):
        with pytest.raises(error, match=message):
            ask(problem)


# ---- degraded


def test_degraded_is_said_once_an_operator_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    session = make(kernel("tma", "toy_op", needs=(is_("tma", True),)))
    for _ in range(2):
        for width in (1, 2, 3):
            assert ran(session, Toy(width=width)) == "torch"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "degraded: toy_op on cuda_sm90" in record.getMessage()
    assert "fake:tma [capability] needs tma = True" in record.getMessage(), "and why"
    assert session.degraded == {"toy_op": 3}


def test_asking_is_not_running(caplog: pytest.LogCaptureFixture) -> None:
    session = make()
    assert session.decide(Toy()).degraded
    assert "degraded" in session.explain(Toy())
    assert not caplog.records and not session.degraded


@pytest.mark.parametrize("rest", [{"strict": True}, {"config": Settings(strict=True)}], ids=repr)
def test_strict_refuses_it(rest: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="made for cpu; install the plugin of cuda_sm90"):
        make(**rest).launcher(Toy())


def test_strict_can_be_lifted_for_a_session() -> None:
    assert ran(make(config=Settings(strict=True), strict=False)) == "torch"


# ---- fingerprints


def test_equal_sessions_have_equal_fingerprints_in_any_order() -> None:
    kernels = (kernel("triton", "toy_op", "build_fails_for_wide"), FAST)
    problems = [Toy(width=w) for w in (4096, 64, 2048, 8)]
    first, second = make(*kernels), make(*kernels)
    first.prepare(problems)
    second.prepare(reversed(problems))
    assert first.fingerprint() == second.fingerprint() == first.fingerprint()


def test_other_decisions_plugins_or_targets_have_other_fingerprints() -> None:
    def bound(session: Session) -> str:
        session.plan(Toy())
        return session.fingerprint()

    other_version = Loaded((plugin(FAST, SLOW, operators=(TOY,), version="1.1"), last_resort()), ())
    other_target = card("cuda_sm100")
    prints = {
        "first": bound(make(FAST, SLOW)),
        "nothing bound": make(FAST, SLOW).fingerprint(),
        "decision": bound(make(FAST, SLOW, override={"toy_op": "slow"})),
        "version": bound(Session(card(), Settings(), loaded=other_version)),
        "target": bound(Session(other_target, Settings(), loaded=other_version)),
    }
    assert len(set(prints.values())) == len(prints)


def test_a_fingerprint_can_be_taken_while_others_bind() -> None:
    session = make(FAST)

    class Meanwhile(Toy):
        """Printing it, which the fingerprint does, binds another problem."""

        def __repr__(self) -> str:
            session.plan(Toy(width=99))
            return "Meanwhile()"

    session.prepare([Meanwhile(), Toy(width=2)])
    assert len(session.fingerprint()) == 64
    assert len(_fakes.BUILT) == 3

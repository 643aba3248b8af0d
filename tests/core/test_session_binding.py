# SPDX-License-Identifier: Apache-2.0
"""Binding: once for all threads, frozen, and what happens when a kernel cannot be built."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.core import _fakes
from tests.core._fakes import FAST, SLOW, Toy, kernel, make, ran
from tests.core._fakes import alone as alone

import archkey
from archkey.conditions import is_
from archkey.errors import ArgumentValueError, FrozenError, Unsupported
from archkey.kernel import Kernel
from archkey.ops.rmsnorm import RmsNormProblem
from archkey.selection import Code

# ---- binding


def test_concurrent_first_calls_build_once() -> None:
    session = make(kernel("fast", "toy_op", "build_slowly"))
    barrier = threading.Barrier(16)

    def work(_: int) -> int:
        barrier.wait()
        return id(session.launcher(Toy()))

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(work, range(16)))) == 1
    assert _fakes.BUILT == ["fast"]


def test_nobody_waits_for_the_compilation_of_another_problem() -> None:
    slow = kernel("slow", "toy_op", "build_when_told", accepts=(is_("dtype", "float32"),))
    session = make(slow, FAST)
    assert ran(session) == "fast"
    with archkey.override(toy_op="fast"):
        ran(session)
    with ThreadPoolExecutor(2) as pool:
        building = pool.submit(ran, session, Toy("float32"))
        assert _fakes.BUILDING.wait(5)

        def hits() -> list[str]:
            with archkey.override(toy_op="fast"):
                return [ran(session), session.plan(Toy()).decision.operator]

        try:
            assert pool.submit(hits).result(timeout=3) == ["fast", "toy_op"]
        finally:
            _fakes.GO_ON.set()
        assert building.result(timeout=5) == "slow"


def test_prepare_builds_what_the_call_runs_and_only_once() -> None:
    session = make(FAST)
    problems = [Toy(width=w) for w in (1, 2, 1)]
    plans = session.prepare(problems)
    again = session.prepare(problems)
    assert [p.problem for p in plans] == problems
    assert all(a is b for a, b in zip(plans, again, strict=True))
    assert session.launcher(Toy(width=2)) is plans[1].run
    assert _fakes.BUILT == ["fast", "fast"]


def test_frozen_an_unprepared_problem_is_an_error_that_prints_it() -> None:
    session = make(FAST, SLOW)
    session.prepare([Toy()])
    session.freeze()
    assert ran(session) == "fast"
    with pytest.raises(FrozenError, match=r"Toy\(dtype='bfloat16', width=7.*session.prepare"):
        session.launcher(Toy(width=7))
    with archkey.override(toy_op="slow"), pytest.raises(FrozenError):
        session.launcher(Toy())
    assert _fakes.BUILT == ["fast"]


def test_frozen_with_warn_it_is_built_and_said(caplog: pytest.LogCaptureFixture) -> None:
    session = make(FAST)
    session.freeze("warn")
    assert [ran(session, Toy(width=7)) for _ in range(3)] == ["fast"] * 3
    (record,) = caplog.records
    assert "Toy(dtype='bfloat16', width=7" in record.getMessage()


def test_frozen_it_names_the_nearest_problem_and_what_differs() -> None:
    """sglang#26170: compiled for bfloat16, called with FP8."""
    session = make(FAST, SLOW)
    session.prepare([Toy(width=64), Toy("float32", 8), Toy("float32", 64)])
    session.freeze()
    with pytest.raises(FrozenError) as caught:
        session.launcher(Toy("float8_e4m3fn", 64))
    said = str(caught.value)
    assert "Toy(dtype='float8_e4m3fn', width=64" in said
    assert "of 3 prepared for toy_op the nearest differs in (prepared -> asked)" in said
    assert "dtype: bfloat16 -> float8_e4m3fn." in said, "and in nothing else"
    assert "Pass it to session.prepare() before freeze()" in said
    assert "archkey prepare --list" in said and "session.thaw()" in said


def test_frozen_an_override_is_what_differs() -> None:
    session = make(FAST, SLOW)
    session.prepare([Toy()])
    session.freeze()
    with archkey.override(toy_op="slow"), pytest.raises(FrozenError) as caught:
        session.launcher(Toy())
    assert "(prepared -> asked) kernel by override: None -> slow." in str(caught.value)


def test_frozen_where_nothing_was_prepared() -> None:
    session = make(FAST)
    session.freeze()
    with pytest.raises(FrozenError, match="nothing was prepared for toy_op. Pass it to"):
        session.launcher(Toy())


def test_frozen_prepare_prepares_nothing_new_and_finds_what_it_did() -> None:
    session = make(FAST)
    plans = session.prepare([Toy()])
    session.freeze()
    assert session.prepare([Toy()]) == plans
    with pytest.raises(FrozenError):
        session.prepare([Toy(width=7)])
    assert _fakes.BUILT == ["fast"]


def test_thawed_kernels_are_built_again(caplog: pytest.LogCaptureFixture) -> None:
    session = make(FAST)
    session.freeze()
    session.thaw()
    assert ran(session) == "fast"
    assert not caplog.records


def test_freeze_takes_two_words() -> None:
    with pytest.raises(ArgumentValueError, match="'warn' or 'error', found 'off'"):
        make(FAST).freeze("off")  # type: ignore[arg-type]


# ---- what cannot be built


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("build_raises", "OSError: libfast.so.3 is missing"),
        ("build_exits", "SystemExit: 3"),
        ("build_none", "must return a function, found None"),
        ("no_such_function", "AttributeError"),
    ],
)
def test_a_build_that_fails_falls_to_the_next(
    builder: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = make(kernel("lost", "toy_op", builder), FAST)
    assert ran(session) == "fast"
    assert "kernel fake:lost could not be built" in caplog.text
    assert caplog.records[0].exc_info, "with the traceback"
    rejection = session.plan(Toy()).decision.rejected[0]
    assert (rejection.kernel, rejection.code) == ("fake:lost", Code.BUILD)
    assert said in rejection.found
    assert said in session.explain(Toy())


def test_a_missing_module_too() -> None:
    lost = Kernel("toy_op", "lost", "no_such_module:build", plugin="fake")
    assert ran(make(lost, FAST)) == "fast"


def test_archkeys_own_errors_in_a_builder_fall_to_the_next() -> None:
    """Such as "Triton has no backend for this target", or a table that is missing."""

    def build(problem: Any, build: Any) -> Any:
        return build.tuning(problem)

    _fakes.build_untuned = build  # type: ignore[attr-defined]
    assert ran(make(kernel("untuned", "toy_op", "build_untuned"), FAST)) == "fast"


def test_a_failed_build_condemns_neither_other_problems_nor_other_operators() -> None:
    """Otherwise a decision would depend on what was asked before."""
    session = make(
        kernel("triton", "toy_op", "build_fails_for_wide"), kernel("triton", "rmsnorm"), FAST
    )
    assert ran(session, Toy(width=2048)) == "fast"
    assert ran(session, Toy(width=512)) == "triton"
    chosen = session.decide(RmsNormProblem("bfloat16", "bfloat16", "bfloat16", 512)).chosen
    assert chosen is not None and chosen.name == "triton"


def test_under_strict_a_failed_build_does_not_end_in_the_reference() -> None:
    session = make(kernel("lost", "toy_op", "build_raises"), strict=True)
    with pytest.raises(Unsupported) as caught:
        session.launcher(Toy())
    decision = caught.value.decision
    assert decision is not None
    assert {r.kernel: r.code for r in decision.rejected} == {
        "fake:lost": Code.BUILD,
        "cpu:torch": Code.DEGRADED,
    }
    assert "libfast.so.3 is missing" in str(caught.value)


def test_an_override_of_a_kernel_that_cannot_be_built_is_not_silently_replaced() -> None:
    session = make(kernel("lost", "toy_op", "build_raises"), FAST)
    with archkey.override(toy_op="lost"), pytest.raises(Unsupported, match="libfast"):
        session.launcher(Toy())


def test_a_builder_cannot_change_what_later_decisions_see() -> None:
    def build(problem: Any, build: Any) -> Any:
        build.versions["torch"] = "99"

    _fakes.build_meddles = build  # type: ignore[attr-defined]
    session = make(kernel("meddles", "toy_op", "build_meddles"), FAST)
    assert ran(session) == "fast"
    assert session._versions["torch"] != "99"

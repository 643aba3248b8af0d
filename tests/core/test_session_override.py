# SPDX-License-Identifier: Apache-2.0
"""Overrides: by whom, how far they reach, and that they lift no check."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.core import _fakes
from tests.core._fakes import FAST, SLOW, Toy, kernel, make, ran
from tests.core._fakes import alone as alone

import archkey
from archkey.conditions import is_
from archkey.errors import UnknownName, Unsupported
from archkey.ops.rmsnorm import RmsNormProblem
from archkey.selection import Code
from archkey.settings import Settings, settings


def test_override_by_argument_context_environment_and_open() -> None:
    assert make(FAST, SLOW).plan(Toy(), kernel="slow").decision.chosen == SLOW
    assert make(FAST, SLOW).decide(Toy(), kernel="fake:slow").chosen == SLOW
    with archkey.override(toy_op="slow"):
        assert ran(make(FAST, SLOW)) == "slow"
    assert ran(make(FAST, SLOW, config=Settings(override={"toy_op": "slow"}))) == "slow"
    assert ran(make(FAST, SLOW, override={"toy_op": "slow"})) == "slow"


def test_the_environment_reaches_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = RmsNormProblem("bfloat16", "bfloat16", "bfloat16", 512)
    monkeypatch.setenv("ARCHKEY_OVERRIDE_RMSNORM", "cpu:torch")
    decision = archkey.open("rocm_gfx950").decide(problem)
    assert decision.chosen is not None and decision.chosen.id == "cpu:torch"
    assert decision.overridden and decision.degraded
    monkeypatch.setenv("ARCHKEY_STRICT", "1")
    settings.cache_clear()
    strict = archkey.open("rocm_gfx950").decide(problem)
    assert strict.chosen is None, "asked for by name, and still checked"


def test_the_narrower_override_wins() -> None:
    other = kernel("other", "toy_op")
    environment = Settings(override={"toy_op": "slow"})
    session = make(FAST, SLOW, other, config=environment, override={"toy_op": "other"})
    assert ran(session) == "other"
    with archkey.override(toy_op="fast"):
        assert ran(session) == "fast"
        with archkey.override(toy_op="slow"):
            assert ran(session) == "slow"
            assert session.plan(Toy(), kernel="other").decision.chosen == other
        assert ran(session) == "fast"
    assert ran(session) == "other"


def test_nothing_of_an_override_stays_behind() -> None:
    """Whoever came first, a call without override runs the first kernel."""
    session = make(FAST, SLOW)
    with archkey.override(toy_op="slow"):
        assert ran(session) == "slow"
    session.plan(Toy(), kernel="slow")
    assert ran(session) == "fast"
    with archkey.override(toy_op="slow"):
        assert ran(session) == "slow"
    with archkey.override(rmsnorm="torch"):
        assert ran(session) == "fast"
    assert ran(session) == "fast"


def test_an_override_still_has_to_pass_the_checks() -> None:
    blocked = kernel("tma", "toy_op", needs=(is_("tma", True),))
    session = make(FAST, blocked)
    with archkey.override(toy_op="tma"), pytest.raises(Unsupported) as caught:
        session.launcher(Toy())
    decision = caught.value.decision
    assert decision is not None and decision.chosen is None
    assert [r.code for r in decision.rejected if r.kernel == "fake:tma"] == [Code.CAPABILITY]
    assert "tma = True" in str(caught.value)


def test_an_unknown_kernel_names_the_nearest() -> None:
    session = make(FAST, SLOW)
    with pytest.raises(UnknownName, match="kernel of toy_op 'fsat'; did you mean 'fast'"):
        session.decide(Toy(), kernel="fsat")
    with archkey.override(toy_op="fake:fsat"), pytest.raises(UnknownName, match="'fake:fast'"):
        session.launcher(Toy())


def test_an_unknown_operator_in_an_override_is_an_error_and_not_ignored() -> None:
    make(FAST)  # so that toy_op is known
    known = "'toy_opp'; did you mean 'toy_op'"
    with pytest.raises(UnknownName, match=known), archkey.override(toy_opp="slow"):
        pass
    with pytest.raises(UnknownName, match="'rmsnrom'; did you mean 'rmsnorm'"):
        make(FAST, override={"rmsnrom": "x"})


def test_the_environment_may_override_operators_of_another_target(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = make(FAST, config=Settings(override={"acme_sort": "x", "toy_op": "fast"}))
    assert ran(session, Toy()) == "fast"
    assert "ARCHKEY_OVERRIDE_ACME_SORT: no such operator here" in caplog.text


def test_each_thread_runs_its_own_override() -> None:
    names = [f"k{i}" for i in range(5)]
    session = make(*(kernel(name, "toy_op") for name in names))
    barrier = threading.Barrier(16)

    def work(i: int) -> set[str]:
        barrier.wait()
        own, seen = names[i % 5], set()
        for width in itertools.islice(itertools.cycle(range(8)), 200):
            if i % 5:
                with archkey.override(toy_op=own):
                    seen.add(ran(session, Toy(width=width)))
            else:
                seen.add(ran(session, Toy(width=width)))
        return seen

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [{names[i % 5]} for i in range(16)]
    assert len(_fakes.BUILT) == 5 * 8, "each kernel once a problem, for all threads"


def test_each_task_runs_its_own_override() -> None:
    session = make(FAST, SLOW)

    async def work(name: str) -> str:
        with archkey.override(toy_op=name):
            await asyncio.sleep(0)
            return ran(session)

    async def both() -> tuple[str, str]:
        slow, fast = await asyncio.gather(work("slow"), work("fast"))
        return slow, fast

    assert asyncio.run(both()) == ("slow", "fast")

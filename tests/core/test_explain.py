# SPDX-License-Identifier: Apache-2.0
"""A Decision as text."""

from __future__ import annotations

import pytest
from tests.core._fakes import TOY, Toy, card, kernel, last_resort, plugin, session

from archkey.conditions import at_least, is_
from archkey.errors import Unsupported
from archkey.explain import explain, headline
from archkey.plugins import Loaded
from archkey.requirements import Requirement
from archkey.session import Session
from archkey.settings import Settings

TMA = kernel("tma", "toy_op", needs=(is_("tma", True, "copies whole tiles"),))
WIDE = kernel("wide", "toy_op", accepts=(at_least("width", 512),))
NEW = kernel("new", "toy_op", requires=(Requirement("no-such-package", ">=2", "sglang#22723"),))
FAST = kernel("fast", "toy_op", summary="one tile a block")
SLOW = kernel("slow", "toy_op")


def test_the_whole_text() -> None:
    text = session(TMA, WIDE, NEW, FAST, SLOW).explain(Toy())
    assert text.splitlines() == [
        "toy_op on cuda_sm90",
        "  problem: dtype=bfloat16, width=128",
        "  chosen:  fake:fast - first that nothing speaks against, 3 refused",
        "           one tile a block",
        "  not:     fake:tma [capability] needs tma = True; found tma = False (plugin fake does "
        "not declare it); copies whole tiles",
        "  not:     fake:wide [problem] needs width >= 512; found width = 128; change width or use "
        "another kernel",
        "  not:     fake:new [requirement] needs no-such-package>=2; found no-such-package not "
        "installed; install no-such-package>=2",
        "  not:     fake:slow [outranked] needs the first place among those that accept; found "
        'fake:fast comes first; override toy_op with "fake:slow" to use it',
    ]


def _with_last_resort(*kernels: object) -> Session:
    own = plugin(*kernels, operators=(TOY,))  # type: ignore[arg-type]
    return Session(card(), Settings(), loaded=Loaded((own, last_resort()), ()))


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        (session(FAST), None, "first in order"),
        (session(FAST, SLOW), "slow", "asked for by name"),
        (session(TMA, WIDE), None, "none of 2 kernels can serve this problem"),
        (_with_last_resort(TMA), None, "last resort (degraded)"),
        (_with_last_resort(FAST), "torch", "asked for by name (degraded)"),
    ],
)
def test_the_headline(made: Session, asked: str | None, said: str) -> None:
    assert headline(made.decide(Toy(), kernel=asked)) == said


def test_the_error_of_the_call_is_the_explanation() -> None:
    refusing = session(TMA, WIDE)
    with pytest.raises(Unsupported) as caught:
        refusing.plan(Toy())
    start, rest = str(caught.value).split("\n", 1)
    assert start == "toy_op cannot run on cuda_sm90 for this problem."
    assert caught.value.decision is not None
    assert rest == explain(caught.value.decision) == refusing.explain(Toy())


def test_no_kernel_at_all_says_what_to_do() -> None:
    with pytest.raises(Unsupported, match="No plugin supplies a kernel.*`archkey plugins`"):
        session().plan(Toy())

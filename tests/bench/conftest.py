# SPDX-License-Identifier: Apache-2.0
"""What tests of a run share: small workloads, made-up peers, and the measuring processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.bench import _small

from archkey.bench import peers
from archkey.bench.asker import Asker, Terms
from archkey.ops import OPERATORS


class Warm(Asker):
    """An asker for many tests, since each process of its own imports torch for seconds.

    Whoever hangs is waited for a second only: it would not answer in twenty either. The ceilings
    are measured once.
    """

    ceilings: dict[str, Any] | None = None

    def ask(self, what: str, *, peers_too: bool = False, **question: Any) -> dict[str, Any]:
        hangs = (question.get("entrant"), question.get("workload")) == _small.HANGS
        self._terms = replace(self._terms, timeout=1.0 if hangs else 60.0)
        if what != "ceilings":
            return super().ask(what, peers_too=peers_too, **question)
        self.ceilings = self.ceilings or super().ask(what)
        return self.ceilings


@pytest.fixture(scope="session")
def warm() -> Iterator[Asker]:
    terms = Terms("cpu", samples=5, seconds=0.05, seed=3)
    with Warm(terms, module="tests.bench._small") as found:
        yield found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, environ: Callable[..., None]) -> None:
    """The small workloads and made-up peers, in this process."""
    monkeypatch.setattr(peers, "PEERS", peers.PEERS)
    for name in ("rmsnorm", "fused_add_rmsnorm"):
        monkeypatch.setitem(OPERATORS, name, OPERATORS[name])
    _small.put_in_place()


@pytest.fixture
def asker(small: None, warm: Asker) -> Asker:
    return warm

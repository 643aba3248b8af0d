# SPDX-License-Identifier: Apache-2.0
"""What tests share: small workloads, made-up peers and measuring processes; and the adapters of
libraries that are not here, over stand-ins that have their conventions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.bench import (
    _small,
    _standins_aiter,
    _standins_attention,
    _standins_kda,
    _standins_mla,
    _standins_norms,
)
from tests.bench._standins import installed

from archkey.bench import peers
from archkey.bench.asker import Asker, Terms
from archkey.bench.entrant import Adapter
from archkey.bench.peers import PEERS, adapter
from archkey.ops import OPERATORS

LIBRARIES = {
    **_standins_norms.NORMS,
    **_standins_attention.ATTENTION,
    **_standins_kda.KDA,
    **_standins_mla.MLA,
    **_standins_aiter.AITER,
}


@pytest.fixture(scope="module")
def adapted() -> Iterator[Callable[[str, str], Adapter]]:
    """(entrant, operator) -> its adapter; "authors" is FlashAttention-3's own package."""
    routes = {
        (f"{peer.name}:{route.label}".rstrip(":"), route.operator): (peer, route)
        for peer in PEERS
        for route in peer.routes
    }
    with installed(_standins_attention.AUTHORS):
        authors = importlib.import_module("archkey.bench.peers.fa3")

    def find(entrant: str, operator: str) -> Adapter:
        if entrant == "authors":
            found: Adapter = getattr(authors, operator)
            return found
        return adapter(*routes[entrant, operator])

    with pytest.MonkeyPatch.context() as patch, installed(LIBRARIES):
        patch.setenv("FLA_FLASH_KDA", "1")
        cores = SimpleNamespace(multi_processor_count=2)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: cores)
        patch.setattr(torch.ops, "_C", _standins_norms.vllm_operators(), raising=False)
        extension = torch.library.Library("_flashmla_extension_C", "DEF")
        for schema, function in _standins_mla.EXTENSION:
            extension.define(schema)
            extension.impl(function.__name__, function, "CPU")
        yield find
        extension._destroy()


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

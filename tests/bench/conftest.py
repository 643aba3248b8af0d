# SPDX-License-Identifier: Apache-2.0
"""Adapters of libraries that are not here, over stand-ins that have their conventions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from tests.bench import (
    _standins_aiter,
    _standins_attention,
    _standins_kda,
    _standins_mla,
    _standins_norms,
)
from tests.bench._standins import installed

from archkey.bench.entrant import Adapter
from archkey.bench.peers import PEERS, adapter

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

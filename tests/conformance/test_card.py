# SPDX-License-Identifier: Apache-2.0
"""A plugin's claims beside the driver's words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.core._fakes import card

from archkey.conformance.card import compare


def test_the_probe_is_asked_first() -> None:
    device = card("acme_x1", shared_memory_bytes=65536)
    assert compare("shared_memory_bytes", 65536, device)[0] is True
    agrees, reason = compare("shared_memory_bytes", 262144, device)
    assert agrees is False
    assert "65536" in reason
    assert "262144 is claimed" in reason


@pytest.mark.parametrize(("claimed", "agrees"), [(232448, True), (233472, False)])
def test_then_torch(claimed: int, agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(
        shared_memory_per_block_optin=232448, shared_memory_per_block=49152, warp_size=32
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    assert compare("shared_memory_bytes", claimed, card("cuda_sm90"))[0] is agrees
    assert compare("warp_size", 64, card("cuda_sm90"))[0] is False


def test_nobody_says() -> None:
    agrees, reason = compare("warp_size", 16, card("acme_x1"))
    assert agrees is None
    assert reason == "nobody says warp_size of fake acme_x1"

# SPDX-License-Identifier: Apache-2.0
"""Capabilities: values for code, facts for people, and no word outside the vocabulary."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from tests.core._fakes import capability, card

from archkey.capabilities import VOCABULARY, Capability, check, gather
from archkey.errors import PluginError, UnknownName


def test_the_card_goes_first_then_the_plugin_then_the_vocabulary() -> None:
    declared = [capability("shared_memory_bytes", 232448), capability("tma", True)]
    caps = gather(card(shared_memory_bytes=101376), declared, "cuda_sm90")
    assert caps.shared_memory_bytes == 101376, "a card that differs from the data sheet wins"
    assert caps["shared_memory_bytes"].source == "probe (nvml)"
    assert caps.tma is True
    assert caps["tma"].source == "fake data sheet"
    assert caps.wgmma is False
    assert caps["wgmma"].source == "default"
    assert caps["wgmma"].reason == "plugin cuda_sm90 does not declare it"


def test_two_cards_of_one_target_differ() -> None:
    big, small = (gather(card("rocm_gfx942", compute_units=n), [], None) for n in (304, 80))
    assert (big.compute_units, small.compute_units) == (304, 80)


def test_without_a_plugin_everything_is_absent_and_says_why() -> None:
    caps = gather(card("rocm_gfx950"), [], None)
    assert list(caps) == list(VOCABULARY)
    assert {caps[name].value for name in caps} == {False, None, "none"}
    assert {caps[name].reason for name in caps} == {"no plugin for rocm_gfx950 is loaded"}


def test_a_vendors_own_capability() -> None:
    caps = gather(card(), [capability("acme:systolic", (128, 128))], "acme_x1")
    assert caps["acme:systolic"].value == (128, 128)
    assert "acme:systolic" in caps
    assert len(caps) == len(VOCABULARY) + 1


def test_it_is_a_mapping() -> None:
    caps = gather(card(), [], None)
    assert "tma" in caps and "tmaa" not in caps
    assert caps.get("acme:systolic") is None
    assert dict(caps)["tma"] is caps["tma"]
    assert (
        json.loads(json.dumps({n: f.to_json() for n, f in caps.items()}))["tma"]["value"] is False
    )


def test_a_misspelt_name_gives_the_nearest() -> None:
    caps = gather(card(), [], None)
    with pytest.raises(UnknownName, match="unknown capability 'tcgen5'; did you mean 'tcgen05'"):
        caps["tcgen5"]
    with pytest.raises(AttributeError, match="did you mean 'tcgen05'"):
        _ = caps.tcgen5


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_it_can_be_copied(again: Any) -> None:
    caps = gather(card(), [capability("tma", True)], "x")
    assert dict(again(caps)) == dict(caps)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pdl", 1, "pdl is 1; it takes bool"),
        ("fp8", "e4m3", "fp8 is 'e4m3'; it takes e4m3fn or e4m3fnuz or none"),
        ("warp_size", True, "warp_size is True; it takes int"),
        ("shared_memory_bytes", "64 KB", "it takes int"),
        ("mxfp4", True, "it takes native or emulated or none"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check(Capability(name, value, "s", "r"))


@pytest.mark.parametrize("name", ["systolic", "acme:", ":systolic", ":"])
def test_a_name_outside_the_vocabulary_needs_a_vendor(name: str) -> None:
    with pytest.raises(UnknownName, match="`vendor:name`"):
        check(Capability(name, True, "s", "r"))

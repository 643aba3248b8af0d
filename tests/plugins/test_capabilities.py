# SPDX-License-Identifier: Apache-2.0
"""What our four targets can do, pinned: one row a name, one column a target.

A flag that changes here changes what engines do. Its source stands beside it in the plugin's facts.
"""

from __future__ import annotations

import pytest

import archkey
from archkey.capabilities import VOCABULARY

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")

PINNED = {
    "pdl": (True, True, False, False),
    "tma": (True, True, False, False),
    "cluster": (True, True, False, False),
    "wgmma": (True, False, False, False),
    "tcgen05": (False, True, False, False),
    "mfma": (False, False, True, True),
    "scaled_mfma": (False, False, False, True),
    "lds_transpose": (False, False, False, True),
    "bf16": (True, True, True, True),
    "tf32": (True, True, True, False),
    "fp8": ("e4m3fn", "e4m3fn", "e4m3fnuz", "e4m3fn"),
    "mxfp4": ("emulated", "native", "emulated", "native"),
    "nvfp4": ("emulated", "native", "emulated", "emulated"),
    "cuda_graph": (True, True, True, True),
    "warp_size": (32, 32, 64, 64),
    "shared_memory_bytes": (232_448, 232_448, 65_536, 163_840),
}

BY_CARD = {"compute_units", "l2_bytes", "memory_bytes"}
"""Known only to the probe: no plugin may say them for all cards of a target."""


def test_the_table_has_every_name() -> None:
    assert set(PINNED) | BY_CARD == set(VOCABULARY)


@pytest.mark.parametrize("target", TARGETS)
def test_values(target: str) -> None:
    column = TARGETS.index(target)
    capabilities = archkey.open(target).capabilities
    found = {name: capabilities[name].value for name in PINNED}
    assert found == {name: values[column] for name, values in PINNED.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_what_differs_by_card_is_left_to_the_probe(target: str) -> None:
    capabilities = archkey.open(target).capabilities
    assert {name for name in capabilities if capabilities[name].source == "default"} == BY_CARD


@pytest.mark.parametrize("target", TARGETS)
def test_every_fact_has_a_public_source_and_a_reason(target: str) -> None:
    capabilities = archkey.open(target).capabilities
    documents = ("CUDA programming guide", "PTX ISA", "AMD Instinct", "HIP ")
    for name in PINNED:
        assert capabilities[name].source.startswith(documents), name
        assert len(capabilities[name].reason.split()) >= 3, name


def test_a_family_member_has_the_facts_of_its_family() -> None:
    blackwell, ultra = (archkey.open(name).capabilities for name in ("cuda_sm100", "cuda_sm103"))
    assert dict(ultra) == dict(blackwell)


def test_a_higher_number_of_another_family_does_not() -> None:
    geforce = archkey.open("cuda_sm120")
    assert not geforce.capabilities.tcgen05
    assert geforce.capabilities.shared_memory_bytes is None
    loaded = [entry.found.name for entry in geforce.report if entry.state == "loaded"]
    assert loaded == ["cpu"]

# SPDX-License-Identifier: Apache-2.0
"""What our plugins claim is proved from machine code, and wrong claims are caught by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.core._fakes import capability, card

import archkey
from archkey.capabilities import VOCABULARY, Capabilities, gather
from archkey.conformance.implications import IMPLICATIONS, contradictions
from archkey.conformance.probes import probe_capability
from archkey.target import KNOWN, Target

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")

# What no machine code tells, and NVFP4's absence: Triton may fail instead of decoding it.
UNTOLD = {
    *("shared_memory_bytes", "cuda_graph", "compute_units", "l2_bytes", "memory_bytes"),
    "acme:systolic",
}
MAYBE = {("nvfp4", target) for target in TARGETS if target != "cuda_sm100"}

LIES = (
    ("cuda_sm90", "tcgen05", True),
    ("cuda_sm90", "wgmma", False),
    ("cuda_sm90", "fp8", "e4m3fnuz"),
    ("cuda_sm90", "mxfp4", "native"),
    ("cuda_sm90", "pdl", False),
    ("cuda_sm90", "warp_size", 64),
    ("cuda_sm100", "wgmma", True),
    ("cuda_sm100", "mxfp4", "emulated"),
    ("cuda_sm100", "nvfp4", "none"),
    ("cuda_sm100", "tma", False),
    ("rocm_gfx942", "fp8", "e4m3fn"),
    ("rocm_gfx942", "fp8", "none"),
    ("rocm_gfx942", "mxfp4", "native"),
    ("rocm_gfx942", "lds_transpose", True),
    ("rocm_gfx942", "tf32", False),
    ("rocm_gfx950", "pdl", True),
    ("rocm_gfx950", "cluster", True),
    ("rocm_gfx950", "scaled_mfma", False),
    ("rocm_gfx950", "tf32", True),
    ("rocm_gfx950", "bf16", False),
    ("rocm_gfx950", "warp_size", 32),
)

_PROBE = """
import json, sys
import archkey
from archkey.conformance.probes import probe_capability
told = {{}}
for target in {targets}:
    session = archkey.open(target)
    claims = {{name: fact.value for name, fact in session.capabilities.items()}}
    claims["acme:systolic"] = True
    for name, claimed in claims.items():
        told[f"{{target}} {{name}}"] = probe_capability(name, claimed, session.device)
lies = []
for target, name, claimed in {lies}:
    lies.append(probe_capability(name, claimed, archkey.open(target).device))
print(json.dumps([told, lies]))
"""


@pytest.fixture(scope="module")
def probed(run_python: Callable[..., str]) -> tuple[dict[str, Any], list[Any]]:
    """(target and name -> [proved, reason] of the plugins' claims, the same for LIES)."""
    code = _PROBE.format(targets=TARGETS, lies=LIES)
    told, lies = json.loads(run_python(code, TRITON_INTERPRET="0"))
    return told, lies


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*VOCABULARY, "acme:systolic"])
def test_a_claim_of_ours(name: str, target: str, probed: tuple[dict[str, Any], Any]) -> None:
    proved, reason = probed[0][f"{target} {name}"]
    if name in UNTOLD:
        assert proved is None
        assert reason
    elif (name, target) in MAYBE and proved is None:
        assert "a product of NVFP4 does not compile" in reason
    else:
        assert proved is True, reason
        assert target in reason or name == "warp_size"


@pytest.mark.parametrize(
    "lie", range(len(LIES)), ids=[f"{target}-{name}={value}" for target, name, value in LIES]
)
def test_a_wrong_claim_is_disproved(lie: int, probed: tuple[Any, list[Any]]) -> None:
    target, name, claimed = LIES[lie]
    proved, reason = probed[1][lie]
    assert proved is False, reason
    assert str(claimed) in reason
    assert name in reason or name == "warp_size"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cuda_sm90", "this process interprets (TRITON_INTERPRET=1)"),
        ("cpu", "Triton has no backend for cpu"),
        ("acme_x1", "Triton has no backend for acme_x1"),
    ],
)
def test_where_nothing_compiles_nothing_is_told(
    target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    proved, reason = probe_capability("wgmma", True, card(target))
    assert proved is None
    assert said in reason


_MACHINES = """
import json
import archkey
from archkey.conformance.probes import _COPY, _compile
print(json.dumps({{target: made.code and made.code.target for target in {targets}
                   for made in [_compile(_COPY, archkey.open(target).device)]}}))
"""


def test_every_amd_architecture_is_read_from_its_elf_file(run_python: Callable[..., str]) -> None:
    """Of those that Triton compiles for."""
    machines = [key for key, row in KNOWN.items() if row.platform == "rocm"]
    code = _MACHINES.format(targets=machines)
    found = json.loads(run_python(code, TRITON_INTERPRET="0"))
    compiled = {target: said for target, said in found.items() if said is not None}
    assert compiled == {target: target for target in compiled}
    assert len(compiled) >= 10, found


# ---- implications


def claims(target: str, **values: Any) -> Capabilities:
    """Our plugin's capabilities of `target`, with some changed."""
    facts = dict(archkey.open(target).capabilities)
    facts |= {name: capability(name, value) for name, value in values.items()}
    return Capabilities(facts.values())


@pytest.mark.parametrize("target", [*TARGETS, "cuda_sm103"])
def test_our_claims_do_not_contradict_each_other(target: str) -> None:
    assert contradictions(claims(target), Target.parse(target)) == []


@pytest.mark.parametrize("target", KNOWN)
def test_nothing_claimed_is_no_contradiction(target: str) -> None:
    assert contradictions(gather(card(target), [], None), Target.parse(target)) == []


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("rocm_gfx950", {"pdl": True}, "pdl = True on rocm_gfx950, but that implies platform = cuda;"),
    ("rocm_gfx942", {"tma": True}, "tma = True on rocm_gfx942, but that implies platform = cuda"),
    ("rocm_gfx942", {"cluster": True}, "cluster = True on rocm_gfx942"),
    ("cuda_sm90", {"tcgen05": True}, "wgmma = True on cuda_sm90, but that implies tcgen05 = False"),
    ("cuda_sm90", {"tcgen05": True}, "tcgen05 = True on cuda_sm90, but that implies arch one of"),
    ("cuda_sm100", {"wgmma": True}, "wgmma = True on cuda_sm100, but that implies arch = sm90"),
    ("rocm_gfx950", {"wgmma": True}, "wgmma = True on rocm_gfx950, but that implies platform"),
    ("rocm_gfx950", {"tcgen05": True}, "tcgen05 = True on rocm_gfx950, but that implies platform"),
    ("cuda_sm90", {"mfma": True}, "mfma = True on cuda_sm90, but that implies platform = rocm"),
    ("rocm_gfx950", {"mfma": False}, "scaled_mfma = True on rocm_gfx950, but that implies mfma"),
    ("rocm_gfx942", {"scaled_mfma": True}, "scaled_mfma = True on rocm_gfx942, but that implies"),
    ("cuda_sm90", {"lds_transpose": True}, "lds_transpose = True on cuda_sm90, but that implies"),
    ("rocm_gfx942", {"fp8": "e4m3fn"}, "fp8 = e4m3fn on rocm_gfx942, but that implies"),
    ("rocm_gfx950", {"fp8": "e4m3fnuz"}, "fp8 = e4m3fnuz on rocm_gfx950, but that implies arch ="),
    ("cuda_sm90", {"mxfp4": "native"}, "mxfp4 = native on cuda_sm90, but that implies scaled_mfma"),
    ("rocm_gfx950", {"nvfp4": "native"}, "nvfp4 = native on rocm_gfx950, but that implies tcgen05"),
    ("cuda_sm100", {"warp_size": 64}, "platform = cuda on cuda_sm100, but that implies warp_size"),
    ("rocm_gfx950", {"warp_size": 16}, "platform = rocm on rocm_gfx950, but that implies warp_siz"),
    ("rocm_gfx950", {"warp_size": 32}, "mfma = True on rocm_gfx950, but that implies warp_size"),
)


@pytest.mark.parametrize(
    ("target", "wrong", "said"), WRONG, ids=[f"{t}-{w}-{n}" for n, (t, w, _) in enumerate(WRONG)]
)
def test_a_contradiction_is_named(target: str, wrong: dict[str, Any], said: str) -> None:
    found = contradictions(claims(target, **wrong), Target.parse(target))
    assert any(text.startswith(said) for text in found), found
    assert all(text.endswith("; correct the plugin's facts") for text in found)


def test_every_implication_is_violated_above() -> None:
    """So that each can fail."""
    found = [c for t, w, _ in WRONG for c in contradictions(claims(t, **w), Target.parse(t))]
    unseen = [r.why for r in IMPLICATIONS if not any(f"; {r.why}; " in text for text in found)]
    assert unseen == []


def test_another_vendors_platform_is_its_own() -> None:
    own = claims("cuda_sm90", warp_size=8, mfma=True)
    assert contradictions(own, Target.parse("acme_x1")) == []


def test_an_architecture_newer_than_the_table_may_have_more() -> None:
    """What names architectures says nothing of it; what names the platform does."""
    newer = Target("cuda", "sm130")
    assert contradictions(claims("cuda_sm100"), newer) == []
    (said,) = contradictions(claims("cuda_sm100", lds_transpose=True), newer)
    assert said.startswith("lds_transpose = True on cuda_sm130")

# SPDX-License-Identifier: Apache-2.0
"""The door: what is imported, what is refused, who comes first.

Every plugin here is a real distribution with metadata and a module, found as pip would leave it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from tests.core._fakes import CAPABILITY, HEAD, World, fast, hook, kernels

from archkey.errors import PluginError
from archkey.plugins import discover


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


GOOD = kernels(fast())


# ---- before anything is imported


def test_other_hardware_is_never_imported(world: World) -> None:
    nvidia = world.install("cuda_sm90", GOOD)
    amd = world.install("rocm_gfx942", GOOD)
    boom = world.install("rocm_gfx950", "raise RuntimeError('imported on the wrong machine')")
    session = world.session("cuda_sm90")
    assert nvidia in sys.modules
    assert amd not in sys.modules
    assert boom not in sys.modules
    assert [p.name for p in session.plugins] == ["cuda_sm90", "cpu"]
    assert world.state("cuda_sm90", "rocm_gfx950") == (
        "skipped",
        "serves rocm_gfx950, this is cuda_sm90",
    )


def test_finding_and_reporting_import_nothing(world: World) -> None:
    module = world.install("cuda_sm90", GOOD, version="2.5")
    (found,) = (f for f in discover() if f.distribution == "fake-cuda-sm90")
    assert (found.name, found.value, found.version) == ("cuda_sm90", module, "2.5")
    assert found.location == str(world.root)
    assert module not in sys.modules


def test_the_report_is_json(world: World) -> None:
    world.install("cuda_sm90", "raise OSError('no driver')")
    rows = [entry.to_json() for entry in world.load("cuda_sm90").report]
    assert json.loads(json.dumps(rows)) == rows
    row = next(r for r in rows if r["name"] == "cuda_sm90")
    assert row["reason"] == "OSError: no driver"
    assert row["location"] == str(world.root)
    assert "raise OSError('no driver')" in row["traceback"]


def test_a_damaged_installation_is_listed_and_does_no_harm(world: World) -> None:
    """Files of a half-removed distribution: entry points, and no metadata."""
    world.install("cuda_sm90", GOOD, dist="good")
    world.install("cuda_sm90.left", GOOD, dist="left")
    (world.root / "left-1.0.dist-info" / "METADATA").unlink()
    names = {f.name: f.distribution for f in discover()}
    assert names["cuda_sm90.left"] == "?"


# ---- the five states


def test_all_five_states_with_their_reasons(world: World) -> None:
    world.install("cuda_sm90", GOOD)
    world.install("cuda_sm90.broken", "import no_such_module_anywhere")
    world.install("cuda_sm90.old", GOOD, head=HEAD.replace("(1, 1)", "(0, 0)"))
    world.install("cuda_sm90.unwanted", GOOD)
    world.install("rocm_gfx942", GOOD)
    report = world.load("cuda_sm90", disable_plugins=("cuda_sm90.unwanted",)).report
    states = {entry.found.name: (entry.state.value, entry.reason) for entry in report}
    assert states["cpu"] == ("loaded", "the torch reference, as last resort")
    assert states["cuda_sm90"] == ("loaded", "serves this target")
    assert states["cuda_sm90.broken"][0] == "broken"
    assert "No module named 'no_such_module_anywhere'" in states["cuda_sm90.broken"][1]
    assert states["cuda_sm90.old"][0] == "refused"
    assert states["cuda_sm90.unwanted"] == ("disabled", "named in ARCHKEY_DISABLE_PLUGINS")
    assert states["rocm_gfx942"] == ("skipped", "serves rocm_gfx942, this is cuda_sm90")


BROKEN = {
    "raises at import": "raise RuntimeError('boom')",
    "exits at import": "raise SystemExit('not on this machine')",
    "syntax": "def (",
    "hook raises": "@archkey.hookimpl\ndef archkey_kernels(target):\n    raise KeyError('boom')",
    "kernel, then raises": GOOD + "    raise KeyError('boom')",
    "not iterable": "@archkey.hookimpl\ndef archkey_kernels(target):\n    return 5",
    "message cannot be read": (
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E"
    ),
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_plugin_that_raises_is_broken_alone(
    world: World, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.install("cuda_sm90", GOOD)
    world.install("cuda_sm90.acme", source)
    loaded = world.load("cuda_sm90")
    assert [p.name for p in loaded.plugins] == ["cuda_sm90", "cpu"]
    entry = next(e for e in loaded.report if e.found.name == "cuda_sm90.acme")
    assert entry.state.value == "broken"
    assert "Traceback" in entry.traceback
    assert "plugin cuda_sm90.acme is broken" in caplog.text, "never lost without a word"


def test_control_c_is_not_swallowed(world: World) -> None:
    world.install("cuda_sm90", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        world.load("cuda_sm90")


def test_two_distributions_with_one_name(world: World) -> None:
    first = world.install("cuda_sm90", GOOD, dist="maker-one", version="1.2")
    second = world.install("cuda_sm90", GOOD, dist="maker-two", version="3.4")
    world.install("cuda_sm90.acme", GOOD)
    loaded = world.load("cuda_sm90")
    twins = [e for e in loaded.report if e.found.name == "cuda_sm90"]
    assert [e.state.value for e in twins] == ["refused", "refused"]
    for entry in twins:
        for part in ("maker-one 1.2", "maker-two 3.4", first, second, str(world.root)):
            assert part in entry.reason
    assert first not in sys.modules and second not in sys.modules
    assert [p.name for p in loaded.plugins] == ["cuda_sm90.acme", "cpu"], "the rest works"


@pytest.mark.parametrize("name", ["sm90", "CUDA_SM90", "hopper", "cuda_sm91", "sm_90.acme"])
def test_a_name_that_is_no_target(world: World, name: str) -> None:
    module = world.install(name, GOOD, dist="odd")
    state, reason = world.state("cuda_sm90", name)
    assert state == "refused"
    assert "cuda_sm90" in reason, "it tells how the name should be"
    assert module not in sys.modules


# ---- what the user asks for


def test_only_listed_plugins_and_the_default_are_loaded(world: World) -> None:
    for name in ("cuda_sm90", "cuda_sm90.acme"):
        world.install(name, GOOD)
    loaded = world.load("cuda_sm90", plugins=("cuda_sm90",))
    assert [p.name for p in loaded.plugins] == ["cuda_sm90", "cpu"]
    assert world.state("cuda_sm90", "cuda_sm90.acme", plugins=("cuda_sm90",)) == (
        "disabled",
        "not named in ARCHKEY_PLUGINS",
    )


def test_disabled_plugins_are_not_imported(world: World) -> None:
    module = world.install("cuda_sm90", GOOD)
    loaded = world.load("cuda_sm90", disable_plugins=("cuda_sm90", "cpu"))
    assert loaded.plugins == ()
    assert module not in sys.modules


def test_a_misspelt_name_in_the_allow_list_is_an_error(world: World) -> None:
    world.install("cuda_sm90.acme", GOOD)
    with pytest.raises(PluginError, match="'cuda_sm90.acne'.*did you mean 'cuda_sm90.acme'"):
        world.load("cuda_sm90", plugins=("cuda_sm90.acne",))


def test_a_misspelt_name_in_the_deny_list_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.install("cuda_sm90.acme", GOOD)
    with caplog.at_level(logging.WARNING, "archkey"):
        world.load("cuda_sm90", disable_plugins=("cuda_sm90.acne",))
    assert "no plugin 'cuda_sm90.acne'; did you mean 'cuda_sm90.acme'" in caplog.text


# ---- order


def _order(world: World, target: str = "cuda_sm90", **settings: object) -> list[str]:
    return [p.name for p in world.load(target, **settings).plugins]


def test_variants_by_name_then_the_base_then_the_default(world: World) -> None:
    for name in ("cuda_sm90", "cuda_sm90.zeta", "cuda_sm90.acme"):
        world.install(name, GOOD)
    assert _order(world) == ["cuda_sm90.acme", "cuda_sm90.zeta", "cuda_sm90", "cpu"]
    session = world.session("cuda_sm90")
    ids = [c.kernel.id for c in session._candidates["rmsnorm"]]
    assert ids == ["cuda_sm90.acme:fast", "cuda_sm90.zeta:fast", "cuda_sm90:fast", "cpu:torch"]


def test_the_users_order_wins_and_the_default_stays_last(world: World) -> None:
    for name in ("cuda_sm90", "cuda_sm90.zeta", "cuda_sm90.acme"):
        world.install(name, GOOD)
    order = ("cpu", "cuda_sm90", "cuda_sm90.zeta", "cuda_sm90.acme")
    assert _order(world, plugins=order) == [*order[1:], "cpu"]


def test_a_family_is_served_by_its_base_and_only_the_family(world: World) -> None:
    world.install("cuda_sm100", GOOD)
    world.install("cuda_sm100.acme", GOOD)
    world.install("cuda_sm103", GOOD)
    assert _order(world, "cuda_sm100") == ["cuda_sm100.acme", "cuda_sm100", "cpu"]
    # The plugin of this very chip comes before all of its family's.
    assert _order(world, "cuda_sm103") == ["cuda_sm103", "cuda_sm100.acme", "cuda_sm100", "cpu"]
    assert _order(world, "cuda_sm120") == ["cpu"]
    assert _order(world, "cuda_sm90") == ["cpu"]


def test_the_facts_of_the_preferred_plugin_win(world: World) -> None:
    for name, pdl in (("cuda_sm90", True), ("cuda_sm90.acme", False)):
        world.install(name, hook(f"yield {CAPABILITY.format('pdl', pdl)}", "archkey_capabilities"))
    assert world.session("cuda_sm90").capabilities.pdl is False
    order = ("cuda_sm90", "cuda_sm90.acme")
    assert world.session("cuda_sm90", plugins=order).capabilities.pdl is True


def test_the_last_resort_says_nothing_about_other_hardware(world: World) -> None:
    assert world.session("cpu").capabilities.mxfp4 == "emulated"
    caps = world.session("cuda_sm90").capabilities
    assert caps.mxfp4 == "none"
    assert caps["mxfp4"].reason == "no plugin for cuda_sm90 is loaded"


# ---- a vendor that the core has never heard of

ACME = """
from types import MappingProxyType
from typing import NamedTuple

from archkey.ops import Operator


class Conv(NamedTuple):
    "Convolution on a systolic array."
    width: int
    operator: str = "acme_conv"


CONV = Operator("acme_conv", "acme", Conv, ("x",), ("y",), "m:r", "m:f")


@archkey.hookimpl
def archkey_operators():
    yield CONV


@archkey.hookimpl
def archkey_capabilities(target):
    yield Capability("acme:systolic", 128, "acme data sheet", "128 x 128 cells")
"""


def test_a_vendors_own_target_operator_and_capability(world: World) -> None:
    needs = 'needs=(at_least("acme:systolic", {}),)'
    listed = kernels(
        fast("acme_conv", "huge", needs.format(256)), fast("acme_conv", "fast", needs.format(64))
    )
    world.install("acme_x1", ACME + listed)
    session = world.session("acme_x1")
    assert [p.name for p in session.plugins] == ["acme_x1", "cpu"]
    assert session.capabilities["acme:systolic"].value == 128
    decision = session.decide(session.operators["acme_conv"].problem(64))
    assert decision.chosen is not None and decision.chosen.id == "acme_x1:fast"
    assert not decision.degraded
    assert decision.rejected[0].found == "acme:systolic = 128 (128 x 128 cells)"
    assert "acme_conv" not in world.session("cpu").operators


def test_a_variant_uses_what_its_base_declares(world: World) -> None:
    line = fast("acme_conv", "faster", 'needs=(at_least("acme:systolic", 64),)')
    world.install("acme_x1", ACME)
    world.install("acme_x1.fast", kernels(line))
    session = world.session("acme_x1")
    decision = session.decide(session.operators["acme_conv"].problem(64))
    assert decision.chosen is not None and decision.chosen.id == "acme_x1.fast:faster"


def test_two_plugins_cannot_define_one_operator_differently(world: World) -> None:
    world.install("acme_x1", ACME)
    world.install("acme_x1.other", ACME.replace('("x",)', '("x", "w")'))
    state, reason = world.state("acme_x1", "acme_x1.other")
    assert (state, reason) == (
        "refused",
        "operator 'acme_conv' exists already; give it another name",
    )


def test_a_vendors_operator_falls_back_to_its_reference(world: World) -> None:
    world.install("acme_x1", ACME)
    session = world.session("acme_x1")
    decision = session.decide(session.operators["acme_conv"].problem(64))
    assert decision.chosen is not None and decision.chosen.id == "cpu:torch"
    assert decision.degraded


def test_nobody_else_takes_the_name_of_the_default(world: World) -> None:
    world.install("cpu", GOOD, dist="impostor")
    loaded = world.load("cuda_sm90")
    states = {e.found.distribution: e.state.value for e in loaded.report if e.found.name == "cpu"}
    assert states == {"archkey": "loaded", "impostor": "refused"}

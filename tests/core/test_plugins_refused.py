# SPDX-License-Identifier: Apache-2.0
"""Plugins that break the contract of the door: refused whole, with a reason that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.core._fakes import CAPABILITY, HEAD, World, fast, hook, kernels


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


GOOD = kernels(fast())

REFUSED = {
    "wrong signature": (hook("yield 1", arguments="target, device"), "device"),
    "second hook wrong": (GOOD + hook("yield 1", "archkey_capabilities", "trgt"), "trgt"),
    "misspelt hook": (hook("yield 1", "archkey_kernel"), "unknown hook 'archkey_kernel'"),
    "good and misspelt hook": (GOOD + hook("yield 1", "archkey_capability"), "unknown hook"),
    "no hook at all": ("", "implements no hook"),
    "unknown operator": (kernels(fast("rmsnrom")), "operator 'rmsnrom'; did you mean 'rmsnorm'"),
    "unknown field": (
        kernels(fast(rest='accepts=(at_most("widht", 8),)')),
        "field of rmsnorm's Problem 'widht'; did you mean 'width'",
    ),
    "unknown field in a tuning row": (
        kernels(fast(rest='tuning=Table((Row(1, (at_most("widht", 8),)), Row(2)))')),
        "'widht'; did you mean 'width'",
    ),
    "unknown capability": (
        kernels(fast(rest='needs=(is_("tcgen5", True),)')),
        "capability 'tcgen5'; did you mean 'tcgen05'",
    ),
    "capability without a vendor": (
        hook(f"yield {CAPABILITY.format('systolic', True)}", "archkey_capabilities"),
        "`vendor:name`",
    ),
    "capability of a wrong type": (
        hook(f"yield {CAPABILITY.format('pdl', 1)}", "archkey_capabilities"),
        "pdl is 1; it takes bool",
    ),
    "capability twice": (
        hook(
            f"return [{CAPABILITY.format('pdl', True)}, {CAPABILITY.format('pdl', False)}]",
            "archkey_capabilities",
        ),
        "two capabilities under one name: pdl",
    ),
    "two kernels with one name": (
        kernels(fast(), fast()),
        "two kernels under one name: rmsnorm fast",
    ),
    "a good and a bad kernel": (kernels(fast(), fast("rmsnrom", "other")), "'rmsnrom'"),
    "not a kernel": (hook('yield "fast"'), "must give objects of Kernel, found 'fast'"),
    "a subclass": (
        "class Mine(Kernel):\n    def named(self, name): return True\n"
        + hook('yield Mine("rmsnorm", "fast", "m:f")'),
        "must give objects of Kernel",
    ),
    "a name of another plugin": (kernels(fast(name="cpu:torch")), "kernel 'cpu:torch'"),
    "no name": (kernels(fast(name="")), "kernel ''"),
    "no attribute": (kernels('"rmsnorm", "fast", "module"'), "build must be 'module:attribute'"),
    "a forgotten comma": (
        kernels(fast(rest='accepts=(at_most("width", 8))')),
        "accepts must be a tuple of Condition",
    ),
    "a list that could change": (kernels(fast(rest="requires=[]")), "requires must be a tuple"),
    "a core operator again": (
        "from archkey.ops import OPERATORS\nfrom dataclasses import replace\n"
        + hook("yield replace(OPERATORS['rmsnorm'], inputs=())", "archkey_operators", ""),
        "operator 'rmsnorm' exists already",
    ),
    "an operator without a vendor": (
        "from archkey.ops import OPERATORS\nfrom dataclasses import replace\n"
        + hook("yield replace(OPERATORS['rmsnorm'], name='plan')", "archkey_operators", ""),
        "name is like 'vendor_name'",
    ),
    "a Problem of another operator": (
        "from archkey.ops import OPERATORS\nfrom dataclasses import replace\n"
        + hook("yield replace(OPERATORS['rmsnorm'], name='acme_norm')", "archkey_operators", ""),
        "`operator: str = 'acme_norm'`",
    ),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_a_plugin_that_breaks_the_contract_is_refused_whole(
    world: World, source: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.install("cuda_sm90", GOOD)
    world.install("cuda_sm90.acme", source)
    session = world.session("cuda_sm90")
    state, reason = world.state("cuda_sm90", "cuda_sm90.acme")
    assert state == "refused"
    assert message in reason
    assert "plugin cuda_sm90.acme is refused" in caplog.text
    assert [p.name for p in session.plugins] == ["cuda_sm90", "cpu"]
    used = {c.kernel.plugin for listed in session._candidates.values() for c in listed}
    assert used == {"cuda_sm90", "cpu"}, "nothing of it is used"


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("(2, 3)", "supports API 2 to 3, not 1; upgrade archkey"),
        ("(0, 0)", "supports API 0 to 0, not 1; upgrade the plugin"),
        ("None", "found None"),
        ("1", "found 1"),
        ("'1'", "found '1'"),
        ("(1, 1, 1)", "found (1, 1, 1)"),
        ("(True, True)", "found (True, True)"),
        ("(3, 0)", "found (3, 0)"),
        ("[1, 1]", "found [1, 1]"),
    ],
)
def test_the_api_must_fit(world: World, span: str, message: str) -> None:
    world.install("cuda_sm90", GOOD, head=HEAD.replace("(1, 1)", span), version="7.1")
    state, reason = world.state("cuda_sm90", "cuda_sm90")
    assert state == "refused"
    assert "fake-cuda-sm90 7.1" in reason
    assert reason.endswith(message)


def test_an_api_that_is_not_stated(world: World) -> None:
    world.install("cuda_sm90", GOOD, head=HEAD.replace("ARCHKEY_API", "ARCHKEY_APPI"))
    assert "ARCHKEY_API must be" in world.state("cuda_sm90", "cuda_sm90")[1]


def test_a_range_of_apis_around_ours(world: World) -> None:
    world.install("cuda_sm90", GOOD, head=HEAD.replace("(1, 1)", "(0, 9)"))
    assert world.state("cuda_sm90", "cuda_sm90")[0] == "loaded"

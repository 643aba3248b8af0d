# SPDX-License-Identifier: Apache-2.0
"""Which rules hold, what rests on them, and what runs instead; the rest of `archkey doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.core._fakes import TOY, Toy, World, card, fast, kernel, kernels, last_resort, plugin
from tests.core._fakes import alone as alone

from archkey import diagnosis
from archkey.cli import cli
from archkey.conditions import at_least, at_most, is_
from archkey.diagnosis import Effect, Instead, Standing, examine
from archkey.kernel import Kernel
from archkey.plugins import Loaded
from archkey.requirements import Requirement
from archkey.session import Session
from archkey.settings import settings
from archkey.tuning import Row, Table

HERE = version("packaging")
BAD = Requirement("packaging", "<1", "a test", "accuracy", "acme#1")
SLOW = Requirement("packaging", "<1", "a test", "speed")
GOOD = Requirement("packaging", ">=1", "a test")
GONE = Requirement("no-such-package", ">=2", "it calls it")

EXAMPLES = MappingProxyType({"narrow": Toy(width=128), "wide": Toy(width=512)})


def made(*given: Kernel, home: str = "cuda_sm90") -> Session:
    """A session of an sm90 with these kernels and the torch reference behind them."""
    operator = replace(TOY, examples=EXAMPLES)
    own = plugin(*given, operators=(operator,), home=home)
    return Session(card(home), settings(), loaded=Loaded((own, last_resort()), ()))


def toy(name: str, *rules: Requirement, **data: Any) -> Kernel:
    return kernel(name, "toy_op", requires=rules, **data)


def only(*given: Kernel) -> Standing:
    (standing,) = examine([made(*given)])
    return standing


def outcome(*given: Kernel) -> list[tuple[str, Effect, list[str | None]]]:
    """Of each that rests on the only rule: name, effect, and the kernels that run instead."""
    return [
        (one.kernel.removeprefix("fake:"), one.effect, [other.kernel for other in one.instead])
        for one in only(*given).dependents
    ]


# ---- what a violated rule of a kernel changes


def test_a_rule_that_holds_changes_nothing() -> None:
    found = only(toy("a", GOOD), toy("b"))
    assert (found.state, found.version, found.matters) == ("ok", HERE, False)
    assert [one.effect for one in found.dependents] == [Effect.NONE]


def test_the_next_kernel_runs() -> None:
    found = only(toy("a", BAD), toy("b"))
    assert (found.state, found.version, found.matters) == ("violated", HERE, True)
    (one,) = found.dependents
    assert one.effect is Effect.CHANGED and not one.last_resort
    assert one.instead == (Instead("fake:b", None, False),)


def test_what_runs_instead_may_differ_from_problem_to_problem() -> None:
    found = outcome(toy("a", BAD), toy("b", accepts=(at_most("width", 128),)))
    assert found == [("a", Effect.CHANGED, ["fake:b", "cpu:torch"])]


def test_a_rule_that_two_share_is_one() -> None:
    """Without it the first would serve all; that the second is disabled, too, costs nothing."""
    shared = replace(BAD)
    assert outcome(toy("a", BAD), toy("b", shared), toy("c")) == [
        ("a", Effect.CHANGED, ["fake:c"]),
        ("b", Effect.UNUSED, []),
    ]


@pytest.mark.parametrize(
    "lost",
    [toy("b", BAD), toy("b", BAD, needs=(is_("wgmma", True),))],
    ids=["outranked", "capability"],
)
def test_what_would_not_run_anyway_is_no_loss(lost: Kernel) -> None:
    found = only(toy("a"), lost)
    assert found.state == "violated" and not found.matters
    assert [one.effect for one in found.dependents] == [Effect.UNUSED]


def test_what_no_example_shows_may_matter() -> None:
    found = only(toy("a", BAD, accepts=(at_least("width", 1024),)), toy("b"))
    assert found.matters and [one.effect for one in found.dependents] == [Effect.UNSEEN]


def test_an_option_matters_where_only_the_last_resort_is_left() -> None:
    taken, alone = only(toy("a", GONE), toy("b")), only(toy("a", GONE))
    assert (taken.state, taken.version, taken.matters) == ("not installed", None, False)
    assert (alone.state, alone.matters) == ("not installed", True)
    assert alone.dependents[0].instead == (Instead("cpu:torch", None, True),)


def test_of_two_broken_rules_each_is_told() -> None:
    both = examine([made(toy("a", SLOW, BAD, GONE), toy("b"))])
    assert [standing.rule for standing in both] == [BAD, SLOW, GONE], "what is worst comes first"
    assert {one.effect for s in both for one in s.dependents} == {Effect.CHANGED}


def test_what_matters_comes_first() -> None:
    crash = replace(BAD, severity="crash")
    listed = examine([made(toy("a", SLOW), toy("b"), toy("c", crash), toy("d", GOOD))])
    assert [standing.rule for standing in listed] == [SLOW, crash, GOOD]


def test_targets_share_a_rule() -> None:
    both = [made(toy("a", BAD), home=home) for home in ("cuda_sm90", "rocm_gfx950")]
    (found,) = examine(both)
    assert [one.target for one in found.dependents] == ["cuda_sm90", "rocm_gfx950"]


# ---- rows


def rows(*given: Row) -> Kernel:
    return toy("a", tuning=Table((*given, Row(9))))


@pytest.mark.parametrize(
    ("given", "effect", "instead"),
    [
        ((Row(1, requires=(BAD,)),), Effect.CHANGED, [2]),
        ((Row(1, requires=(BAD,)), Row(2, (at_most("width", 128),))), Effect.CHANGED, [2, 3]),
        ((Row(1, (at_most("width", 1),), (BAD,)),), Effect.UNSEEN, []),
        ((Row(1), Row(2, requires=(BAD,))), Effect.UNUSED, []),
    ],
    ids=["next", "by problem", "no example", "behind"],
)
def test_a_fenced_row(given: tuple[Row, ...], effect: Effect, instead: list[int]) -> None:
    found = only(rows(*given))
    (one,) = found.dependents
    assert (one.kernel, one.effect) == ("fake:a", effect)
    assert [other.row for other in one.instead] == instead
    assert found.matters is (effect is not Effect.UNUSED)


def test_a_row_of_a_kernel_that_does_not_run_is_no_loss() -> None:
    fenced = replace(rows(Row(1, requires=(BAD,))), name="z")
    assert [one.effect for one in only(toy("a"), fenced).dependents] == [Effect.UNUSED]


# ---- ranks


def test_what_rules_decide_is_part_of_a_sessions_identity() -> None:
    with_rule, without = made(toy("a", BAD), toy("b")), made(toy("a", GOOD), toy("b"))
    for session in (with_rule, without):
        session.plan(Toy())
    mine, other = with_rule.identity(), without.identity()
    assert {name for name in mine if mine[name] != other[name]} == {repr(Toy())}
    assert mine["version of packaging"] == HERE
    assert with_rule.fingerprint() != without.fingerprint()


# ---- the command, beside the rules


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: Callable[..., None]) -> World:
    environ(ARCHKEY_TARGET="acme_x1")
    return World(tmp_path, monkeypatch)


def doctor(*arguments: str, code: int = 0, **environ: str) -> Result:
    settings.cache_clear()
    result = CliRunner().invoke(cli, ["doctor", *arguments], env={"COLUMNS": "80", **environ})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(*arguments: str, code: int = 0, **environ: str) -> Any:
    return json.loads(doctor(*arguments, "--json", code=code, **environ).stdout)


def test_by_default_it_judges_the_devices_that_are_here(world: World) -> None:
    world.install("acme_x1", kernels(fast()))
    found = document()
    assert found["targets"] == ["acme_x1", "cpu"]
    assert [device["target"] for device in found["devices"]] == ["acme_x1", "cpu"]
    assert found["machine"]["environment"]["ARCHKEY_TARGET"] == "acme_x1"
    states = {entry["name"]: entry["state"] for entry in found["plugins"]}
    assert states["acme_x1"] == "loaded" and states["cpu"] == "loaded"
    assert not any("uuid" in device for device in found["devices"]), "it is pasted into the open"


def test_all_means_the_targets_of_installed_plugins(world: World) -> None:
    world.install("acme_x1", kernels(fast()))
    world.install("acme_x2", kernels(fast()))
    assert {"acme_x1", "acme_x2", "cpu"} <= set(document("--all")["targets"])
    assert "leave out TARGET" in doctor("cpu", "--all", code=2).stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no [red]licence')", "is broken: RuntimeError: no [red]licence"),
        ("ARCHKEY_API = (7, 8)", "is refused: "),
    ],
)
def test_a_plugin_that_failed_is_something_to_do(world: World, source: str, said: str) -> None:
    world.install("acme_x1.bad", source)
    (finding,) = document(code=1)["findings"]
    assert finding.startswith(f"plugin acme_x1.bad {said}")
    assert finding.endswith("see `archkey plugins --traceback -t acme_x1`")
    out = doctor(code=1).stdout
    assert said.split(":")[0].split()[1] in out and "1 to do:" in out
    assert max(map(len, out.splitlines())) <= 80 and "\x1b" not in out


def test_an_override_that_names_no_kernel_is_something_to_do(world: World) -> None:
    world.install("acme_x1", kernels(fast()))
    (finding,) = document("acme_x1", code=1, ARCHKEY_OVERRIDE_RMSNORM="fats")["findings"]
    assert finding.startswith("acme_x1: unknown kernel of rmsnorm 'fats'; did you mean")


def test_two_distributions_of_one_package_are_something_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {"triton": "3.6.0", "pytorch-triton-rocm": "3.5.1"}
    known = diagnosis.distributions_of
    monkeypatch.setattr(
        diagnosis, "distributions_of", lambda name: owners if name == "triton" else known(name)
    )
    (finding,) = document("cpu", code=1)["findings"]
    assert finding.startswith("triton 3.6.0 and pytorch-triton-rocm 3.5.1 overwrite each other's")
    assert "3.6.0, 3.5.1 (pytorch-triton-rocm)" in doctor("cpu", code=1).stdout


def test_without_rules_it_says_so(world: World) -> None:
    out = doctor("cpu").stdout
    assert "no kernel for cpu rests on a rule" in out
    assert "nothing to do" in out

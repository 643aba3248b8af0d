# SPDX-License-Identifier: Apache-2.0
"""What is called slower or faster between two runs, what is not, and what else is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.bench._documents import document, one, timed, timing, untimed, workload

from archkey.bench.compare import Comparison, compare
from archkey.bench.results import OURS, STATUSES
from archkey.cli.comparison import show

POSITIVE = st.floats(0.5, 1e6)


@st.composite
def timings(draw: st.DrawFn) -> Any:
    us, down, up = draw(POSITIVE), draw(st.floats(0, 0.5)), draw(st.floats(0, 2))
    found = timing(us, samples=draw(st.integers(1, 40)), method=draw(st.sampled_from("ge")))
    return type(found)(us, us * (1 - down), us * (1 + up), found.samples, found.method)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Up to three workloads of up to three entrants, some of them without a time."""
    listed = []
    for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
        rows = []
        for entrant in draw(st.lists(st.sampled_from([OURS, "fla", "vllm"]), unique=True)):
            status = draw(st.sampled_from(STATUSES))
            time = draw(timings())
            rows.append(timed(entrant, time) if status == "timed" else untimed(entrant, status))
        bound = draw(st.one_of(st.none(), st.floats(1.0, 1e5)))
        by = draw(st.sampled_from(["copy", "bfloat16"]))
        listed.append(workload(*rows, name=name, bound_us=bound, bound_by=by))
    return document(*listed, complete=draw(st.booleans()))


def verdict(old: dict[str, Any], new: dict[str, Any], entrant: str = OURS) -> str:
    (move,) = (m for m in compare(old, new).moves if m.entrant == entrant)
    return move.verdict


def shown(comparison: Comparison) -> str:
    output = io.StringIO()
    show(Console(width=120, highlight=False, markup=False, file=output), comparison)
    return output.getvalue()


@settings(deadline=None)  # machines that test are busy
@given(documents())
def test_beside_itself_nothing_moves(found: dict[str, Any]) -> None:
    comparison = compare(found, found)
    assert {m.verdict for m in comparison.moves} <= {"same"}
    assert not (comparison.statuses or comparison.choices or comparison.shifts or comparison.worse)
    assert not (comparison.versions or comparison.ceilings or comparison.settings)
    assert not (comparison.only_old or comparison.only_new or comparison.changed)


@settings(deadline=None)
@given(documents(), documents())
def test_swapped_what_was_slower_is_faster(old: dict[str, Any], new: dict[str, Any]) -> None:
    there, back = compare(old, new), compare(new, old)
    opposite = {"slower": "faster", "faster": "slower"}
    forth = {(m.workload, m.entrant): opposite.get(m.verdict, m.verdict) for m in there.moves}
    assert forth == {(m.workload, m.entrant): m.verdict for m in back.moves}
    assert (there.only_old, there.only_new) == (back.only_new, back.only_old)
    assert len(there.statuses) == len(back.statuses)


@settings(deadline=None)
@given(documents(), documents())
def test_whatever_is_compared_can_be_told(old: dict[str, Any], new: dict[str, Any]) -> None:
    comparison = compare(old, new)
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["summary"]
    assert shown(comparison)
    names = ("slower", "faster", "same", "not comparable")
    assert sum(comparison.summary[n] for n in names) == comparison.summary["compared"]


@settings(deadline=None)
@given(timings(), st.floats(0, 1), st.integers(1, 40))
def test_a_median_within_the_spread_of_the_other_has_not_moved(
    old: Any, where: float, samples: int
) -> None:
    at = min(old.low + where * (old.high - old.low), old.high)
    assume(at > 0)
    new = type(old)(at, at * 0.99, at * 1.01, samples, old.method)
    assert verdict(one(old), one(new)) == "same"
    assert verdict(one(new), one(old)) == "same"


@settings(deadline=None)
@given(POSITIVE, st.floats(1, 1.049), st.integers(10, 40))
def test_less_than_five_percent_is_equal(us: float, factor: float, samples: int) -> None:
    new = timing(us * factor, spread=0, samples=samples)
    assert verdict(one(timing(us, spread=0)), one(new)) == "same"


@settings(deadline=None)
@given(POSITIVE, st.floats(1.31, 100))
def test_far_beyond_floor_and_spread_has_moved(us: float, factor: float) -> None:
    assert verdict(one(timing(us)), one(timing(us * factor))) == "slower"


@pytest.mark.parametrize(
    ("old", "new", "fields", "expected"),
    [
        (timing(300), timing(321), {}, "slower"),
        (timing(300), timing(279), {}, "faster"),
        (timing(100), timing(111), {}, "same"),  # where a process finds its memory
        (timing(100), timing(114), {}, "slower"),
        (timing(300, method="events"), timing(420, method="events"), {}, "same"),  # the host
        (timing(300, method="events"), timing(480, method="events"), {}, "slower"),
        (timing(2000), timing(2200), {"bound_by": "bfloat16"}, "same"),  # power
        (timing(2000), timing(2300), {"bound_by": "bfloat16"}, "slower"),
        (timing(2000), timing(2200), {"bound_by": "copy"}, "slower"),
        (timing(900), timing(990), {"bound_by": "bfloat16"}, "slower"),  # too short for power
        (timing(300), timing(324, samples=9), {}, "same"),  # a floor of 10 %
        (timing(300), timing(336, samples=9), {}, "slower"),
        (timing(300, spread=0.1), timing(327), {}, "same"),  # within the old spread
        (timing(300), timing(336, spread=0.15), {}, "same"),  # the old within the new spread
        (timing(100), timing(200, method="events"), {}, "not comparable"),
    ],
)
def test_the_rule(old: Any, new: Any, fields: dict[str, Any], expected: str) -> None:
    assert verdict(one(old, **fields), one(new, **fields)) == expected


@pytest.mark.parametrize(
    ("us", "bound", "expected", "normalised"),
    [
        (1100.0, 550.0, "same", 1.0),  # all of the card is 10 % slower
        (1000.0, 450.0, "slower", 100 / 45 / 2),  # the card got faster, the kernel did not
        (1070.0, 510.0, "slower", None),  # 2 % is what a ceiling reads differently: times decide
        (4000.0, 550.0, "slower", None),  # far from its bound: no ceiling governs it
    ],
)
def test_shares_of_the_bound_decide_where_the_ceilings_differ(
    us: float, bound: float, expected: str, normalised: float | None
) -> None:
    comparison = compare(one(1000.0, 1000.0, bound_us=500.0), one(us, us, bound_us=bound))
    (move,) = (m for m in comparison.moves if m.entrant == OURS)
    assert move.verdict == expected
    assert move.normalised == pytest.approx(normalised)
    assert move.ratio == pytest.approx(us / 1000)
    assert ("to bound" in shown(comparison)) == (expected != "same" and normalised is not None)


def test_a_cost_that_is_counted_in_another_way_leaves_the_times_to_decide() -> None:
    assert verdict(one(100.0), one(100.0, bytes=4e6, bound_us=100.0)) == "same"


def test_what_became_wrong_comes_first_and_of_ours_is_worse() -> None:
    old = document(workload(timed(OURS, 9.0), timed("fla", 9.0), untimed("vllm", "not installed")))
    new = document(
        workload(untimed(OURS, "failed"), untimed("fla", "wrong", "out is off"), timed("vllm", 9.0))
    )
    comparison = compare(old, new)
    found = [(s.entrant, s.old, s.new) for s in comparison.statuses]
    assert found == [
        ("fla", "timed", "wrong"),
        (OURS, "timed", "failed"),
        ("vllm", "not installed", "timed"),
    ]
    assert comparison.worse and comparison.summary["now wrong"] == 1
    text = shown(comparison)
    assert "out is off" in text and "vllm: not installed -> timed at 1 workloads" in text
    assert not compare(old, old).worse


def test_a_peer_that_is_slower_does_not_make_us_worse() -> None:
    assert compare(one(100.0, 100.0), one(120.0, 100.0)).worse
    assert not compare(one(100.0, 100.0), one(100.0, 120.0)).worse


def test_ours_before_peers_and_the_farthest_first() -> None:
    old = document(*(workload(timed(OURS, 9.0), timed("fla", 9.0), name=n) for n in "ab"))
    new = document(
        workload(timed(OURS, 11.0), timed("fla", 90.0), name="a"),
        workload(timed(OURS, 20.0), timed("fla", 1.0), name="b"),
    )
    order = [(m.workload, m.entrant, m.verdict) for m in compare(old, new).moves]
    assert order == [
        ("b", OURS, "slower"),
        ("a", OURS, "slower"),
        ("a", "fla", "slower"),
        ("b", "fla", "faster"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((900.0, 1000.0), (1100.0, 1000.0), ("ahead", "behind")),
        ((1100.0, 1000.0), (1000.0, 1000.0), ("behind", "level")),
        ((1000.0, 1000.0), (1030.0, 1000.0), None),
    ],
)
def test_our_place_beside_the_best_peer(
    old: tuple[float, float], new: tuple[float, float], expected: tuple[str, str] | None
) -> None:
    comparison = compare(one(*old), one(*new))
    found = [(s.old.standing, s.new.standing) for s in comparison.shifts]
    assert found == ([expected] if expected else [])
    if expected:
        assert f"flashinfer takes {new[1] / new[0]:.2f}" in shown(comparison)


@pytest.mark.parametrize(
    "decision",
    [
        {"chosen": "cpu:torch", "tuning": None},
        {"chosen": "cuda_sm90:triton", "tuning": {"values": "num_warps=8"}},
    ],
)
def test_another_decision_is_told(decision: dict[str, Any]) -> None:
    comparison = compare(one(), one(decision=decision))
    (choice,) = comparison.choices
    assert (choice.old, choice.old_tuning) == ("cuda_sm90:triton", "num_warps=4")
    assert choice.new == decision["chosen"] and "num_warps=4" in shown(comparison)


def test_another_problem_under_the_same_name_is_not_compared() -> None:
    comparison = compare(one(100.0), one(200.0, problem="RmsNormProblem(width=512)"))
    assert comparison.changed == (("rmsnorm", "t64"),) and not comparison.moves
    assert "another problem" in shown(comparison)


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    found = one()
    change(found)
    return found


@pytest.mark.parametrize("field", [{"name": "NVIDIA B200"}, {"partition": "1g.18gb"}], ids=str)
def test_two_cards_are_told_loudly(field: dict[str, str]) -> None:
    new = edited(lambda d: d["machine"]["device"].update(field))
    comparison = compare(one(), new)
    assert not comparison.same_card
    line = shown(comparison).splitlines()[0]
    assert line.startswith("TIMES OF TWO CARDS ARE COMPARED") and next(iter(field.values())) in line
    assert "TWO CARDS" not in shown(compare(one(), one()))


def test_versions_ceilings_and_settings_that_differ_are_told() -> None:
    def change(found: dict[str, Any]) -> None:
        found["versions"]["triton"] = "3.9.0"
        found["machine"]["device"]["driver"] = "590.1"
        found["peers"][0]["versions"] = {}
        found["ceilings"][0]["start"] = 3.0e12
        found["ceilings"][1]["start"] *= 1.01
        found["settings"]["samples"] = 7

    comparison = compare(one(), edited(change))
    assert {(v.name, v.old, v.new) for v in comparison.versions} == {
        ("triton", "3.6.0", "3.9.0"),
        ("driver", "580.159.04", "590.1"),
        ("flashinfer-python", "0.7.2.post1", ""),
    }
    assert [c.name for c in comparison.ceilings] == ["copy"]
    assert comparison.settings == {"samples": (30, 7)}
    assert all(part in shown(comparison) for part in ("3.9.0", "590.1", "copy [B/s]", "samples"))


@pytest.mark.parametrize(
    ("old", "new", "differ"),
    [
        ({"only": ["fla", "vllm"]}, {"only": ["vllm", "fla", "fla"]}, set()),
        ({"only": None}, {}, set()),
        ({"without": []}, {}, set()),
        ({"workloads": 3}, {"workloads": 70, "resumed": True}, set()),
        ({"only": None}, {"only": []}, {"only"}),  # all peers, and none
        ({"only": ["fla"]}, {"only": ["vllm"], "without": ["fla"]}, {"only", "without"}),
        ({"seed": 0}, {"seed": 1}, {"seed"}),
    ],
)
def test_settings_differ_in_what_they_mean(
    old: dict[str, Any], new: dict[str, Any], differ: set[str]
) -> None:
    found = compare(document(settings=old), document(settings=new)).settings
    assert set(found) == differ
    assert all(found[name] == (old.get(name), new.get(name)) for name in differ)


def test_a_run_that_was_cut_off_is_told_and_compared_as_far_as_it_goes() -> None:
    rows = (timed(OURS, 9.0), timed("fla", 9.0))
    old = document(*(workload(*rows, name=name) for name in "ab"))
    bare = {"operator": "rmsnorm", "name": "b", "entries": []}  # begun, nothing known yet
    new = document(workload(*rows, name="a"), bare, complete=False, ceilings=[])
    comparison = compare(old, new)
    assert comparison.complete == (True, False)
    assert comparison.summary["same"] == 2
    assert "The new run was cut off" in shown(comparison)
    gone = document(workload(*rows[:1], name="a"), complete=False)
    assert compare(old, gone).only_old == (
        ("rmsnorm", "a", "fla"),
        ("rmsnorm", "b", OURS),
        ("rmsnorm", "b", "fla"),
    )
    assert compare(gone, old).only_new == compare(old, gone).only_old


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0], ids=str)
def test_a_time_that_is_none_is_not_compared(bad: float) -> None:
    """A document that was written by hand can hold such numbers; ours cannot."""
    (move,) = (m for m in compare(one(), one(bad)).moves if m.entrant == OURS)
    assert (move.verdict, move.ratio) == ("not comparable", None)

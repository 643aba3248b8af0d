# SPDX-License-Identifier: Apache-2.0
"""Selection: the first that nothing speaks against, and a reason for every other one."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core._fakes import Toy, capability, card, kernel

from archkey.capabilities import Capabilities, gather
from archkey.conditions import at_least, at_most, is_, one_of
from archkey.requirements import SEVERITIES, Requirement, Violation
from archkey.selection import Candidate, Code, Decision, Policy, Rejection, select
from archkey.target import Target

SM90 = Target.parse("cuda_sm90")
CPU = Target.parse("cpu")
VERSIONS = {"torch": "2.9.0", "triton": "3.7.0"}


def caps(**values: Any) -> Capabilities:
    return gather(card(), [capability(n, v) for n, v in values.items()], "cuda_sm90")


def choose(*given: Candidate, problem: Toy | None = None, **rest: Any) -> Decision:
    problem = problem or Toy()
    return select(problem, SM90, caps(tma=True), given, VERSIONS, **rest)


def toy(name: str = "fast", home: Target = SM90, **data: Any) -> Candidate:
    return Candidate(kernel(name, "toy_op", **data), home)


TORCH = toy("torch", CPU, plugin="cpu")


# ---- every code, with what was required, found, and what helps


def only(decision: Decision) -> Rejection:
    (rejection,) = decision.rejected
    return rejection


def test_outranked() -> None:
    decision = choose(toy("a"), toy("b"))
    assert decision.chosen is not None and decision.chosen.id == "fake:a"
    assert only(decision) == Rejection(
        "fake:b",
        Code.OUTRANKED,
        "the first place among those that accept",
        "fake:a comes first",
        'override toy_op with "fake:b" to use it',
    )


def test_problem() -> None:
    wide = toy("wide", accepts=(at_least("width", 512, "the tile is 512 wide"),))
    assert only(choose(wide)) == Rejection(
        "fake:wide", Code.PROBLEM, "width >= 512", "width = 128", "the tile is 512 wide"
    )


def test_capability() -> None:
    assert only(choose(toy(needs=(is_("wgmma", True),)))) == Rejection(
        "fake:fast",
        Code.CAPABILITY,
        "wgmma = True",
        "wgmma = False (plugin cuda_sm90 does not declare it)",
        "use a device that has it",
    )


def test_a_capability_that_nobody_knows_is_not_satisfied() -> None:
    found = only(choose(toy(needs=(at_least("shared_memory_bytes", 100_000),))))
    assert (found.code, found.required) == (Code.CAPABILITY, "shared_memory_bytes >= 100000")


def test_requirement_too_old_known_bad_or_missing() -> None:
    bad = Requirement("triton", ">=3.6,!=3.7.0", "wrong sums", "accuracy", "acme#11494")
    found = only(choose(toy(requires=(bad,))))
    assert found == Rejection(
        "fake:fast",
        Code.REQUIREMENT,
        "triton>=3.6,!=3.7.0",
        "triton 3.7.0",
        "install triton>=3.6,!=3.7.0",
        Violation(bad, "3.7.0"),
    )
    assert found.consequence == "accuracy: wrong sums (acme#11494)"
    assert found.to_json() == {
        "kernel": "fake:fast",
        "code": "requirement",
        "required": "triton>=3.6,!=3.7.0",
        "found": "triton 3.7.0",
        "severity": "accuracy",
        "why": "wrong sums",
        "reference": "acme#11494",
        "remedy": "install triton>=3.6,!=3.7.0",
    }
    missing = only(choose(toy(requires=(Requirement("flashmla", why="it calls it"),))))
    assert (missing.found, missing.remedy) == ("flashmla not installed", "install flashmla")
    assert missing.consequence == "", "what is not there has no bad version"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_severity_disables_and_the_next_kernel_runs(severity: str) -> None:
    bad = Requirement("triton", "!=3.7.0", "a test", severity)
    decision = choose(toy("a", requires=(bad,)), toy("b"))
    assert decision.chosen is not None and decision.chosen.id == "fake:b"
    assert only(decision).to_json()["severity"] == severity
    wanted = choose(toy("a", requires=(bad,)), toy("b"), policy=Policy({"toy_op": "a"}))
    assert wanted.chosen is None, "an override lifts no rule"
    assert [(r.kernel, r.code) for r in wanted.rejected] == [
        ("fake:a", Code.REQUIREMENT),
        ("fake:b", Code.OVERRIDE),
    ]


def test_override() -> None:
    decision = choose(toy("a"), toy("b"), policy=Policy({"toy_op": "b"}))
    assert decision.chosen is not None and decision.chosen.id == "fake:b"
    assert decision.overridden
    assert only(decision) == Rejection(
        "fake:a", Code.OVERRIDE, "kernel b", "fake:a", "end the override of toy_op"
    )


def test_an_override_of_another_operator_is_nothing_to_us() -> None:
    assert choose(toy("a"), toy("b"), policy=Policy({"rmsnorm": "b"})) == choose(toy("a"), toy("b"))


def test_an_override_by_id_tells_two_plugins_apart() -> None:
    ours, theirs = toy("triton"), toy("triton", plugin="acme")
    for wanted, chosen in (("acme:triton", "acme:triton"), ("triton", "fake:triton")):
        decision = choose(ours, theirs, policy=Policy({"toy_op": wanted}))
        assert decision.chosen is not None and decision.chosen.id == chosen


def test_an_override_does_not_lift_any_check() -> None:
    blocked = toy("b", needs=(is_("wgmma", True),))
    decision = choose(toy("a"), blocked, policy=Policy({"toy_op": "b"}))
    assert decision.chosen is None
    assert [(r.kernel, r.code) for r in decision.rejected] == [
        ("fake:a", Code.OVERRIDE),
        ("fake:b", Code.CAPABILITY),
    ]


def test_build() -> None:
    failed = {"fake:fast": "OSError: libfast.so.3 is missing"}
    decision = choose(toy(), TORCH, failed=failed)
    assert decision.chosen is not None and decision.chosen.id == "cpu:torch"
    found = only(decision)
    assert (found.code, found.found) == (Code.BUILD, "OSError: libfast.so.3 is missing")


def test_the_last_resort_is_degraded_and_strict_refuses_it() -> None:
    assert choose(TORCH).degraded
    assert not choose(toy(), TORCH).degraded
    decision = choose(TORCH, policy=Policy(strict=True))
    assert decision.chosen is None and not decision.degraded
    assert only(decision) == Rejection(
        "cpu:torch",
        Code.DEGRADED,
        "a kernel made for cuda_sm90",
        "made for cpu",
        "install the plugin of cuda_sm90, or allow it with strict=False",
    )


def test_a_kernel_of_the_family_is_not_degraded() -> None:
    family = toy("f", Target.parse("cuda_sm100"))
    for chip, degraded in (("cuda_sm103", False), ("cuda_sm120", True)):
        decision = select(Toy(), Target.parse(chip), caps(), [family], {})
        assert decision.degraded is degraded


def test_no_candidate_at_all() -> None:
    assert choose().chosen is None
    assert choose().rejected == ()


# ---- for any kernels and any problem

FAULTS = (Code.CAPABILITY, Code.PROBLEM, Code.REQUIREMENT, Code.BUILD)
"""In the order in which a kernel with several of them reports the first."""


@dataclass(frozen=True)
class Plan:
    """A kernel by what is wrong with it."""

    faults: frozenset[Code]
    at_home: bool

    def candidate(self, name: str) -> Candidate:
        has = self.faults.__contains__
        return toy(
            name,
            SM90 if self.at_home else CPU,
            needs=(is_("tma", True), is_("wgmma", has(Code.CAPABILITY))),
            accepts=(
                one_of("dtype", ["bfloat16"]),
                at_most("width", 64 if has(Code.PROBLEM) else 128),
            ),
            requires=(Requirement("triton", ">=3.8" if has(Code.REQUIREMENT) else ">=3.6"),),
        )

    def expected(self, name: str, wanted: str | None, strict: bool) -> Code | None:
        """The first reason against it, or None."""
        reasons = [code for code in FAULTS if code in self.faults]
        reasons += [Code.OVERRIDE] * (wanted not in (None, name))
        reasons += [Code.DEGRADED] * (strict and not self.at_home)
        return reasons[0] if reasons else None


PLANS = st.builds(Plan, st.frozensets(st.sampled_from(FAULTS), max_size=2), st.booleans())
CASES = st.lists(PLANS, max_size=6).flatmap(
    lambda plans: st.tuples(
        st.just(plans),
        st.sampled_from([None, *(f"k{i}" for i in range(len(plans)))]),
        st.booleans(),
    )
)


def run(plans: list[Plan], wanted: str | None, strict: bool) -> Decision:
    given = [plan.candidate(f"k{i}") for i, plan in enumerate(plans)]
    failed = {f"fake:k{i}": "gone" for i, plan in enumerate(plans) if Code.BUILD in plan.faults}
    policy = Policy({"toy_op": wanted} if wanted else {}, strict)
    return choose(*given, policy=policy, failed=failed)


@given(CASES)
def test_the_first_acceptable_wins_and_everybody_else_has_a_reason(case: Any) -> None:
    plans, wanted, strict = case
    decision = run(plans, wanted, strict)
    reasons = {f"fake:k{i}": p.expected(f"k{i}", wanted, strict) for i, p in enumerate(plans)}
    acceptable = [name for name, reason in reasons.items() if reason is None]
    assert (decision.chosen.id if decision.chosen else None) == next(iter(acceptable), None)
    # Every other candidate exactly once, in the order given, with the first reason against it.
    assert [(r.kernel, r.code) for r in decision.rejected] == [
        (name, reason or Code.OUTRANKED)
        for name, reason in reasons.items()
        if name not in acceptable[:1]
    ]
    assert all(r.required and r.found and r.remedy for r in decision.rejected)


@given(CASES, st.data())
def test_candidates_that_were_not_chosen_do_not_matter(case: Any, data: st.DataObject) -> None:
    plans, wanted, strict = case
    decision = run(plans, wanted, strict)
    if decision.chosen is None:
        return
    first = int(decision.chosen.name[1:])
    others = [i for i in range(len(plans)) if i != first]
    changed = list(plans)
    for i in others:
        if i > first:  # whatever comes later may be anything
            changed[i] = data.draw(PLANS)
        elif wanted in (None, f"k{i}"):  # whatever came earlier may fail in another way
            changed[i] = replace(plans[i], faults=frozenset({data.draw(st.sampled_from(FAULTS))}))
    again = run(changed, wanted, strict)
    assert again.chosen is not None and again.chosen.id == decision.chosen.id


@given(CASES)
def test_asked_again_it_answers_the_same(case: Any) -> None:
    assert run(*case) == run(*case)


def test_it_asks_neither_the_environment_nor_the_kernels_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Nobody(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            raise AssertionError(name)

    monkeypatch.setattr(os, "environ", Nobody())
    lost = Candidate(replace(toy().kernel, build="no_such_module:attribute"), SM90)
    assert choose(lost).chosen is lost.kernel


# ---- a decision is a value


def test_decisions_and_problems_cross_a_process_border() -> None:
    decision = choose(toy("a"), toy("b", needs=(is_("wgmma", True),)), TORCH)
    assert pickle.loads(pickle.dumps(decision)) == decision
    assert pickle.loads(pickle.dumps(decision.problem)) == decision.problem


def test_a_problem_goes_through_json() -> None:
    problem = Toy("float16", 96)
    assert Toy(**json.loads(json.dumps(problem._asdict()))) == problem


def test_a_decision_as_json() -> None:
    decision = choose(toy("a"), TORCH)
    found = json.loads(json.dumps(decision.to_json()))
    assert found["chosen"] == "fake:a"
    assert found["target"] == "cuda_sm90"
    assert found["problem"] == {"dtype": "bfloat16", "width": 128, "operator": "toy_op"}
    assert [r["code"] for r in found["rejected"]] == ["outranked"]

# SPDX-License-Identifier: Apache-2.0
"""Answers one question of the exam, in this process, on this session.

`exam` asks the questions, and `worker` answers them with this in a process of its own, since a
wrong kernel may take its process with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from archkey.conformance import contract
from archkey.conformance.accuracy import AccuracyCase, Gauge, recorded, told
from archkey.conformance.card import compare
from archkey.conformance.case import Case
from archkey.conformance.cases import accuracy_of, cases_of, random_of
from archkey.conformance.implications import contradictions, disagreements
from archkey.conformance.judge import Result, judge
from archkey.conformance.levels import RANDOM, Item, Level, Outcome
from archkey.conformance.machine_code import expectations, judge_code, read
from archkey.conformance.probes import probe_capability
from archkey.conformance.refusal import refused
from archkey.errors import UnknownName, Unsupported, describe
from archkey.explain import fence_text
from archkey.kernel import Kernel
from archkey.launch import interpreting, rounded_to_nearest
from archkey.session import Session

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

C = TypeVar("C", bound=Case)

__all__ = [
    "BUILDER",
    "CAPABILITIES",
    "EXAMPLE",
    "LOGIC",
    "REFUSES",
    "Options",
    "case_of",
    "examine",
    "strategy_of",
]

CAPABILITIES = "capabilities"
"""Stands for the operator where a plugin's claims are examined; the kernel is then the plugin."""

BUILDER, EXAMPLE, REFUSES, LOGIC = "builder", "example: ", "refuses ", "no contradiction"
"""Cases of level contract; an example's label, or the wrong argument, follows."""


class Options(NamedTuple):
    """How thoroughly to ask. examples: random problems a kernel; seed: of all numbers."""

    examples: int
    seed: int = 0


def examine(
    session: Session, item: Item, options: Options, begin: Callable[[str], None]
) -> Outcome:
    """The outcome of `item`; what a kernel raises becomes an outcome, too.

    begin  is told what runs now, in case it never ends
    """
    begin(item.case)
    try:
        if item.operator == CAPABILITIES:
            return _capability(session, item)
        if item.level == Level.CONTRACT:
            return _contract(session, item)
        if item.level == Level.COMPILED:
            return _compiled(session, item)
        if item.level == Level.ACCURACY:
            return _accuracy(session, item, options)
        return _numbers(session, item, options, begin)
    except (Exception, SystemExit) as error:
        return Outcome(item, "failed", reason=describe(error))


def _kernel(session: Session, item: Item) -> Kernel:
    for kernel in session.kernels(item.operator):
        if kernel.id == item.kernel:
            return kernel
    known = [kernel.id for kernel in session.kernels(item.operator)]
    raise UnknownName(f"kernel of {item.operator}", item.kernel, known)


def _verdict(item: Item, complaint: str, **details: Any) -> Outcome:
    return Outcome(item, "failed" if complaint else "passed", reason=complaint, details=details)


def _capability(session: Session, item: Item) -> Outcome:
    (plugin,) = [p for p in session.plugins if p.name == item.kernel]
    if item.case == LOGIC:
        found = contradictions(session.capabilities, session.device.target)
        return _verdict(item, "; ".join([*found, *disagreements(plugin, session.plugins)]))
    if item.level == Level.DEVICE:
        (fact,) = [fact for fact in plugin.capabilities if fact.name == item.case]
        proved, reason = compare(fact.name, fact.value, session.device)
    else:
        claimed = session.capabilities[item.case].value
        proved, reason = probe_capability(item.case, claimed, session.device)
    if proved is None:
        return Outcome(item, "skipped", reason=reason)
    return Outcome(item, "passed" if proved else "failed", reason=reason)


def _contract(session: Session, item: Item) -> Outcome:
    operator = session.operators[item.operator]
    if item.kernel == contract.FUNCTION:
        call = item.case.removeprefix(REFUSES)
        return _verdict(item, contract.check_refusal(session, operator, call))
    kernel = _kernel(session, item)
    if item.case == BUILDER:
        return _verdict(item, contract.check_builder(kernel))
    problem = operator.examples[item.case.removeprefix(EXAMPLE)]
    outcome, reason = contract.check_example(session, kernel, problem)
    return Outcome(item, outcome, reason=reason)


def _compiled(session: Session, item: Item) -> Outcome:
    """One example as machine code: with an early start, where the device has it, and without."""
    kernel = _kernel(session, item)
    example = session.operators[item.operator].examples[item.case.removeprefix(EXAMPLE)]
    problems = [example]
    if "pdl" in example._fields:
        problems = [example._replace(pdl=pdl) for pdl in sorted({False, session.pdl})]
    codes, complaints, refusal = [], [], ""
    fenced: dict[str, None] = {}  # rows that this problem would get with other versions
    for problem in problems:
        try:
            plan = session.plan(problem, kernel=kernel.id)
        except Unsupported as error:
            refusal = refused(error, kernel.id)
            if not refusal:
                raise
            continue
        used = plan.decision.tuning
        fenced.update(dict.fromkeys(map(fence_text, used.fenced if used else ())))
        found = [read(compiled) for compiled in plan.compiled]
        complaints += judge_code(found, expectations(kernel, problem, session))
        codes += found
    if not codes and not complaints:
        return Outcome(item, "skipped", reason=refusal or "this problem needs no Triton program")
    details: dict[str, Any] = {"programs": [code.to_json() for code in codes]}
    if fenced:
        details["fenced"] = [*fenced]
    return _verdict(item, "; ".join(complaints), **details)


def _numbers(
    session: Session, item: Item, options: Options, begin: Callable[[str], None]
) -> Outcome:
    device = item.level == Level.DEVICE

    def run(case: Case) -> Result:
        return judge(
            session,
            case,
            options.seed,
            kernel=item.kernel,
            level=item.level,
            runs=2 if device else 1,
        )

    if item.case == RANDOM:
        return _random(session, item, options, run, begin)
    return _outcome(item, run(case_of(session, item)))


def _accuracy(session: Session, item: Item, options: Options) -> Outcome:
    """The statistics of one case; where it ran stands beside them."""
    case = accuracy_case_of(session, item)
    gauge = Gauge(case)
    # Cut off, each result of the interpreter would be a quarter of a percent too small.
    rounding = rounded_to_nearest() if interpreting() else nullcontext()
    with rounding:
        result = judge(
            session, case, options.seed, kernel=item.kernel, level=item.level, measure=gauge
        )
    outcome = _outcome(item, result)
    if outcome.outcome == "skipped":
        return outcome
    reason = outcome.reason
    if failed := [one for one in gauge.statistics if not one.passed]:
        reason = f"{case.model}: {told(failed)}"
    place = "device" if session.device.source != "pretend" else "interpreter"
    details = {"ran on": place, "statistics": [recorded(one) for one in gauge.statistics]}
    return Outcome(item, outcome.outcome, outcome.error, outcome.tolerance, reason, details)


def case_of(session: Session, item: Item) -> Case:
    """The listed case that `item` asks for."""
    if item.level == Level.ACCURACY:
        return accuracy_case_of(session, item)
    return _named(item, cases_of(session.operators[item.operator]))


def accuracy_case_of(session: Session, item: Item) -> AccuracyCase:
    """The listed case of level accuracy that `item` asks for."""
    return _named(item, accuracy_of(session.operators[item.operator]))


def _named(item: Item, cases: Sequence[C]) -> C:
    for case in cases:
        if case.name == item.case:
            return case
    raise UnknownName(f"case of {item.operator}", item.case, [case.name for case in cases])


def strategy_of(session: Session, item: Item) -> SearchStrategy[Case] | None:
    """What the problems of a random `item` are drawn from; None if its operator has none."""
    return random_of(session.operators[item.operator], 4 if item.level == Level.DEVICE else 1)


def _random(
    session: Session,
    item: Item,
    options: Options,
    run: Callable[[Case], Result],
    begin: Callable[[str], None],
) -> Outcome:
    from archkey.conformance.randomised import draw  # hypothesis is an extra

    strategy = strategy_of(session, item)
    if strategy is None:
        return Outcome(item, "skipped", reason=f"{item.operator} has no random cases")
    drawn = draw(strategy, run, options.examples, options.seed, begin)
    details = {"problems": drawn.judged, "not accepted": drawn.skipped}
    if drawn.worst is None:
        reason = f"none of {drawn.skipped} random problems was accepted"
        return Outcome(item, "skipped", reason=reason, details=details)
    case, result = drawn.worst
    outcome = _outcome(item, result)
    reason = f"{case.name}: {outcome.reason}"
    return Outcome(item, outcome.outcome, outcome.error, outcome.tolerance, reason, details)


def _outcome(item: Item, result: Result) -> Outcome:
    if result.skipped:
        return Outcome(item, "skipped", reason=result.reason)
    outcome = "passed" if result.passed else "failed"
    return Outcome(item, outcome, result.error, result.tolerance, result.reason)

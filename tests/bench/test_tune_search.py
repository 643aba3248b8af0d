# SPDX-License-Identifier: Apache-2.0
"""Which numbers a row gets, decided from times that nobody measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from archkey.bench.results import Timing
from archkey.bench.tune.outcome import difference, document, revised
from archkey.bench.tune.search import Choice, Group, Outcome, choose, measure
from archkey.conditions import at_most
from archkey.errors import RecordError
from archkey.tuning import Measured, Row, Table


class Call(NamedTuple):
    """All that the search asks of a sample."""

    name: str


def timed(us: float) -> Outcome:
    return Outcome("timed", timing=Timing(us, us, us, 3, "graph"))


WRONG = Outcome("wrong", "out: 1.0e+00 > 4.0e-03")
FAILED = Outcome("failed", "OutOfResources: shared memory")

Times = Mapping[str, tuple[float | Outcome, ...]]


def group(times: Times, present: int = 0) -> Group:
    """A row with the values 0, 1, 2 ...; the present ones first."""
    count = len(next(iter(times.values()), (0,)))
    others = tuple(n for n in range(count) if n != present)
    row = Row(present, (at_most("width", 256),), measured="not measured: a guess")
    return Group(1, row, tuple(map(Call, times)), (present, *others))


def decide(times: Times, present: int = 0, noise: float = 0.05) -> Choice:
    outcomes = {
        (name, n): us if isinstance(us, Outcome) else timed(us)
        for name, listed in times.items()
        for n, us in enumerate(listed)
    }
    return choose(group(times, present), outcomes, noise)


def test_the_worst_call_decides() -> None:
    """Candidate 1 is best on the sum, candidate 2 never far off."""
    choice = decide({"small": (40, 10, 12), "large": (200, 130, 100)})
    assert (choice.values, choice.changed) == (2, True)
    assert choice.gain == pytest.approx(1 - 1.2 / 4)
    assert (choice.before, choice.after) == (
        {"small": 40, "large": 200},
        {"small": 12, "large": 100},
    )


@pytest.mark.parametrize(
    ("us", "noise", "taken"),
    [(96, 0.05, 0), (95, 0.05, 0), (94, 0.05, 1), (94, 0.1, 0), (99, 0.0, 1), (100, 0.0, 0)],
)
def test_a_gain_below_the_noise_changes_nothing(us: float, noise: float, taken: int) -> None:
    assert decide({"one": (100, us)}, noise=noise).values == taken


@pytest.mark.parametrize("bad", [WRONG, FAILED], ids=["wrong", "failed"])
def test_a_candidate_that_is_out_on_one_call_is_out(bad: Outcome) -> None:
    choice = decide({"one": (100, 1, 50), "two": (100, bad, 60)})
    assert choice.values == 2
    assert choice.gain == pytest.approx(0.5), "what is out sets no mark either"


def test_present_values_that_fail_are_replaced_whatever_the_noise() -> None:
    choice = decide({"one": (WRONG, 30, 20)}, noise=1.0)
    assert (choice.values, choice.gain, choice.before) == (2, None, {})
    assert choice.why == "the present values fail: wrong on one: out: 1.0e+00 > 4.0e-03"


def test_where_nothing_is_right_the_row_stays() -> None:
    choice = decide({"one": (WRONG, FAILED)})
    assert (choice.changed, choice.after) == (False, {})
    assert choice.why == "kept: none of 2 candidates is right on every call"


def test_a_row_that_no_call_gets_stays() -> None:
    choice = choose(group({}), {})
    assert (choice.changed, choice.after) == (False, {})
    assert choice.why.startswith("kept: no call")


def test_of_equals_the_first_and_of_all_equals_the_present() -> None:
    assert decide({"one": (100, 50, 50)}).values == 1
    assert decide({"one": (100, 100, 100)}, present=2, noise=0.0).values == 2


# ---- the way through calls and candidates


class Dictionary(dict[str, Outcome]):
    """A journal that forgets when the test ends."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(str(key), default)

    def add(self, key: Any, outcome: Outcome) -> None:
        self[str(key)] = outcome


def key(sample: Call, values: Any) -> Mapping[str, Any]:
    return {"sample": sample.name, "values": values}


def rig_of(times: Times, log: list[Any]) -> Callable[[Call, Row], Callable[[Any], Outcome]]:
    def rig(sample: Call, row: Row) -> Callable[[Any], Outcome]:
        log.append(sample.name)

        def one(values: int) -> Outcome:
            log.append((sample.name, values))
            found = times[sample.name][values]
            return found if isinstance(found, Outcome) else timed(found)

        return one

    return rig


TIMES: Times = {"one": (3, WRONG, 2), "two": (3, 1, 2)}


def test_what_is_out_is_not_tried_again() -> None:
    log: list[Any] = []
    said: list[str] = []
    found = measure(group(TIMES), rig_of(TIMES, log), key, Dictionary(), said.append)
    assert log == ["one", ("one", 0), ("one", 1), ("one", 2), "two", ("two", 0), ("two", 2)]
    assert said[0] == "row 1, one: 0" and len(said) == len(found) == 5
    assert choose(group(TIMES), found).values == 2


@pytest.mark.parametrize("killed", range(5))
def test_what_is_known_is_not_measured_again(killed: int) -> None:
    """Killed after any number of outcomes, the second run does the rest and finds the same."""
    memory, log = Dictionary(), list[Any]()
    steps = iter(range(5))

    def step(name: str) -> None:
        if next(steps) == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(group(TIMES), rig_of(TIMES, log), key, memory, step)
    assert len(memory) == killed
    again: list[Any] = []
    found = measure(group(TIMES), rig_of(TIMES, again), key, memory, lambda name: None)
    measured = [entry for entry in (*log, *again) if isinstance(entry, tuple)]
    assert sorted(measured) == sorted(set(measured)) and len(measured) == 5
    whole = measure(group(TIMES), rig_of(TIMES, []), key, Dictionary(), lambda name: None)
    assert found == whole


def test_nothing_is_made_for_a_call_that_is_known() -> None:
    memory, log = Dictionary(), list[Any]()
    measure(group(TIMES), rig_of(TIMES, []), key, memory, lambda name: None)
    measure(group(TIMES), rig_of(TIMES, log), key, memory, lambda name: None)
    assert log == []


# ---- what is written and said

VERSIONS = {"torch": "2.11.0"}


def test_the_new_table_has_the_values_and_where_they_were_measured() -> None:
    table = Table((Row(0, (at_most("width", 256),), spills=8), Row(5, measured="X1")))
    choice = decide({"one": (100, 50)})
    choice = choose(Group(1, table.rows[0], (Call("one"),), (0, 1)), choice.outcomes)
    new = revised(table, [choice], "NVIDIA H200", "2026-11-21", VERSIONS)
    measured = Measured("NVIDIA H200", "2026-11-21", VERSIONS, {"one": 50})
    assert new.rows == (Row(1, (at_most("width", 256),), (), measured, 8), table.rows[1])
    assert str(measured) == "NVIDIA H200, torch 2.11.0, 2026-11-21"


def test_a_row_that_was_measured_and_kept_says_where() -> None:
    choice = decide({"one": (100, 99)})
    (row, _) = revised(
        Table((choice.group.row, Row(7))), [choice], "NVIDIA H200", "2026-11-21", VERSIONS
    ).rows
    assert row.values == 0
    assert row.measured == Measured("NVIDIA H200", "2026-11-21", VERSIONS, {"one": 100})


def test_a_row_that_changed_meanwhile_is_not_overwritten() -> None:
    choice = decide({"one": (100, 50)})
    other = Row(7, choice.group.row.when)
    for table in (Table((other, Row(5))), Table((Row(5),))):
        with pytest.raises(RecordError, match="row 1 of the table was changed while"):
            revised(table, [choice], "NVIDIA H200", "2026-11-21", VERSIONS)


def test_the_difference_in_words() -> None:
    assert list(difference([decide({"one": (100, 50)})])) == [
        "  row 1, for width <= 256: the best of 2",
        "- value=0  (not measured: a guess)",
        "+ value=1  (at worst 1.00 x the best candidate's time, before 2.00 x)",
    ]
    assert list(difference([decide({"one": (100, 99)})])) == [
        "  row 1, for width <= 256: kept: the best gains no more than 5%"
    ]


def test_the_difference_for_scripts() -> None:
    (row,) = document([decide({"one": (100, 50), "two": (10, 9)})])
    assert (row["row"], row["when"], row["changed"], row["gain"]) == (
        1,
        ["width <= 256"],
        True,
        0.5,
    )
    assert (row["before"], row["after"]) == ({"value": 0}, {"value": 1})
    assert row["us"] == {"one": {"before": 100, "after": 50}, "two": {"before": 10, "after": 9}}
    assert len(row["candidates"]) == 4
    assert row["candidates"][0]["status"] == "timed"

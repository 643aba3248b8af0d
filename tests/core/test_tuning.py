# SPDX-License-Identifier: Apache-2.0
"""Tuning tables: every problem gets a row, the most special one first."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.core._fakes import Toy, World, fast, kernel, kernels, session

from archkey.conditions import at_least, at_most, is_
from archkey.ops import OPERATORS
from archkey.requirements import Requirement, Violation
from archkey.tuning import Fence, Row, Table

PACKAGING = version("packaging")
FENCED_HERE = Table(
    (
        Row(1, (at_least("width", 1),), (Requirement("packaging", "<1", "a test", "speed"),)),
        Row(2, measured="H200"),
    )
)


def test_the_first_row_that_fits() -> None:
    table = Table(
        (
            Row(1, (is_("dtype", "float32"), at_most("width", 256))),
            Row(2, (at_most("width", 256),)),
            Row(3),
        )
    )
    widths = [("float32", 256), ("bfloat16", 256), ("float32", 257)]
    assert [table.lookup(Toy(*w), {}).values for w in widths] == [1, 2, 3]


NEW = Requirement("triton", ">=3.7", "sums are wrong before", "accuracy", "acme#7")
FENCED = Table((Row(1, requires=(NEW,)), Row(2, (at_most("width", 1),)), Row(3)))


@pytest.mark.parametrize(
    ("versions", "values"),
    [({"triton": "3.7.0.dev1"}, 1), ({"triton": "3.6.0"}, 3), ({}, 3)],
    ids=["allowed", "too old", "not installed"],
)
def test_a_fenced_row_gives_way_to_the_next_that_fits(
    versions: dict[str, str], values: int
) -> None:
    assert FENCED.lookup(Toy(), versions).values == values


def test_a_lookup_says_what_was_passed_over_and_why() -> None:
    """A row for other problems is no fence; neither is one behind the row that is used."""
    table = Table((*FENCED.rows[:2], Row(4, (at_most("width", 999),)), *FENCED.rows))
    used = table.consult(Toy(), {"triton": "3.6.0"})
    assert (used.number, used.row.values) == (3, 4)
    assert used.fenced == (Fence(1, table.rows[0], Violation(NEW, "3.6.0")),)
    assert table.consult(Toy(), {"triton": "3.7.0"}).fenced == ()
    assert used.to_json() == {
        "row": 3,
        "values": "4",
        "when": ["width <= 999"],
        "measured": "not measured",
        "spills": 0,
        "fenced": [
            {
                "row": 1,
                "values": "1",
                "required": "triton>=3.7",
                "found": "triton 3.6.0",
                "severity": "accuracy",
                "why": "sums are wrong before",
                "reference": "acme#7",
                "remedy": "install triton>=3.7",
            }
        ],
    }


@pytest.mark.parametrize(
    "rows",
    [(), (Row(1, (at_most("width", 1),)),), (Row(1, requires=(NEW,)),)],
    ids=["empty", "condition", "requirement"],
)
def test_a_table_ends_with_a_row_for_everything(rows: tuple[Row, ...]) -> None:
    with pytest.raises(ValueError, match="ends with a row that has no condition"):
        Table(rows)


def test_a_table_holds_one_type_of_values() -> None:
    with pytest.raises(ValueError, match="one type of values, not int, str"):
        Table((Row("a", (at_most("width", 1),)), Row(1)))


@pytest.mark.parametrize("spills", [-4, 1.5, True, None])
def test_spills_are_bytes(spills: object) -> None:
    with pytest.raises(ValueError, match=f"spills is a number of bytes, not {spills!r}"):
        Row(1, spills=spills)  # type: ignore[arg-type]


# ---- in a session: decisions, texts, versions, machine code


def test_the_decision_tells_the_row_and_the_fence() -> None:
    made = session(kernel("fast", "toy_op", tuning=FENCED_HERE))
    decision = made.decide(Toy())
    assert decision.tuning is not None
    assert decision.tuning.row.values == 2
    assert decision.to_json()["tuning"] == decision.tuning.to_json()
    lines = made.explain(Toy()).splitlines()
    assert lines[3:5] == [
        "  tuning:  row 2, 2, for every problem; measured: H200",
        f"  fenced:  row 1, 1, for width >= 1, needs packaging<1; found packaging {PACKAGING}; "
        "speed: a test",
    ]


def test_a_kernel_without_a_table_has_no_row() -> None:
    decision = session(kernel("fast", "toy_op")).decide(Toy())
    assert decision.tuning is None
    assert decision.to_json()["tuning"] is None


def test_versions_of_packages_that_only_rows_name_are_gathered() -> None:
    """Else every fence of such a package would close, installed or not."""
    made = session(kernel("fast", "toy_op", tuning=FENCED_HERE))
    assert made.versions["packaging"] == PACKAGING
    assert made.identity()["version of packaging"] == PACKAGING


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('Row(1, requires=["triton"])', "row 1 of its tuning: requires must be a tuple of Req"),
        ('Row(1, requires=(is_("width", 1),))', "row 1 of its tuning: requires must be a tuple"),
        ('Row(1, when=[is_("width", 1)])', "row 1 of its tuning: when must be a tuple of Condi"),
    ],
)
def test_rows_are_checked_when_a_plugin_is_loaded(
    row: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    world.install("cuda_sm90", kernels(fast(rest=f"tuning=Table(({row}, Row(2)))")))
    state, reason = world.state("cuda_sm90", "cuda_sm90")
    assert state == "refused"
    assert said in reason


_COMPILE = """
import dataclasses, json, archkey, archkey.session
from archkey.conformance.machine_code import read
from archkey.kernels.catalogue import rmsnorm_kernels
from archkey.kernels.tunings import RmsNormTuning
from archkey.requirements import Requirement, installed_versions
from archkey.tuning import Row, Table

def table(*requires):
    return Table((
        Row(RmsNormTuning(tile=4096, num_warps=4), requires=requires),
        Row(RmsNormTuning(tile=4096, num_warps=8)),
    ))

def compiled(*requires):
    base = archkey.open("cuda_sm90")
    own = base.plugins[0]
    kernels = rmsnorm_kernels(table(*requires), table())
    kernels = tuple(dataclasses.replace(k, plugin=own.name) for k in kernels)
    loaded = archkey.plugins.Loaded((dataclasses.replace(own, kernels=kernels),), ())
    session = archkey.session.Session(base.device, archkey.settings.settings(), loaded=loaded)
    plan = session.plan(session.operators["rmsnorm"].examples[{label!r}])
    return read(plan.compiled[0]), plan.decision.tuning.number

triton = installed_versions(["triton"])["triton"]
fence = Requirement("triton", "!=" + triton, "a test", "accuracy")
open_, closed = compiled(Requirement("triton", ">=3.6")), compiled(fence)
print(json.dumps([[code.threads, row] for code, row in (open_, closed)]))
"""


def test_a_fence_changes_the_machine_code(run_python: Callable[..., str]) -> None:
    label = next(iter(OPERATORS["rmsnorm"].examples))
    out = run_python(_COMPILE.replace("{label!r}", repr(label)), TRITON_INTERPRET="0")
    assert json.loads(out) == [[128, 1], [256, 2]]

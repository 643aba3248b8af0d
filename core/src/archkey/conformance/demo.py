# SPDX-License-Identifier: Apache-2.0
"""The main job: every operator of this machine at real shapes, against the reference."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from archkey.conformance.case import Case
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import Result, judge
from archkey.errors import UnknownName
from archkey.session import Session

__all__ = ["chosen", "run"]


def chosen(session: Session, operators: Collection[str] | None = None) -> list[Case]:
    """The real models' cases of `operators` (default: all), in the order of the families."""
    for name in operators or ():
        if name not in session.operators:
            raise UnknownName("operator", name, session.operators)
    wanted = [o for name, o in session.operators.items() if operators is None or name in operators]
    return [case for operator in wanted for case in cases_of(operator) if case.real]


def run(session: Session, operators: Collection[str] | None = None) -> Iterator[Result]:
    """Judge the cases one after the other; what is done is yielded at once."""
    for case in chosen(session, operators):
        yield judge(session, case)

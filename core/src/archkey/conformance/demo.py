# SPDX-License-Identifier: Apache-2.0
"""The main job: every operator of this machine at real shapes, against the reference."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from archkey.conformance.case import Case
from archkey.conformance.cases import CASES
from archkey.conformance.judge import Result, judge
from archkey.errors import UnknownName
from archkey.session import Session

__all__ = ["chosen", "run"]


def chosen(session: Session, operators: Collection[str] | None = None) -> list[Case]:
    """The cases of `operators` (default: all), in the order of the families."""
    for name in operators or ():
        if name not in session.operators:
            raise UnknownName("operator", name, session.operators)
    return [case for case in CASES if operators is None or case.operator in operators]


def run(session: Session, operators: Collection[str] | None = None) -> Iterator[Result]:
    """Judge the cases one after the other; what is done is yielded at once."""
    for case in chosen(session, operators):
        yield judge(session, case)

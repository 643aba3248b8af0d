# SPDX-License-Identifier: Apache-2.0
"""A call that is listened to: what Problem it makes, without running anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archkey.errors import ArchkeyError, UnknownName
from archkey.kernel import resolve
from archkey.ops import Problem

if TYPE_CHECKING:
    from archkey.session import Session

__all__ = ["Listener", "problem_of"]


class Listener:
    """Stands in for a session during one call: `hear` is told the Problem, nothing is launched."""

    validate = False  # values are nobody's business; there may be none

    def __init__(self, session: Session, hear: Callable[[Problem], None]) -> None:
        self._session, self._hear = session, hear

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Problem) -> Callable[..., None]:
        """A kernel that does nothing."""
        self._hear(problem)
        return lambda *arguments: None


def problem_of(session: Session, operator: str, *args: Any, **kwargs: Any) -> Problem:
    """See `Session.problem_of`."""
    if operator not in session.operators:
        raise UnknownName("operator", operator, session.operators)
    heard: list[Problem] = []
    impl = resolve(session.operators[operator].function).__wrapped__
    impl(Listener(session, heard.append), *args, **kwargs)
    if not heard:
        raise ArchkeyError(
            f"{operator}: a call of these arguments launches nothing; give it some tokens"
        )
    return heard[0]

# SPDX-License-Identifier: Apache-2.0
"""Several who answer at a time: each question once, whoever breaks, and nobody is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from archkey._process import ask_all


class Answers:
    """Doubles a number; ends its use after `lasts` of them."""

    def __init__(self, made: list[Answers], lasts: int = 100) -> None:
        made.append(self)
        self.left, self.closed, self.asked = lasts, False, 0

    @property
    def gone(self) -> bool:
        return self.left <= 0

    def ask(self, question: int, stop: threading.Event) -> int:
        if question < 0:
            raise OSError("cannot be asked")
        assert not self.closed
        self.left, self.asked = self.left - 1, self.asked + 1
        return 2 * question

    def close(self) -> None:
        self.closed = True


def starter(made: list[Answers], lasts: int = 100) -> Callable[[], Answers]:
    return lambda: Answers(made, lasts)


def ended(made: list[Answers]) -> bool:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name.endswith("(work)"):
            thread.join(5)
    return all(one.closed for one in made)


def test_each_question_is_answered_once() -> None:
    made: list[Answers] = []
    assert sorted(ask_all(range(50), starter(made), 4)) == list(range(0, 100, 2))
    assert 1 <= len(made) <= 4 and sum(one.asked for one in made) == 50
    assert ended(made)


def test_who_is_gone_or_gave_a_last_answer_is_replaced() -> None:
    made: list[Answers] = []
    assert sorted(ask_all(range(6), starter(made, lasts=2), 1)) == [0, 2, 4, 6, 8, 10]
    assert [one.asked for one in made] == [2, 2, 2]
    made.clear()
    assert list(ask_all(range(4), starter(made), 1, lambda answer: answer == 2)) == [0, 2, 4, 6]
    assert [one.asked for one in made] == [2, 2]
    assert ended(made)


def test_what_is_raised_is_raised_to_the_one_who_asks() -> None:
    made: list[Answers] = []
    with pytest.raises(OSError, match="cannot be asked"):
        list(ask_all([1, -1, 2], starter(made), 1))
    assert ended(made)


def test_leaving_early_ends_all() -> None:
    made: list[Answers] = []
    answers = ask_all(range(1000), starter(made), 3)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert ended(made)
    assert sum(one.asked for one in made) <= 1000


def test_no_questions_start_nobody() -> None:
    made: list[Answers] = []
    assert list(ask_all([], starter(made), 4)) == [] and not made

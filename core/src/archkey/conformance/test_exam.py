# SPDX-License-Identifier: Apache-2.0
"""The exam as pytest runs it: one test a question. `pytest_options` has its options.

python -m pytest --pyargs archkey.conformance --archkey rocm_gfx950 --archkey-level compiled
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archkey.conformance import exam
from archkey.conformance.levels import Item, Level, Outcome, parse_levels
from archkey.conformance.pool import Terms, Worker
from archkey.locate import find_device


class Examiner:
    """Asks with one worker a level; one that is gone is replaced."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.target = exam.find(_subject(config)).target
        self._terms = Terms(
            1, option("archkey_timeout"), option("archkey_examples"), option("archkey_seed")
        )
        self._workers: dict[str, Worker] = {}

    def ask(self, item: Item) -> Outcome:
        """The outcome of `item`."""
        worker = self._workers.get(item.level)
        if worker is None or worker.gone:
            worker = Worker(self.target, Level(item.level), self._terms)
            self._workers[item.level] = worker
        return worker.ask(item)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()


def _subject(config: pytest.Config) -> str:
    return config.getoption("archkey") or find_device(None).target.key


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test a question, and one for each level that cannot be run for a kernel."""
    option = metafunc.config.getoption
    subject = exam.find(_subject(metafunc.config))
    asked: list[Item | Outcome] = []
    for level in parse_levels(option("archkey_level")):
        items, answered = exam.questions(
            subject, level, option("archkey_operator"), option("archkey_full")
        )
        asked += [*items, *answered]
    names = [(row if isinstance(row, Item) else row.item).name for row in asked]
    metafunc.parametrize("question", asked, ids=names)


@pytest.fixture(scope="session")
def examiner(request: pytest.FixtureRequest) -> Iterator[Examiner]:
    """Lives as long as the run."""
    made = Examiner(request.config)
    yield made
    made.close()


def test_exam(question: Item | Outcome, examiner: Examiner) -> None:
    """Passes if the case passed; a case that was not run is a skipped test with the reason."""
    outcome = question if isinstance(question, Outcome) else examiner.ask(question)
    if outcome.outcome == "skipped":
        pytest.skip(outcome.reason)
    if outcome.outcome != "passed":
        measured = "" if outcome.error is None else f" (error {outcome.error:.2e})"
        pytest.fail(f"{outcome.item.name}{measured}: {outcome.reason}", pytrace=False)

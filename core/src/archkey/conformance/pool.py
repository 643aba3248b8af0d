# SPDX-License-Identifier: Apache-2.0
"""Asks questions of worker processes: one that dies or hangs costs one answer, not the exam."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from tempfile import TemporaryDirectory
from typing import NamedTuple

from archkey._process import Ended, Process, Stopped, ask_all
from archkey.conformance.levels import Item, Level, Outcome
from archkey.conformance.worker import interprets
from archkey.target import Target

__all__ = ["Terms", "Worker", "answers", "built"]


class Terms(NamedTuple):
    """How an exam is held.

    jobs      worker processes at a time
    timeout   seconds for one question; 0 is no limit
    examples  random problems a kernel
    seed      of all numbers
    sharing   worker processes at a time where they share a card
    """

    jobs: int
    timeout: float
    examples: int
    seed: int
    sharing: int = 1


def answers(target: str, level: Level, items: Sequence[Item], terms: Terms) -> Iterator[Outcome]:
    """Outcomes of `items`, all of one level, in the order in which they are known.

    What found no memory on a card that is shared is asked again at the end, by one worker alone.
    """
    start = partial(Worker, target, level, terms)
    if not _on_card(target, level):
        yield from ask_all(items, start, terms.jobs)
        return
    crowded: list[Item] = []
    for outcome in ask_all(items, start, terms.sharing, _may_be_stuck):
        if terms.sharing > 1 and _NO_MEMORY in outcome.reason:
            crowded.append(outcome.item)
        else:
            yield outcome
    yield from ask_all(crowded, start, 1, _may_be_stuck)


def built(target: str, level: Level, items: Sequence[Item], terms: Terms) -> Iterator[Item]:
    """Those of `items` whose kernels are compiled: the card's worker loads them.

    What cannot be is left to that worker, all of it where no process can be started.

    level  of all `items`, one that runs on the card
    """
    with TemporaryDirectory(prefix="archkey-ahead-") as claims, suppress(OSError):
        start = partial(Worker, target, level, terms, ahead=claims)
        for outcome in ask_all(items, start, terms.jobs):
            yield outcome.item


def _on_card(target: str, level: Level) -> bool:
    """Whether workers would share an accelerator."""
    if level not in (Level.DEVICE, Level.ACCURACY) or Target.parse(target).platform == "cpu":
        return False
    return not interprets(target, level)


_NO_MEMORY = "OutOfMemoryError"
"""What torch raises on every accelerator, as `describe` tells it."""


def _may_be_stuck(outcome: Outcome) -> bool:
    """After a fault, a GPU's context answers everything with an error: begin with a new one."""
    return outcome.outcome == "failed" and (outcome.error is None or math.isinf(outcome.error))


def _at(running: str, item: Item) -> str:
    """Which drawn problem was running, where the case alone does not tell."""
    return f" at {running}" if running not in ("", item.case) else ""


class Worker:
    """A process that examines. Once it is `gone`, close it and start another.

    ahead  the folder of `ahead.build`: it only compiles
    """

    def __init__(self, target: str, level: Level, terms: Terms, ahead: str = "") -> None:
        options = {"target": target, "level": level.value}
        options |= {"examples": str(terms.examples), "seed": str(terms.seed)}
        options |= {"ahead": ahead} if ahead else {}
        environment = {
            "TRITON_INTERPRET": "1" if interprets(target, level) and not ahead else "0",
            # Triton announces that its default will change; archkey states its own.
            "TRITON_DEFAULT_FP_FUSION": "1",
        }
        self._process = Process("archkey.conformance.worker", options, environment)
        self._timeout = terms.timeout

    @property
    def gone(self) -> bool:
        """Whether the process is of no use any more."""
        return self._process.gone

    def ask(self, item: Item, stop: threading.Event | None = None) -> Outcome:
        """The answer; a death, or a silence for too long, is a failure."""
        running = ""
        try:
            for answer in self._process.ask(item._asdict(), self._timeout, stop):
                if "outcome" in answer:
                    return Outcome.from_json(item.level, answer["outcome"])
                running = answer["begin"]
        except Ended as end:
            how, _, last = str(end).partition("; it said: ")
            said = f"; it said: {last}" if last else ""
            return Outcome(item, "failed", reason=f"{how}{_at(running, item)}{said}")
        except Stopped:
            pass
        return Outcome(item, "skipped", reason="interrupted")

    def close(self) -> None:
        """End the process."""
        self._process.close()

# SPDX-License-Identifier: Apache-2.0
"""Asks questions of worker processes: one that dies or hangs costs one answer, not the exam."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from archkey.conformance.levels import Item, Level, Outcome
from archkey.target import Target

__all__ = ["Terms", "Worker", "answers"]


class Terms(NamedTuple):
    """How an exam is held.

    jobs      worker processes at a time
    timeout   seconds for one question; 0 is no limit
    examples  random problems a kernel
    seed      of all numbers
    """

    jobs: int
    timeout: float
    examples: int
    seed: int


def answers(target: str, level: Level, items: Sequence[Item], terms: Terms) -> Iterator[Outcome]:
    """Outcomes of `items`, all of one level, in the order in which they are known."""
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    jobs = 1 if _on_card(target, level) else terms.jobs
    threads = [
        threading.Thread(target=_work, args=(target, level, terms, todo, done, stop), daemon=True)
        for _ in range(min(jobs, len(items)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)


def _work(
    target: str,
    level: Level,
    terms: Terms,
    todo: queue.SimpleQueue[Item],
    done: queue.SimpleQueue[Outcome | BaseException],
    stop: threading.Event,
) -> None:
    """One thread: takes questions from `todo`, and keeps one worker to ask."""
    worker: Worker | None = None
    on_card = _on_card(target, level)
    try:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            worker = worker or Worker(target, level, terms)
            outcome = worker.ask(item, stop)
            if worker.gone or (on_card and _may_be_stuck(outcome)):
                worker.close()
                worker = None
            done.put(outcome)
    except BaseException as error:
        done.put(error)
    finally:
        if worker is not None:
            worker.close()


def _on_card(target: str, level: Level) -> bool:
    """Whether workers would share an accelerator."""
    return level is Level.DEVICE and Target.parse(target).platform != "cpu"


def _may_be_stuck(outcome: Outcome) -> bool:
    """After a fault, a GPU's context answers everything with an error: begin with a new one."""
    return outcome.outcome == "failed" and (outcome.error is None or math.isinf(outcome.error))


def _at(running: str, item: Item) -> str:
    """Which drawn problem was running, where the case alone does not tell."""
    return f" at {running}" if running not in ("", item.case) else ""


class Worker:
    """One process and the pipe to it. Once it is `gone`, close it and start another."""

    def __init__(self, target: str, level: Level, terms: Terms) -> None:
        self._remarks = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        options = {"target": target, "level": level.value}
        options |= {"examples": str(terms.examples), "seed": str(terms.seed)}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "archkey.conformance.worker"),
                *(part for name, value in options.items() for part in (f"--{name}", value)),
            ],
            env={
                **os.environ,
                "TRITON_INTERPRET": "1" if level is Level.INTERPRETED else "0",
                # Triton announces that its default will change; archkey states its own.
                "TRITON_DEFAULT_FP_FUSION": "1",
                "PYTHONFAULTHANDLER": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._remarks,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._timeout = terms.timeout
        self._buffer = b""
        self.gone = False

    def ask(self, item: Item, stop: threading.Event | None = None) -> Outcome:
        """The answer; a death, or a silence for too long, is a failure."""
        self._remarks.seek(0)
        self._remarks.truncate()
        question = json.dumps(item._asdict()).encode() + b"\n"
        stdin: Any = self._process.stdin
        try:
            stdin.write(question)
            stdin.flush()
        except BrokenPipeError:
            return self._died(item, "")
        started, running = time.monotonic(), ""
        while True:
            if stop is not None and stop.is_set():
                self.gone = True
                return Outcome(item, "skipped", reason="interrupted")
            line = self._line(0.2)
            if line is None:
                if self._timeout and time.monotonic() - started > self._timeout:
                    self.gone = True
                    reason = f"no end after {self._timeout:g} s{_at(running, item)}"
                    return Outcome(item, "failed", reason=reason)
                continue
            if not line:
                return self._died(item, running)
            answer = json.loads(line)
            if "begin" in answer:
                running = answer["begin"]
            else:
                return Outcome.from_json(item.level, answer["outcome"])

    def _line(self, wait: float) -> bytes | None:
        """The next line; empty at the end; None if there is none within `wait` seconds."""
        stdout: Any = self._process.stdout
        while b"\n" not in self._buffer:
            if not select.select([stdout], [], [], wait)[0]:
                return None
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, item: Item, running: str) -> Outcome:
        self.gone = True
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        where = _at(running, item)
        self._remarks.seek(0)
        said = self._remarks.read().decode(errors="replace").strip().splitlines()
        said = [line for line in said if not line.startswith("Extension modules:")]
        last = f"; it said: {' | '.join(said[-6:])}" if said else ""
        return Outcome(item, "failed", reason=f"its process ended {how}{where}{last}"[:2000])

    def close(self) -> None:
        """End the process, at once if it does not end by itself."""
        stdin: Any = self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        if self.gone:
            self._process.kill()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout: Any = self._process.stdout
        stdout.close()
        self._remarks.close()

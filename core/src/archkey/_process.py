# SPDX-License-Identifier: Apache-2.0
"""A process that answers questions: what dies or hangs in it costs one answer and no more.

Questions and answers are JSON objects, a line each, on its stdin and stdout. A question may have
several answers; who asks knows the last one. `ask_all` asks several processes at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["Asked", "Ended", "Process", "Say", "Stopped", "ask_all", "serve"]

Q = TypeVar("Q")
Q_in = TypeVar("Q_in", contravariant=True)
A = TypeVar("A")
A_out = TypeVar("A_out", covariant=True)


class Ended(Exception):
    """The process died or was silent for too long; the message says how."""


class Stopped(Exception):
    """The one who asks does not want to know any more."""


class Process:
    """`python -m module --option value ...` and the pipe to it.

    Once it is `gone`, close it and start another.
    """

    def __init__(
        self, module: str, options: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        self._remarks = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *(part for name, value in options.items() for part in (f"--{name}", value)),
            ],
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._remarks,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._buffer = b""
        self.gone = False

    def ask(
        self,
        question: Mapping[str, Any],
        timeout: float = 0.0,
        stop: threading.Event | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answers, without end: leave when you have heard the last.

        timeout  seconds for all of them; 0 is no limit
        stop     asked five times a second whether to go on

        Raises Ended and Stopped; the process is `gone` then.
        """
        self._remarks.seek(0)
        self._remarks.truncate()
        stdin: Any = self._process.stdin
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        started = time.monotonic()
        while True:
            if stop is not None and stop.is_set():
                self.gone = True
                raise Stopped
            line = self._line(0.2)
            if line is None:
                if timeout and time.monotonic() - started > timeout:
                    self.gone = True
                    raise Ended(f"no end after {timeout:g} s")
            elif not line:
                raise self._died()
            else:
                yield json.loads(line)

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

    def _died(self) -> Ended:
        self.gone = True
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._remarks.seek(0)
        said = self._remarks.read().decode(errors="replace").strip().splitlines()
        said = [line for line in said if not line.startswith("Extension modules:")]
        last = f"; it said: {' | '.join(said[-6:])}" if said else ""
        return Ended(f"its process ended {how}{last}"[:2000])

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


class Asked(Protocol[Q_in, A_out]):
    """Who answers in `ask_all`: usually a Process with a way to ask it."""

    @property
    def gone(self) -> bool:
        """Whether it is of no use any more: then it is closed, and another one started."""
        ...

    def ask(self, question: Q_in, stop: threading.Event) -> A_out:
        """The answer, which should come soon once `stop` is set."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def ask_all(
    questions: Sequence[Q],
    start: Callable[[], Asked[Q, A]],
    jobs: int,
    is_last: Callable[[A], bool] = lambda answer: False,
) -> Iterator[A]:
    """Answers to `questions` from `jobs` at a time, in the order in which they are known.

    is_last  after this answer another one is asked, even if who gave it is not gone

    Raises what `start` and `ask` raise. Leaving early, as by Ctrl-C, ends all that were started.
    """
    todo: queue.SimpleQueue[Q] = queue.SimpleQueue()
    for question in questions:
        todo.put(question)
    done: queue.SimpleQueue[tuple[A] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        asked: Asked[Q, A] | None = None
        try:
            while not stop.is_set():
                try:
                    question = todo.get_nowait()
                except queue.Empty:
                    return
                asked = asked or start()
                answer = asked.ask(question, stop)
                if asked.gone or is_last(answer):
                    asked.close()
                    asked = None
                done.put((answer,))
        except BaseException as error:
            done.put(error)
        finally:
            if asked is not None:
                asked.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(questions)))]
    for thread in threads:
        thread.start()
    try:
        for _ in questions:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)


Say = Callable[..., None]
"""`say(key=value, ...)` sends one answer."""


def serve(start: Callable[[], Callable[[dict[str, Any], Say], None]]) -> None:
    """In the process itself: hand each question to what `start()` gives, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what kernels and plugins print must not be taken for an answer

    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    answer = start()
    for line in sys.stdin:
        answer(json.loads(line), say)

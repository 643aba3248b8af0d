# SPDX-License-Identifier: Apache-2.0
"""Records launches of a target's kernels within a time: whose turn it is, and what became of them.

Kernels are compiled beforehand by processes that touch no card, as the exam's are. The one that
launches is another, so that what it dies of costs a case and not the file.
"""

from __future__ import annotations

import platform
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from archkey._process import Ended, Process
from archkey.conformance import exam
from archkey.conformance.emulation.captured.archive import Archive
from archkey.conformance.emulation.captured.recorder import Bounds
from archkey.conformance.levels import RANDOM, Item, Level
from archkey.conformance.pool import Terms, built
from archkey.conformance.worker import device_of
from archkey.requirements import installed_versions

__all__ = ["Fate", "Limits", "record", "spread"]


class Limits(NamedTuple):
    """How long, and how much of each kernel.

    seconds  in total, compiling included; timeout: of a case
    cases    of a kernel of which something is kept
    jobs     processes that compile
    """

    seconds: float = 110.0
    timeout: float = 30.0
    cases: int = 8
    jobs: int = 1


@dataclass
class Fate:
    """What became of a kernel.

    tried    cases that were asked; kept: cases of which launches were kept
    bodies   kept launches by Triton function, 0 for those of which none was kept
    reasons  why cases or launches were not kept, with how often
    """

    tried: int = 0
    kept: int = 0
    bodies: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def turn(self) -> float:
        """The kernel with the least is next; a case of which nothing is kept counts little."""
        return self.kept + (self.tried - self.kept) / 32

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**vars(self), "bodies": dict(self.bodies), "reasons": dict(self.reasons)}


def record(
    target: str,
    path: Path,
    say: Callable[[str], None],
    *,
    operators: tuple[str, ...] = (),
    limits: Limits = Limits(),  # noqa: B008 - immutable
    bounds: Bounds = Bounds(),  # noqa: B008
    emulated: bool = False,
) -> dict[str, Fate]:
    """Record into `path`; the fate of each kernel, also where Ctrl-C or the time ends it.

    emulated  on the emulator, to try it without the card
    """
    until = time.monotonic() + limits.seconds
    level = Level.EMULATED if emulated else Level.DEVICE
    device = device_of(target, level)
    if device is None:
        raise SystemExit(f"no {target} on this machine: record where the card is")
    subject = exam.find(target)
    items, answered = exam.questions(subject, Level.EMULATED, operators)
    items = spread([item for item in items if item.case != RANDOM])
    fates = {f"{item.operator} {item.kernel}": Fate() for item in items}
    for outcome in answered:
        fate = fates.setdefault(f"{outcome.item.operator} {outcome.item.kernel}", Fate())
        fate.reasons[outcome.reason] += 1
    packages = {"archkey", "torch", "triton", *(p.distribution for p in subject.plugins)}
    about = {
        "target": target,
        "device": device.kind_to_json(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {**installed_versions(packages), "python": platform.python_version()},
        "sources": exam.sources(subject, operators),
    }
    archive = Archive.create(path, about)
    options = {"target": target, "level": level.value, "path": str(path)}
    options |= {name: str(value) for name, value in bounds._asdict().items()}
    with suppress(KeyboardInterrupt):
        ready = iter([items]) if emulated else _built(target, items, limits)
        _ask(ready, fates, options, limits, until, say)
    archive.mend()
    for (kernel, body), count in archive.kept().items():  # of cases that then died, too
        fates[kernel].bodies[body] = count
    archive.finish({"kernels": {name: fate.to_json() for name, fate in fates.items()}})
    return fates


def spread(items: list[Item]) -> list[Item]:
    """Each kernel's first case, then each one's second; a kernel's cases from all over its list.

    Neighbours in the list differ in little. The order is that of the halves, the quarters, ...
    """
    mine: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        mine.setdefault((item.operator, item.kernel), []).append(item)
    ranked: list[tuple[int, int, Item]] = []
    for number, cases in enumerate(mine.values()):
        bits = max(len(cases) - 1, 1).bit_length()
        order = sorted(range(len(cases)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
        ranked += [(turn, number, cases[i]) for turn, i in enumerate(order)]
    return [item for *_, item in sorted(ranked, key=lambda one: one[:2])]


def _built(target: str, items: list[Item], limits: Limits) -> Iterator[list[Item]]:
    """What is compiled, as soon as it is; an empty list while nothing new is."""
    some: Counter[tuple[str, str]] = Counter()
    chosen = []
    for item in items:  # more than are kept: of some cases nothing is
        some[item.operator, item.kernel] += 1
        if some[item.operator, item.kernel] <= 8 * limits.cases:
            chosen.append(item)
    done: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        terms = Terms(limits.jobs, 0, 1, 0)
        try:
            for item in built(target, Level.DEVICE, chosen, terms):
                done.put(item)
                if stop.is_set():
                    break
        finally:
            done.put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            found: list[Item] = []
            with suppress(queue.Empty):
                while True:
                    one = done.get(timeout=0.01)
                    if one is None:
                        yield found
                        return
                    found.append(one)
            yield found
    finally:
        stop.set()


def _ask(
    ready: Iterator[list[Item]],
    fates: dict[str, Fate],
    options: dict[str, str],
    limits: Limits,
    until: float,
    say: Callable[[str], None],
) -> None:
    """Ask what is ready, kernels with the least kept first, until time is over."""
    waiting: list[Item] = []
    recorder: Process | None = None
    fresh = more = True
    awaited = [fate for fate in fates.values() if not fate.reasons]  # those with cases to ask

    def turn(item: Item) -> float:
        return fates[f"{item.operator} {item.kernel}"].turn

    try:
        while time.monotonic() < until:
            if more:
                found = next(ready, None)
                more = found is not None
                waiting += found or []
            waiting = [i for i in waiting if fates[f"{i.operator} {i.kernel}"].kept < limits.cases]
            if not waiting:
                if not more:
                    return
                continue
            item = min(waiting, key=turn)
            waiting.remove(item)
            if recorder is None:
                environment = {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
                module = "archkey.conformance.emulation.captured.recorder"
                recorder, fresh = Process(module, options, environment), True
            # A new process starts torch first, which is slow on a machine that just has started.
            rest = until - time.monotonic()
            fate = fates[f"{item.operator} {item.kernel}"]
            question = {**item._asdict(), "room": _room(awaited, fate, int(options["file"]))}
            answer = _answer(recorder, question, rest if fresh else min(rest, limits.timeout))
            fresh = False
            fate.tried += 1
            fate.kept += bool(answer["kept"])
            for body, why in answer["left"].items():
                fate.bodies[body] += 0
                fate.reasons[f"{body}: {why}"] += 1
            if answer["outcome"] != "passed":
                fate.reasons[f"{answer['outcome']}: {answer['reason']}"[:500]] += 1
            say(f"{len(answer['kept'])} launches, {answer['outcome']}: {item.name}")
            # After a fault a card answers everything with an error: begin with a new process.
            if recorder.gone or answer["stuck"]:
                recorder.gone = True
                recorder.close()
                recorder = None
    finally:
        if recorder is not None:
            recorder.gone = True  # nothing that it does now is wanted
            recorder.close()


def _room(awaited: list[Fate], fate: Fate, file: int) -> int:
    """Bytes that the file may have after a launch; the rest is for kernels that have none yet."""
    others = sum(not other.kept and other is not fate for other in awaited)
    return file - others * file * 2 // (3 * len(awaited))


def _answer(recorder: Process, question: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the recorder says; a death, or silence for too long, is a failure."""
    answer: dict[str, Any] = {}
    try:
        for answer in recorder.ask(question, max(seconds, 0.1)):
            if "outcome" in answer:
                break
    except Ended as end:
        return {"outcome": "failed", "reason": str(end), "kept": [], "left": {}, "stuck": True}
    return answer

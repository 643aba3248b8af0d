# SPDX-License-Identifier: Apache-2.0
"""Triton's bodies compiled ahead, in processes of their own: else the card waits for the compiler.

What they make lies in archkey's store, where the search finds it. What fails here fails
there once more, and is said there.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple

from archkey.bench.tune.rig import Rig
from archkey.bench.tune.samples import Sample
from archkey.bench.tune.search import Group
from archkey.conformance.sources import has_triton
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import settings

__all__ = ["Job", "compile_ahead", "jobs"]


class Job(NamedTuple):
    """One compilation; a process of its own understands all of it."""

    operator: str
    kernel: str
    problem: Any
    values: Any
    spills: int


def jobs(groups: Iterable[Group], known: Callable[[Sample, Any], bool]) -> list[Job]:
    """What the search will compile, each once; not for outcomes that are `known`.

    Nothing for kernels that do not import Triton: there is no cache to find them in.
    """
    found: dict[Job, None] = {}
    for group in groups:
        for sample in group.samples:
            if not has_triton(sample.kernel):
                continue
            for values in group.candidates:
                if not known(sample, values):
                    name, kernel = sample.kernel.operator, sample.kernel.id
                    found[Job(name, kernel, sample.problem, values, group.row.spills)] = None
    return list(found)


def compile_ahead(
    device: Device, listed: Iterable[Job], workers: int, step: Callable[[str], None]
) -> None:
    """Compile all of them for `device`, which is not touched. `step` is told what is done."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (device,))
    try:
        futures = {pool.submit(_compile, job): job for job in listed}
        for future in as_completed(futures):
            future.result()
            step(f"compiled {futures[future].operator}: {futures[future].values}")
    except BrokenProcessPool:  # a compiler that crashes: the search meets it by itself
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_RIG: list[tuple[Session, Rig]] = []  # of a worker: one


def _untimed(calls: Any) -> Any:
    raise NotImplementedError("a process that compiles times nothing")


def _start(device: Device) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    session = Session(replace(device, source="pretend"), settings())
    _RIG.append((session, Rig(session, _untimed)))


def _compile(job: Job) -> None:
    session, rig = _RIG[0]
    kernel = next(k for k in session.kernels(job.operator) if k.id == job.kernel)
    sample = Sample("", kernel, lambda maker: {}, job.problem)
    rig.plan(sample, job.values, job.spills)

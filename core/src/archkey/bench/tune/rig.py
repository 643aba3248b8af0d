# SPDX-License-Identifier: Apache-2.0
"""One candidate on one call: compiled, checked against float64, and only then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from archkey.bench import gate
from archkey.bench.results import Timing
from archkey.bench.tune.samples import Sample
from archkey.bench.tune.search import Outcome
from archkey.bench.workload import Supply, held_bytes
from archkey.conformance.judge import maker_of, written
from archkey.conformance.machine_code import expectations, judge_code, read
from archkey.errors import ArchkeyError, describe
from archkey.kernel import Kernel
from archkey.launch import Build, Plan, bind
from archkey.session import Session
from archkey.tuning import Row, Table

__all__ = ["Rig", "Time", "Judge", "with_values"]

Time = Callable[[Sequence[Callable[[], object]]], Timing]
"""The same call on different inputs -> the time of one: `archkey.bench.clock.Clock.time`."""

Judge = Callable[..., gate.Verdict]
"""(operator, truth, outputs, peer=False) -> verdict: `archkey.bench.gate.compare`."""

_SETS, _LARGE = 2, 1 << 30
"""Sets of inputs, in turns: what a call leaves in the caches is not what the next one reads. Inputs
of that many bytes sweep the caches themselves: one set."""


def with_values(kernel: Kernel, values: Any, spills: int = 0) -> Kernel:
    """`kernel` with these numbers for every problem."""
    return replace(kernel, tuning=Table((Row(values, spills=spills),)))


class Rig:
    """`rig(sample, row)(values)` is the Outcome of `values` on `sample`.

    The truth and the inputs of a sample are made once; what was compiled is kept for the samples
    that follow, since many are of one Problem.
    """

    def __init__(self, session: Session, time: Time, judge: Judge = gate.compare) -> None:
        self._session, self._time, self._judge = session, time, judge
        self._built: dict[Any, Plan | str] = {}

    def __call__(self, sample: Sample, row: Row) -> Callable[[Any], Outcome]:
        """Make inputs and truth. ArchkeyError if the device does not answer any more."""
        self._answers()
        torch.cuda.empty_cache()  # of the sample before; nothing where there is no CUDA or ROCm
        name = sample.kernel.operator
        try:
            inputs = sample.inputs(maker_of(self._session, 0, Supply))
            truth = gate.listen(self._session, name, inputs)
            del inputs
            sets = [self._arguments(sample, 1)]
            if held_bytes(sets[0]) < _LARGE:
                sets += [self._arguments(sample, seed) for seed in range(2, _SETS + 1)]
        except torch.OutOfMemoryError as error:
            raise ArchkeyError(
                f"{sample.name} is too large to be judged on this device; choose other calls with "
                f"--workload ({describe(error, 200)})"
            ) from error

        def once(run: Callable[..., None]) -> dict[str, torch.Tensor]:
            return written(self._session.operators[name], run, self._arguments(sample, 0))

        def outcome(values: Any) -> Outcome:
            self._answers()
            plan = self.plan(sample, values, row.spills)
            if isinstance(plan, str):
                return Outcome("failed", plan)
            run = plan.run
            calls = [lambda one=one: run(*one) for one in sets]
            try:
                with torch.inference_mode():
                    verdict = self._judge(name, truth, once(run), peer=False)
                    if verdict.passed:
                        return Outcome("timed", timing=self._time(calls))
            except Exception as error:  # a candidate may raise anything, and the next one is tried
                return Outcome("failed", describe(error))
            said = f"{verdict.output}: {verdict.error:.1e} > {verdict.tolerance:.1e}"
            return Outcome("wrong", said)

        return outcome

    def _arguments(self, sample: Sample, seed: int) -> tuple[Any, ...]:
        inputs = sample.inputs(maker_of(self._session, seed, Supply))
        return gate.hear(self._session, sample.kernel.operator, inputs)[1]

    def plan(self, sample: Sample, values: Any, spills: int) -> Plan | str:
        """The kernel with these numbers, or why there is none."""
        key = (sample.kernel.operator, sample.problem, values, spills)
        if key not in self._built:
            self._built[key] = self._build(sample, with_values(sample.kernel, values, spills))
        return self._built[key]

    def _build(self, sample: Sample, kernel: Kernel) -> Plan | str:
        session, problem = self._session, sample.problem
        operator = session.operators[kernel.operator]
        build = Build(session.device, session.capabilities, operator, kernel, session.versions)
        try:
            plan = bind(problem, session.decide(problem, kernel=sample.kernel.id), build)
            codes = [read(compiled) for compiled in plan.compiled]
        except (Exception, SystemExit) as error:  # a kernel's code may raise anything
            return describe(error)
        # What the exam would refuse at level compiled is no choice.
        return "; ".join(judge_code(codes, expectations(kernel, problem, session))) or plan

    def _answers(self) -> None:
        """A wrong address takes the whole context with it: then nothing more can be measured."""
        if self._session.device.torch_kind == "cpu":
            return
        try:
            torch.accelerator.synchronize()
        except RuntimeError as error:
            raise ArchkeyError(
                "the device does not answer any more; the last candidate is kept as failed, and "
                f"the same command goes on after it ({describe(error, 300)})"
            ) from error

# SPDX-License-Identifier: Apache-2.0
"""One entrant at one workload: bind, judge, time. Knows one device, and nothing of other processes.

An entrant is `archkey`, the kernel that the session chooses; `archkey:KERNEL`, another one of ours;
or a peer's route, `peer` or `peer:label`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from archkey import explain
from archkey.bench import peers
from archkey.bench.clock import Clock
from archkey.bench.entrant import Bound, NotServed
from archkey.bench.gate import Truth, Verdict, compare, listen, soil
from archkey.bench.place import is_ours
from archkey.bench.results import Entry
from archkey.bench.workload import Supply, Workload, cost_of, held_bytes, workloads_of
from archkey.conformance.cases import cases_of
from archkey.conformance.judge import maker_of, torch_device, written
from archkey.errors import UnknownName, Unsupported, describe
from archkey.kernel import resolve
from archkey.probe import Device
from archkey.session import Session
from archkey.session import open as open_session

__all__ = ["Bench", "entrants_of"]

_SETS = ((4 << 30, 1), (1 << 30, 2), (0, 4))
"""Sets of inputs that rotate, by the bytes of one: one set of gigabytes sweeps the cache itself."""

_ENOUGH = 4
"""Inputs that a checked route has to get right: each one may compile and tune for minutes."""


def entrants_of(operator: str) -> dict[str, tuple[peers.Peer, peers.Route]]:
    """Every route of a peer for `operator`, by the entrant's name."""
    return {
        peer.entrant(route): (peer, route)
        for peer in peers.PEERS
        for route in peer.routes
        if route.operator == operator
    }


class Bench:
    """Measures on `device`. `samples` and `seconds` are those of `Clock`."""

    def __init__(self, device: Device, seed: int, samples: int, seconds: float) -> None:
        self._device, self._seed = device, seed
        self._sessions: dict[tuple[str, str], Session] = {}
        self._truth: tuple[tuple[str, str], Truth] | None = None
        self.session = open_session(device)
        self.where = torch.device(torch_device(self.session))
        self._clock = Clock(self.where, samples, seconds)

    def head(self, operator: str, name: str) -> dict[str, Any]:
        """What a workload is, what it costs, and which kernel of ours it gets, and why."""
        contract, workload = self.session.operators[operator], self._workload(operator, name)
        inputs = self._inputs(workload, 0)
        cost = cost_of(contract, inputs)
        row: dict[str, Any] = {
            "operator": operator,
            "family": contract.family,
            **{key: getattr(workload, key) for key in ("name", "title", "model", "tp", "quick")},
            **cost.__dict__,
            **{"problem": "", "decision": None, "explained": ""},
        }
        try:
            decision = self.session.decide(self._true(workload, inputs).problem)
        except Unsupported as error:  # the operator itself says that this device cannot
            return {**row, "explained": str(error)}
        said = {"decision": decision.to_json(), "explained": explain.explain(decision)}
        return {**row, "problem": str(decision.problem), **said}

    def entry(self, operator: str, name: str, entrant: str) -> Entry:
        """Judge and time one entrant. What it raises is an answer, too."""
        workload = self._workload(operator, name)
        try:
            return self._timed(workload, entrant)
        except NotServed as refusal:
            return Entry(entrant, "not served", str(refusal))
        except Unsupported as refusal:
            return Entry(entrant, "not served", describe(refusal, 300))
        except Exception as error:  # a library may raise anything, and the next one still runs
            return Entry(entrant, "failed", describe(error, 500))
        finally:
            if self.where.type == "cuda":
                torch.cuda.empty_cache()

    def _timed(self, workload: Workload, entrant: str) -> Entry:
        peer = not is_ours(entrant)
        truth = self._true(workload)
        bind = self._binder(workload.operator, entrant)
        inputs = self._inputs(workload, 0)
        verdict, bound = self._judged(workload.operator, truth, bind, inputs, peer=peer)
        entry = Entry(
            entrant,
            "timed" if verdict.passed else "wrong",
            error=verdict.error if verdict.error < float("inf") else None,
            tolerance=verdict.tolerance,
            output=verdict.output,
            how=bound.how,
        )
        if not peer:
            session = self._session(workload.operator, entrant)
            decision = session.decide(truth.problem)
            kernel = decision.chosen.id if decision.chosen else ""
            entry = replace(entry, kernel=kernel, degraded=decision.degraded)
        if not verdict.passed:
            far = f"{verdict.error:.2g} of {verdict.tolerance:.2g} allowed"
            return replace(entry, reason=f"{verdict.output} is off by {far}")
        del bound, inputs
        with torch.inference_mode():
            calls = [bind(inputs).call for inputs in self._sets(workload)]
        return replace(entry, timing=self._clock.time(calls))

    def _judged(
        self,
        operator: str,
        truth: Truth,
        bind: Callable[[Mapping[str, Any]], Bound],
        inputs: Mapping[str, Any],
        *,
        peer: bool,
    ) -> tuple[Verdict, Bound]:
        """Call once on `inputs`, in memory that held NaN, and compare."""
        with torch.inference_mode():
            soil(self.where)
            bound = bind(inputs)
            bound.call()
            return compare(operator, truth, bound.outputs(), peer=peer), bound

    def check(self, entrant: str, operator: str) -> Iterator[dict[str, Any]]:
        """A peer's route on small inputs: what came of each, until enough were right.

        Those of the exam's models; where the library gives no LSE, the call does not ask for one;
        and where none of them is served, the operator's quick workloads.
        """
        contract = self.session.operators[operator]
        models = [case for case in cases_of(contract) if case.real]
        quick = [workload for workload in workloads_of(contract) if workload.quick]
        served = 0
        for name, make in (
            *((case.name, case.inputs) for case in models),
            *((case.name, _without_lse(case.inputs)) for case in models),
            *((workload.name, workload.inputs) for workload in quick),
        ):
            row = self._checked(operator, entrant, name, make)
            served += row["status"] != "not served"
            yield row
            if served >= _ENOUGH:
                break

    def _checked(
        self, operator: str, entrant: str, name: str, make: Callable[[Supply], Mapping[str, Any]]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"case": name, "status": "passed", "reason": ""}
        try:
            bind = self._binder(operator, entrant)
            truth = listen(self.session, operator, make(self._supply(0)))
            verdict, _ = self._judged(operator, truth, bind, make(self._supply(0)), peer=True)
        except (NotServed, Unsupported) as refusal:
            return {**row, "status": "not served", "reason": describe(refusal, 200)}
        except Exception as error:  # as in `entry`
            return {**row, "status": "failed", "reason": describe(error, 300)}
        far = verdict.error if verdict.error < float("inf") else None
        row |= {"error": far, "tolerance": verdict.tolerance}
        if not verdict.passed:
            row |= {"status": "wrong", "reason": f"{verdict.output} is off"}
        return row

    def _binder(self, operator: str, entrant: str) -> Callable[[Mapping[str, Any]], Bound]:
        if is_ours(entrant):
            session = self._session(operator, entrant)
            return lambda inputs: _bind_ours(session, operator, inputs)
        known = entrants_of(operator)
        if entrant not in known:
            raise UnknownName(f"entrant for {operator}", entrant, known)
        return peers.adapter(*known[entrant])

    def _session(self, operator: str, entrant: str) -> Session:
        """The session in which the entrant is the kernel of choice."""
        kernel = entrant.partition(":")[2]
        if not kernel:
            return self.session
        key = (operator, kernel)
        if key not in self._sessions:
            self._sessions[key] = open_session(self._device, override={operator: kernel})
        return self._sessions[key]

    def _workload(self, operator: str, name: str) -> Workload:
        known = {w.name: w for w in workloads_of(self.session.operators[operator])}
        if name not in known:
            raise UnknownName(f"workload of {operator}", name, known)
        return known[name]

    def _true(self, workload: Workload, inputs: Mapping[str, Any] | None = None) -> Truth:
        """The truth at a workload; the last one is kept for the entrants to come.

        inputs  those of seed 0, if they are there already
        """
        key = (workload.operator, workload.name)
        if self._truth is None or self._truth[0] != key:
            self._truth = None  # gigabytes: the old one goes before the new one comes
            inputs = inputs or self._inputs(workload, 0)
            self._truth = (key, listen(self.session, workload.operator, inputs))
        return self._truth[1]

    def _supply(self, offset: int) -> Supply:
        return maker_of(self.session, self._seed + offset, Supply)

    def _inputs(self, workload: Workload, offset: int) -> Mapping[str, Any]:
        return workload.inputs(self._supply(offset))

    def _sets(self, workload: Workload) -> Iterator[Mapping[str, Any]]:
        """Fresh inputs, as many sets as make sense for their size."""
        first = self._inputs(workload, 1)
        size = held_bytes(first.values())
        yield first
        for offset in range(2, next(count for least, count in _SETS if size >= least) + 1):
            yield self._inputs(workload, offset)


def _without_lse(make: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], Mapping[str, Any]]:
    """The same inputs for a call that asks for no LSE."""

    def inputs(supply: Any) -> Mapping[str, Any]:
        given = {name: value for name, value in make(supply).items() if name != "lse"}
        return {**given, "return_lse": False} if "return_lse" in given else given

    return inputs


class _Ours:
    """Stands in for a session: the first call's outputs start as NaN, and are kept by name."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.outputs: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launcher(self, problem: Any) -> Callable[..., None]:
        """The bound kernel; wrapped until it has run once."""
        run = self._session.launcher(problem)
        return run if self.outputs else lambda *arguments: self._first(problem, run, arguments)

    def _first(self, problem: Any, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.outputs = written(self._session.operators[problem.operator], run, arguments)


def _bind_ours(session: Session, operator: str, inputs: Mapping[str, Any]) -> Bound:
    """archkey's public function; outputs that are not given are allocated by each call."""
    implementation = resolve(session.operators[operator].function).__wrapped__
    ours = _Ours(session)
    return Bound(lambda: implementation(ours, **inputs), lambda: ours.outputs)

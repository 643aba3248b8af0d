# SPDX-License-Identifier: Apache-2.0
"""One device, its plugins, and every decision made for it.

`archkey.open(device_or_target)` gives a Session to hold; the operators called as functions use
one session a device, opened when the first tensor of that device arrives.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal

from archkey import explain as rendering
from archkey import preparing
from archkey._listener import problem_of
from archkey._session_parts import candidates, fp8_of, known_operators, meant, method_of
from archkey.capabilities import Capabilities, gather
from archkey.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FrozenError,
    PluginError,
    UnknownName,
    Unsupported,
    describe,
)
from archkey.kernel import Kernel, Run, resolve
from archkey.launch import Build, Plan, bind, interpreting
from archkey.locate import find_device
from archkey.ops import OPERATORS, Operator, Problem
from archkey.ops._contract import SESSIONS as _SESSIONS
from archkey.plugins import Loaded, load
from archkey.probe import Device
from archkey.requirements import installed_versions
from archkey.selection import Decision, Policy, select
from archkey.settings import Settings, settings
from archkey.target import Target

__all__ = ["Session", "open", "override", "session_of"]

log = logging.getLogger("archkey")

_NOTHING: Mapping[str, str] = MappingProxyType({})
_OVERRIDE: ContextVar[Mapping[str, str]] = ContextVar("archkey_override", default=_NOTHING)
_OPERATORS_SEEN = set(OPERATORS)  # and those of plugins, once a session has loaded them


class Session:
    """All that archkey knows and does for one device. Safe to share between threads.

    device        the probed (or pretended) device
    capabilities  what it can do: `session.capabilities.pdl`
    report        installed plugins and what became of each
    operators     every operator by name; each is a method of the session too
    degraded      operator -> problems that fell to a kernel made for another target
    pdl           whether its calls ask for early starts by default; a field of the norms' Problems
    """

    def __init__(
        self,
        device: Device,
        config: Settings,
        override: Mapping[str, str] = _NOTHING,
        strict: bool | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        loaded = loaded or load(device.target, config)
        self.device = device
        self.plugins = loaded.plugins
        self.report = loaded.report
        self.operators: dict[str, Operator] = dict(OPERATORS)
        for plugin in loaded.plugins:
            self.operators |= {operator.name: operator for operator in plugin.operators}
        native = [p for p in loaded.plugins if p.home.serves(device.target)]
        declared = [fact for plugin in reversed(native) for fact in plugin.capabilities]
        self.capabilities: Capabilities = gather(
            device, declared, native[0].name if native else None
        )
        self.validate = config.validate
        self.degraded: Counter[str] = Counter()
        known_operators(override, self.operators)
        self._override = {**meant(config.override, self.operators), **override}
        _OPERATORS_SEEN.update(self.operators)
        self._strict = config.strict if strict is None else strict
        self._candidates = candidates(self.plugins)
        rules = [rule for p in self.plugins for kernel in p.kernels for rule in kernel.rules()]
        packages = ["torch", "triton", *(rule.package for rule in rules)]
        self._versions = MappingProxyType(installed_versions(packages))  # builders see it too
        self._failed: dict[Problem, Mapping[str, str]] = {}
        self.problems: dict[Any, Any] = {}  # see archkey.ops._memo
        self._launchers: dict[Problem, Run] = {}
        self._plans: dict[tuple[Problem, str | None], Plan] = {}
        self._frozen: Literal["warn", "error"] | None = None
        self._lock = threading.RLock()
        # Triton's interpreter knows no launch attributes.
        self.pdl: bool = self.capabilities.pdl and not interpreting()
        self.fp8: str = fp8_of(self)

    def __repr__(self) -> str:
        return f"<archkey.Session {self.device.target} {self.device.name!r}>"

    # ---- deciding: nothing is imported, compiled or launched

    @property
    def versions(self) -> Mapping[str, str]:
        """Installed distributions that kernels of this session rest on: name -> version."""
        return self._versions

    def kernels(self, operator: str) -> tuple[Kernel, ...]:
        """All kernels of `operator`, best first; empty if there is none."""
        return tuple(candidate.kernel for candidate in self._candidates.get(operator, ()))

    def decide(self, problem: Problem, *, kernel: str | None = None) -> Decision:
        """The decision for `problem`; `kernel` asks for one by name or id, still checked."""
        operator = self._operator(problem)
        wanted = kernel or self._wanted(operator.name)
        candidates = self._candidates.get(operator.name, ())
        if wanted is not None and not any(c.kernel.named(wanted) for c in candidates):
            known = {name for c in candidates for name in (c.kernel.name, c.kernel.id)}
            raise UnknownName(f"kernel of {problem.operator}", wanted, known)
        policy = Policy({problem.operator: wanted} if wanted else _NOTHING, self._strict)
        return select(
            problem,
            self.device.target,
            self.capabilities,
            candidates,
            self._versions,
            policy,
            self._failed.get(problem),
        )

    def explain(self, problem: Problem, *, kernel: str | None = None) -> str:
        """The decision as text, with the reason for every kernel that was not chosen."""
        return rendering.explain(self.decide(problem, kernel=kernel))

    def identity(self) -> dict[str, str]:
        """Target, plugins, versions and the decisions made so far, by name."""
        chosen = {}
        for (problem, wanted), plan in self._plans.copy().items():  # other threads may be binding
            usual = wanted == self._override.get(problem.operator)
            entry = repr(problem) if usual else f"{problem} within an override"
            chosen[entry] = plan.decision.to_json()["chosen"]
        return {
            "target": self.device.target.key,
            **{f"plugin {p.name}": f"{p.distribution} {p.version}" for p in self.plugins},
            "order of plugins": ", ".join(p.name for p in self.plugins),
            **{f"version of {name}": version for name, version in self._versions.items()},
            **chosen,
        }

    def fingerprint(self) -> str:
        """Digest of `identity()`: two ranks with the same fingerprint run the same kernels."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def problem_of(self, operator: str, /, *args: Any, **kwargs: Any) -> Problem:
        """The Problem that this call of `operator` makes; nothing is decided or launched.

        By the very checks of the call, which read metadata alone: tensors may be on device "meta".
        Raises what the call would raise.
        """
        return problem_of(self, operator, *args, **kwargs)

    # ---- binding: the kernel's code is imported and compiled

    def plan(self, problem: Problem, *, kernel: str | None = None) -> Plan:
        """Bind `problem` to its kernel, compiling it now if it is new.

        `plan.run(*inputs, *outputs)` takes the operator's inputs and outputs in order.
        """
        return self._bind(problem, kernel or self._wanted(self._operator(problem).name))

    def prepare(
        self,
        problems: Iterable[Problem],
        *,
        jobs: int | None = None,
        progress: bool | None = None,
    ) -> list[Plan]:
        """Compile exactly what `problems` will run, and load it: a plan for each, in their order.

        jobs      processes that compile at a time; default: one a core
        progress  a bar on stderr while there is something to compile; default: on a terminal

        Prepared problems cost nothing the second time, and what was compiled once nothing but its
        loading, in any process (`archkey.artefacts`); so after Ctrl-C the same call goes on from
        there. After it neither compiler nor loader runs in a first call, which may be captured in
        a graph. For a pretended device it compiles, and where Triton interprets it only binds.

        Raises PrepareError with all problems that could not be prepared, when all others are.
        """
        listed = list(problems)
        for problem in listed:
            self._operator(problem)
        return preparing.prepare(self, listed, jobs, progress)

    def draft(self, problem: Problem) -> Build | None:
        """A build that lists the Triton programs which binding `problem` would compile.

        None if it is bound: before, or just now because it needs none. None also if binding it
        will raise, and say why.
        """
        wanted = self._wanted(self._operator(problem).name)
        with self._lock:
            if (problem, wanted) in self._plans or self._frozen:
                return None
            decision = self.decide(problem, kernel=wanted)
            if decision.chosen is None:
                return None
            build = self._new_build(decision.chosen, draft=True)
            try:
                plan = bind(problem, decision, build)
            except (Exception, SystemExit):
                return None
            if plan.programs:
                return build
            self._keep(plan, wanted)
            return None

    def freeze(self, mode: Literal["warn", "error"] = "error") -> None:
        """From now on, binding a problem that was not prepared warns, or is an error.

        Both name the prepared Problem that is nearest, and the fields in which they differ.
        """
        if mode not in ("warn", "error"):
            raise ArgumentValueError(f"freeze: mode must be 'warn' or 'error', found {mode!r}")
        self._frozen = mode

    def thaw(self) -> None:
        """Kernels may be built again without a word, as before `freeze`."""
        self._frozen = None

    def launcher(self, problem: Problem) -> Run:
        """The bound kernel of `problem`. Once it is bound this is a dictionary lookup."""
        if _OVERRIDE.get() is _NOTHING:
            run = self._launchers.get(problem)
            if run is not None:
                return run
        return self._bind(problem, self._wanted(problem.operator)).run

    def _bind(self, problem: Problem, wanted: str | None) -> Plan:
        key = (problem, wanted)
        plan = self._plans.get(key)  # without the lock: nobody waits for another one's compilation
        if plan is not None:
            return plan
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                self._check_frozen(problem, wanted)
                plan = self._build(problem, wanted)
                self._keep(plan, wanted)
            return plan

    def _keep(self, plan: Plan, wanted: str | None) -> None:
        if plan.decision.degraded:
            self._announce(plan.decision)
        if wanted == self._override.get(plan.problem.operator):
            self._launchers[plan.problem] = plan.run
        self._plans[plan.problem, wanted] = plan

    def _new_build(self, kernel: Kernel, draft: bool = False) -> Build:
        operator = self.operators[kernel.operator]
        return Build(self.device, self.capabilities, operator, kernel, self._versions, draft)

    def _build(self, problem: Problem, wanted: str | None) -> Plan:
        """Decide and build; a kernel that cannot be built is marked and the next one is taken."""
        while True:
            decision = self.decide(problem, kernel=wanted)
            if decision.chosen is None:
                raise Unsupported(rendering.unsupported(decision), decision)
            kernel = decision.chosen
            try:
                return bind(problem, decision, self._new_build(kernel))
            except (Exception, SystemExit) as error:  # a kernel's code may raise anything
                # For this problem alone: decisions must not depend on what was asked before.
                failed = self._failed.get(problem, _NOTHING)
                self._failed[problem] = {**failed, kernel.id: describe(error)}
                say = "kernel %s could not be built for %s"
                log.warning(say, kernel.id, problem, exc_info=True)

    def _announce(self, decision: Decision) -> None:
        """Say once per operator that something better is missing; count every problem."""
        if not self.degraded[decision.operator]:
            log.warning("degraded: %s", rendering.explain(decision))
        self.degraded[decision.operator] += 1

    def _check_frozen(self, problem: Problem, wanted: str | None) -> None:
        if self._frozen is None:
            return
        prepared = [(known, kernel) for known, kernel in self._plans]
        message = rendering.unprepared(problem, wanted, prepared, self.device.target)
        if self._frozen == "error":
            raise FrozenError(message)
        log.warning("%s; building it now", message)

    def _wanted(self, operator: str) -> str | None:
        return _OVERRIDE.get().get(operator) or self._override.get(operator)

    def _operator(self, problem: Problem) -> Operator:
        """The operator of `problem`, which must be one of its Problems."""
        name = getattr(problem, "operator", None)
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"problem must be an operator's Problem, found {problem!r:.200}"
            )
        if name not in self.operators:
            raise UnknownName("operator", name, self.operators)
        operator = self.operators[name]
        if not isinstance(problem, operator.problem):
            expected = operator.problem.__name__
            raise ArgumentTypeError(f"problem must be a {expected}, found {problem!r:.200}")
        return operator

    # ---- the operators, as methods

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operators = self.__dict__.get("operators", {})
        if name not in operators:
            raise AttributeError(f"a Session has no {name!r}")
        impl = getattr(resolve(operators[name].function), "__wrapped__", None)
        if impl is None:
            path = operators[name].function
            raise PluginError(f"{path} must be decorated with archkey.ops.public")
        method = method_of(self, impl)
        self.__dict__[name] = method
        return method


def open(
    device: Device | Target | str | Any | None = None,
    *,
    override: Mapping[str, str] = _NOTHING,
    strict: bool | None = None,
) -> Session:
    """Open a session.

    device    a Device; a Target or its name ("cuda_sm90"): works anywhere, all but launching,
              on the first such device if there is one; a torch.device or its name ("cuda:1");
              None: the first device of this machine
    override  operator -> kernel to use, still checked
    strict    refuse degraded choices; default ARCHKEY_STRICT
    """
    return Session(find_device(device), settings(), override, strict)


@contextmanager
def override(**kernels: str) -> Iterator[None]:
    """Within the context, use these kernels: `with archkey.override(rmsnorm="torch"): ...`.

    Local to the thread or task. The kernels still have to pass every check.
    """
    known_operators(kernels, _OPERATORS_SEEN)
    token = _OVERRIDE.set(MappingProxyType({**_OVERRIDE.get(), **kernels}))
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


_OPENING = threading.RLock()  # a plugin that calls an operator while it is imported must not hang


def session_of(torch_device: Any) -> Session:
    """The session that function calls on tensors of `torch_device` use."""
    session = _SESSIONS.get(torch_device)
    if session is None:
        with _OPENING:
            session = _SESSIONS.get(torch_device)
            if session is None:
                session = _SESSIONS[torch_device] = open(torch_device)
    return session

# SPDX-License-Identifier: Apache-2.0
"""The exam: which questions a target's or a plugin's kernels are asked, and the asking.

    subject = find("rocm_gfx950")
    for level in Level:
        items, answered = questions(subject, level)
        for outcome in pool.answers(subject.target, level, items, terms): ...

A level that cannot be run for a kernel is answered at once, with the reason, as skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from archkey.capabilities import VOCABULARY
from archkey.conformance.card import STATED
from archkey.conformance.case import Case
from archkey.conformance.cases import accuracy_of, cases_of
from archkey.conformance.contract import FUNCTION, refusals
from archkey.conformance.emulation.device import Emulated
from archkey.conformance.examine import BUILDER, CAPABILITIES, EXAMPLE, LOGIC, REFUSES
from archkey.conformance.levels import ALL, RANDOM, Item, Level, Outcome
from archkey.conformance.sources import digest, has_triton, imports
from archkey.conformance.worker import device_of, interprets, open_for
from archkey.errors import PluginError, UnknownName, nearest
from archkey.kernel import Kernel
from archkey.plugins import DEFAULT, Plugin, State, discover
from archkey.probe import Device
from archkey.session import Session
from archkey.target import Target

__all__ = ["Subject", "ahead", "find", "no_device", "questions", "sources"]


@dataclass(frozen=True)
class Subject:
    """Who is examined: all kernels of a target, or those of one plugin for it.

    name     as it was asked for: "rocm_gfx950", "cuda_sm90.acme"
    target   the key of the target
    session  of that target, pretended unless it is the cpu
    plugins  whose kernels are examined
    """

    name: str
    target: str
    session: Session
    plugins: tuple[Plugin, ...]

    def kernels(self, operator: str) -> list[Kernel]:
        """Kernels of `operator` to examine, best first."""
        names = {plugin.name for plugin in self.plugins}
        return [k for k in self.session.kernels(operator) if k.plugin in names]


def find(name: str) -> Subject:
    """The subject that a target's or a plugin's name means. Raises for what cannot be examined."""
    known = sorted({found.name for found in discover()})
    variant = "." in name
    if variant and name not in known:
        raise UnknownName("plugin", name, known, "`archkey plugins` lists what is installed.")
    target = Target.parse(name.partition(".")[0]).key
    session = open_for(target, Level.CONTRACT)
    serving = [p for p in session.plugins if p.home.serves(session.device.target)]
    for entry in session.report:
        mine = entry.found.name == name or (entry.target == target and not variant)
        if mine and entry.state not in (State.LOADED, State.SKIPPED):
            raise PluginError(
                f"plugin {entry.found.name} is {entry.state.value}: {entry.reason}. "
                "`archkey plugins` shows the traceback"
            )
    if variant:
        serving = [p for p in serving if p.name == name]
    elif not serving:
        raise PluginError(
            f"no plugin for {target} is installed; {nearest(target, known)}. "
            f"`archkey plugins` lists what is installed, `archkey new-plugin {target}` writes one"
        )
    if not any(plugin.kernels for plugin in serving):
        names = ", ".join(plugin.name for plugin in serving)
        raise PluginError(
            f"plugin {names} has no kernels, so there is nothing to examine; list them with the "
            "hook archkey_kernels"
        )
    if not variant:
        serving += [p for p in session.plugins if p.name == DEFAULT and p not in serving]
    return Subject(name, target, session, tuple(serving))


def questions(
    subject: Subject, level: Level, operators: Iterable[str] = (), full: bool = False
) -> tuple[list[Item], list[Outcome]]:
    """What to ask at `level`, and what is answered already: levels that cannot be run here.

    operators  only these; default: all
    full       the sizes of real models at levels interpreted and emulated, too
    """
    wanted = set(operators)
    items: list[Item] = []
    answered: list[Outcome] = []
    # Both ask the drivers: once a level, not once a kernel.
    device, interpreting = device_of(subject.target, level), interprets(subject.target, level)
    absent, emulating = _absent(subject.target, level, device), isinstance(device, Emulated)
    if not wanted and not absent:
        items, answered = _capability_questions(subject, level)
    for name, operator in subject.session.operators.items():
        if wanted and name not in wanted:
            continue
        kernels = subject.kernels(name)
        try:
            cases_of(operator)
        except PluginError as error:
            answered.append(
                Outcome(Item(level.value, name, FUNCTION, ALL), "failed", reason=str(error))
            )
            continue
        if level is Level.CONTRACT and kernels:
            calls = refusals(subject.session, operator)
            items += [Item(level.value, name, FUNCTION, REFUSES + call) for call in calls]
        for kernel in kernels:
            if why := absent or _cannot(subject, level, kernel, emulating, interpreting):
                answered.append(_skipped(level, name, kernel.id, why))
                continue
            cases = _cases(subject, level, kernel, device, full)
            items += [Item(level.value, name, kernel.id, case) for case in cases]
            if not cases:
                what = "cases of accuracy" if level is Level.ACCURACY else "cases"
                answered.append(_skipped(level, name, kernel.id, f"{name} has no {what}"))
    return items, answered


def ahead(subject: Subject, level: Level, items: Iterable[Item]) -> list[Item]:
    """Those of `items` whose kernels `pool.built` can compile before a card would wait for it.

    Random ones go first, as each is several problems. Not for level emulated: there every core has
    a worker, which compiles for itself.
    """
    on_card = level in (Level.DEVICE, Level.ACCURACY) and not interprets(subject.target, level)
    if not on_card or subject.session.device.target.triton_backend is None:
        return []
    compiled = {
        (name, kernel.id)
        for name in subject.session.operators
        for kernel in subject.kernels(name)
        if has_triton(kernel)
    }
    found = [item for item in items if (item.operator, item.kernel) in compiled]
    return sorted(found, key=lambda item: item.case != RANDOM)


def sources(subject: Subject, operators: Iterable[str] = ()) -> dict[str, str]:
    """Digest of each examined kernel's code, by "operator kernel". operators: as in `questions`."""
    wanted = set(operators)
    return {
        f"{name} {kernel.id}": digest(kernel, operator)
        for name, operator in subject.session.operators.items()
        if not wanted or name in wanted
        for kernel in subject.kernels(name)
    }


def _skipped(level: Level, operator: str, kernel: str, why: str) -> Outcome:
    return Outcome(Item(level.value, operator, kernel, ALL), "skipped", reason=why)


def _cases(
    subject: Subject, level: Level, kernel: Kernel, device: Device | None, full: bool
) -> list[str]:
    operator = subject.session.operators[kernel.operator]
    examples = [EXAMPLE + label for label in operator.examples]
    if level is Level.CONTRACT:
        return [BUILDER, *examples]
    if level is Level.COMPILED:
        return examples
    if level is Level.ACCURACY:
        sizes = _sizes(kernel, device, full)
        return [case.name for case in accuracy_of(operator) if sizes(case)]
    small = level in (Level.INTERPRETED, Level.EMULATED) and not full
    cases = [case.name for case in cases_of(operator) if case.edge or not small]
    return [*cases, RANDOM] if operator.cases else cases


def _sizes(kernel: Kernel, device: Device | None, full: bool) -> Callable[[Case], bool]:
    """Which cases of level accuracy are asked: what there is time for where `kernel` would run."""
    if full or (device is not None and device.torch_kind != "cpu"):
        return lambda case: True
    if device is None and has_triton(kernel):
        return lambda case: case.edge
    return lambda case: not case.large


def _cannot(
    subject: Subject, level: Level, kernel: Kernel, emulating: bool, interpreting: bool
) -> str:
    """Why `level` cannot be run for `kernel`, if the device is there; "" if it can.

    emulating     the device is archkey's own emulator, which runs Triton's programs alone
    interpreting  Triton's interpreter stands in for the device
    """
    modules = imports(kernel)
    uses = {name.partition(".")[0] for name in modules}
    if level is Level.COMPILED:
        if "triton" not in uses:
            return "no Triton body: nothing to compile"
        return _no_compiler(subject.session.device.target)
    if interpreting:
        if subject.target == DEFAULT:
            return "here the CPU is the device: see level device"
        if kernel.plugin == DEFAULT:
            return f"the torch reference itself: see `archkey check {DEFAULT}`"
        if "triton" not in uses:
            foreign = sorted(uses - {*_PLAIN, kernel.build.partition(".")[0].partition(":")[0]})
            runs = "run" if len(foreign) > 1 else "runs"
            return f"{', '.join(foreign)} {runs} on the device alone" if foreign else ""
        if any(name.startswith("triton.experimental.gluon") for name in modules):
            return "Gluon does not run in Triton's interpreter"
        return _missing("triton", "numpy")
    if emulating:
        if "triton" not in uses:
            return "no Triton body: nothing to emulate"
        return _no_compiler(subject.session.device.target) or _missing("numpy")
    if level in (Level.EMULATED, Level.DEVICE, Level.ACCURACY):
        needs_compiler = "triton" in uses and subject.target != DEFAULT
        return _no_compiler(subject.session.device.target) if needs_compiler else ""
    return ""


# What plain Python on tensors imports: it runs on the CPU as it is, without any interpreter.
_PLAIN = {"archkey", "numpy", "torch"} | sys.stdlib_module_names - {"ctypes", "subprocess"}


def _no_compiler(target: Target) -> str:
    """Why nothing can be compiled for `target` here; "" if it can."""
    if target.triton_backend is None:
        return f"no compiler: Triton has no backend for {target.key}"
    if missing := _missing("triton"):
        return missing
    folder = {"cuda": "nvidia", "hip": "amd"}[target.triton_backend[0]]
    spec = importlib.util.find_spec("triton")
    roots = (spec.submodule_search_locations if spec else None) or ()
    if not any(Path(root, "backends", folder).is_dir() for root in roots):
        return f"no compiler: the triton that is installed has no backend {folder!r}"
    return ""


def _missing(*packages: str) -> str:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    return ""


def no_device(target: str, level: Level) -> str:
    """Why the card or simulator of `level` is not here; "" if it is, or none is needed."""
    return _absent(target, level, device_of(target, level))


def _absent(target: str, level: Level, device: Device | None) -> str:
    if level not in (Level.EMULATED, Level.DEVICE):
        return ""
    if device is None:
        return f"no {'emulator of ' if level is Level.EMULATED else ''}{target} on this machine"
    import torch

    kind = device.torch_kind
    if kind != "cpu" and not getattr(getattr(torch, kind, None), "is_available", bool)():
        return f"there is a {target}, but torch {torch.__version__} cannot use {kind!r} devices"
    return ""


def _capability_questions(subject: Subject, level: Level) -> tuple[list[Item], list[Outcome]]:
    """What is asked of the plugins' claims about the hardware."""
    items: list[Item] = []
    answered: list[Outcome] = []
    for plugin in subject.plugins:
        declared = [fact.name for fact in plugin.capabilities if fact.name in VOCABULARY]
        if not declared or not plugin.home.serves(subject.session.device.target):
            continue
        if level is Level.CONTRACT:
            items.append(Item(level.value, CAPABILITIES, plugin.name, LOGIC))
        elif level is Level.DEVICE:
            asked = [name for name in declared if name in STATED]
            items += [Item(level.value, CAPABILITIES, plugin.name, name) for name in asked]
        elif level is Level.COMPILED:
            if why := _no_compiler(subject.session.device.target):
                answered.append(_skipped(level, CAPABILITIES, plugin.name, why))
            else:
                items += [Item(level.value, CAPABILITIES, plugin.name, name) for name in declared]
    return items, answered

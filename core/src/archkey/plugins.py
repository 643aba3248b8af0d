# SPDX-License-Identifier: Apache-2.0
"""Entry points -> loaded plugins, each taken whole or not at all.

The target stands in an entry point's name, so what serves other hardware is skipped before it is
imported. A plugin that fails does so alone: it gets a state and a reason, the rest goes on.

    loaded     in use
    skipped    for another architecture; not imported
    disabled   by the user (ARCHKEY_PLUGINS, ARCHKEY_DISABLE_PLUGINS); not imported
    refused    it breaks the contract of the door: API range, hook signatures, invalid kernels,
               a name that two distributions claim
    broken     it raised; the traceback is kept
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pluggy

from archkey import hookspecs
from archkey.capabilities import VOCABULARY, Capability, check
from archkey.errors import ArchkeyError, PluginError, TargetError, UnknownName, nearest
from archkey.kernel import Kernel
from archkey.ops import OPERATORS, Operator
from archkey.settings import Settings
from archkey.target import Target

__all__ = ["DEFAULT", "Entry", "Found", "Loaded", "Plugin", "State", "discover", "load"]

log = logging.getLogger("archkey")

DEFAULT = "cpu"
"""The plugin that serves the torch reference: at home on the CPU, the last resort elsewhere."""


class State(str, Enum):
    """What became of an installed plugin."""

    LOADED = "loaded"
    SKIPPED = "skipped"
    DISABLED = "disabled"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True)
class Found:
    """An entry point of the group, before anything of it is imported."""

    name: str
    value: str
    distribution: str
    version: str

    @property
    def location(self) -> str:
        """Where its top-level package lies, found without importing it; "" if it does not."""
        try:
            spec = importlib.util.find_spec(self.value.partition(":")[0].partition(".")[0])
        except (ImportError, ValueError):
            return ""
        return str(Path(spec.origin).parent) if spec and spec.origin else ""

    def __str__(self) -> str:
        where = self.location or "files not found"
        return f"{self.distribution} {self.version} ({self.value}, {where})"


@dataclass(frozen=True)
class Entry:
    """One installed plugin and what became of it on a target."""

    found: Found
    target: str
    state: State
    reason: str
    traceback: str = ""

    def to_json(self) -> dict[str, str]:
        """The keys `name`, `distribution`, `version`, `target`, `state`, `reason`, `location`."""
        return {
            "name": self.found.name,
            "distribution": self.found.distribution,
            "version": self.found.version,
            "target": self.target,
            "state": self.state.value,
            "reason": self.reason,
            "location": self.found.location,
            "traceback": self.traceback,
        }


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: its metadata, checked. `home` is the target in its name."""

    name: str
    home: Target
    distribution: str
    version: str
    capabilities: tuple[Capability, ...]
    kernels: tuple[Kernel, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Loaded:
    """Plugins of one target, preferred first and the default last; and a report on all installed."""

    plugins: tuple[Plugin, ...]
    report: tuple[Entry, ...]


def discover() -> list[Found]:
    """All entry points of the group, by name; imports nothing of them.

    We walk the metadata ourselves: pluggy's own loader stops at the first plugin that raises and
    keeps the first of two with one name, without a word.
    """
    found = {
        Found(
            point.name,
            point.value,
            point.dist.name if point.dist else "?",
            point.dist.version if point.dist else "?",
        )
        for point in importlib.metadata.entry_points(group=hookspecs.GROUP)
    }
    return sorted(found, key=lambda f: (f.name, f.distribution))


def load(target: Target, settings: Settings, found: Iterable[Found] | None = None) -> Loaded:
    """Load what serves `target`. Raises PluginError if a plugin asked for by name is missing."""
    installed = list(discover() if found is None else found)
    names = {f.name for f in installed}
    for name in settings.plugins or ():
        if name not in names:
            raise PluginError(
                f"ARCHKEY_PLUGINS asks for plugin {name!r}, which is not installed; "
                f"{nearest(name, names)}. Try: pip install archkey-{name.replace('_', '-')}"
            )
    plugins: list[Plugin] = []
    report: list[Entry] = []
    for candidate in installed:
        entry, plugin = _consider(candidate, target, settings, installed)
        report.append(entry)
        if entry.state in (State.REFUSED, State.BROKEN):
            log.warning("plugin %s is %s: %s", candidate.name, entry.state.value, entry.reason)
        if plugin is not None:
            plugins.append(plugin)
    plugins.sort(key=lambda p: _preference(p, target, settings))
    return Loaded(tuple(plugins), tuple(report))


def _preference(plugin: Plugin, target: Target, settings: Settings) -> tuple[Any, ...]:
    """The default last; else as the user listed them, the closest target, variants, names."""
    listed = settings.plugins or ()
    place = listed.index(plugin.name) if plugin.name in listed else len(listed)
    variant = "." in plugin.name
    return (plugin.name == DEFAULT, place, not plugin.home.is_exact(target), not variant, plugin.name)


def _consider(
    found: Found, target: Target, settings: Settings, installed: list[Found]
) -> tuple[Entry, Plugin | None]:
    """State of one installed plugin; the plugin itself if it is loaded."""
    try:
        home = Target.parse(found.name.partition(".")[0])
    except TargetError as error:
        return Entry(found, "", State.REFUSED, f"its name is no TARGET[.VARIANT]: {error}"), None

    def entry(state: State, reason: str, trace: str = "") -> Entry:
        return Entry(found, home.key, state, reason, trace)

    twins = [f for f in installed if f.name == found.name and f != found]
    if twins:
        others = ", ".join(map(str, [found, *twins]))
        reason = f"{len(twins) + 1} distributions claim this name: {others}. Uninstall all but one"
        return entry(State.REFUSED, reason), None
    if found.name in settings.disable_plugins:
        return entry(State.DISABLED, "named in ARCHKEY_DISABLE_PLUGINS"), None
    if settings.plugins is not None and found.name not in (*settings.plugins, DEFAULT):
        return entry(State.DISABLED, "not named in ARCHKEY_PLUGINS"), None
    if found.name != DEFAULT and not home.serves(target):
        return entry(State.SKIPPED, f"serves {home.key}, this is {target.key}"), None
    try:
        plugin = _load_one(found, home, target)
    except (ArchkeyError, pluggy.PluginValidationError) as error:
        return entry(State.REFUSED, str(error), traceback.format_exc()), None
    except Exception as error:  # whatever a plugin raises stays with that plugin
        reason = f"{type(error).__name__}: {error}"
        return entry(State.BROKEN, reason, traceback.format_exc()), None
    role = "serves this target" if home.serves(target) else "the torch reference, as last resort"
    return entry(State.LOADED, role), plugin


def _load_one(found: Found, home: Target, target: Target) -> Plugin:
    module = importlib.metadata.EntryPoint(found.name, found.value, hookspecs.GROUP).load()
    _check_api(module, found)
    # A manager a plugin: hooks are validated for this plugin alone and its results stay its own.
    manager = pluggy.PluginManager("archkey")
    manager.add_hookspecs(hookspecs)
    manager.register(module, found.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise PluginError(f"{found} implements no hook; mark hooks with @archkey.hookimpl")
    hook = manager.hook
    operators = tuple(_results(hook.archkey_operators()))
    known = dict(OPERATORS)
    for operator in operators:
        if operator.name in known:
            raise PluginError(f"operator {operator.name!r} exists already; give it another name")
        known[operator.name] = operator
    capabilities = tuple(_results(hook.archkey_capabilities(target=target)))
    for fact in capabilities:
        check(fact)
    kernels = tuple(
        replace(kernel, plugin=found.name)
        for kernel in _results(hook.archkey_kernels(target=target))
    )
    own = {fact.name for fact in capabilities}
    for kernel in kernels:
        _check_kernel(kernel, known, own)
    if len({(k.operator, k.name) for k in kernels}) < len(kernels):
        raise PluginError(f"{found} lists two kernels of one operator under one name")
    return Plugin(
        found.name, home, found.distribution, found.version, capabilities, kernels, operators
    )


def _results(calls: list[Any]) -> Iterable[Any]:
    """What the one registered plugin returned: pluggy gives a list of results, one a plugin."""
    return [item for result in calls for item in result]


def _check_api(module: Any, found: Found) -> None:
    span = getattr(module, "ARCHKEY_API", None)
    if not (isinstance(span, tuple) and [type(n) for n in span] == [int, int]):
        raise PluginError(
            f"{found} does not say which API it supports: ARCHKEY_API must be a pair of integers "
            f"such as ({hookspecs.API_VERSION}, {hookspecs.API_VERSION}), found {span!r}"
        )
    low, high = span
    if not low <= hookspecs.API_VERSION <= high:
        older = hookspecs.API_VERSION < low
        raise PluginError(
            f"{found} supports API {low} to {high}, this archkey has {hookspecs.API_VERSION}; "
            f"upgrade {'archkey' if older else found.distribution}"
        )


def _check_kernel(kernel: Kernel, operators: dict[str, Operator], own: set[str]) -> None:
    """Names in a kernel's data mean something; a misspelt one would silently never refuse."""
    if kernel.operator not in operators:
        raise UnknownName("operator", kernel.operator, operators, f"Kernel {kernel.name!r} names it.")
    if not kernel.name or kernel.build.count(":") != 1:
        raise PluginError(f"kernel {kernel.id!r}: build must be 'module:attribute', is {kernel.build!r}")
    fields = operators[kernel.operator].problem._fields
    rows = kernel.tuning.rows if kernel.tuning else ()
    for condition in (*kernel.accepts, *(c for row in rows for c in row.when)):
        if condition.field not in fields:
            raise UnknownName(
                f"field of {kernel.operator}'s Problem", condition.field, fields, f"In {kernel.id}."
            )
    for need in kernel.needs:
        if need.field not in VOCABULARY and need.field not in own:
            raise UnknownName("capability", need.field, {*VOCABULARY, *own}, f"In {kernel.id}.")

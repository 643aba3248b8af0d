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
from archkey._admission import (
    check_api,
    check_capabilities,
    check_kernels,
    check_operator,
    results,
)
from archkey.capabilities import Capability
from archkey.errors import ArchkeyError, PluginError, TargetError, describe, nearest
from archkey.kernel import Kernel
from archkey.ops import OPERATORS, Operator
from archkey.settings import Settings
from archkey.target import Target

__all__ = [
    "DEFAULT",
    "Entry",
    "Found",
    "Loaded",
    "Plugin",
    "State",
    "discover",
    "installed_targets",
    "load",
]

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
    """Plugins of one target, preferred first and the default last, and a report on all."""

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
            # A damaged installation has neither name nor version.
            (point.dist and point.dist.name) or "?",
            (point.dist and point.dist.version) or "?",
        )
        for point in importlib.metadata.entry_points(group=hookspecs.GROUP)
    }
    return sorted(found, key=lambda f: (f.name, f.distribution))


def installed_targets() -> tuple[str, ...]:
    """Keys of the targets that installed plugins are for, by name, the default's last."""
    keys = set()
    for found in discover():
        try:
            keys.add(Target.parse(found.name.partition(".")[0]).key)
        except TargetError:
            continue  # a misnamed plugin is refused by name in `archkey plugins`
    return (*sorted(keys - {DEFAULT}), DEFAULT)


def load(target: Target, settings: Settings, found: Iterable[Found] | None = None) -> Loaded:
    """Load what serves `target`. Raises PluginError if a plugin asked for by name is missing."""
    installed = list(discover() if found is None else found)
    names = {f.name for f in installed}
    for name in settings.plugins or ():
        if name not in names:
            raise PluginError(
                f"ARCHKEY_PLUGINS asks for plugin {name!r}, which is not installed; "
                f"{nearest(name, names)}. `archkey plugins` lists what is installed."
            )
    for name in settings.disable_plugins:
        if name not in names:
            log.warning("ARCHKEY_DISABLE_PLUGINS: no plugin %r; %s", name, nearest(name, names))
    plugins: list[Plugin] = []
    report: list[Entry] = []
    # The default comes last: it serves the operators that the others bring, too.
    for candidate in sorted(installed, key=lambda f: f.name == DEFAULT):
        entry, plugin = _consider(candidate, target, settings, installed, plugins)
        report.append(entry)
        if entry.state in (State.REFUSED, State.BROKEN):
            log.warning("plugin %s is %s: %s", candidate.name, entry.state.value, entry.reason)
        if plugin is not None:
            plugins.append(plugin)
    plugins.sort(key=lambda p: _preference(p, target, settings))
    report.sort(key=lambda entry: installed.index(entry.found))
    return Loaded(tuple(plugins), tuple(report))


def _preference(plugin: Plugin, target: Target, settings: Settings) -> tuple[Any, ...]:
    """The default last; else as the user listed them, the closest target, variants, names."""
    name, listed = plugin.name, settings.plugins or ()
    place = listed.index(name) if name in listed else len(listed)
    return (name == DEFAULT, place, not plugin.home.is_exact(target), "." not in name, name)


def _consider(
    found: Found,
    target: Target,
    settings: Settings,
    installed: list[Found],
    before: list[Plugin],
) -> tuple[Entry, Plugin | None]:
    """State of one installed plugin; the plugin itself if it is loaded."""
    try:
        home = Target.parse(found.name.partition(".")[0])
    except TargetError as error:
        return Entry(found, "", State.REFUSED, f"its name is no TARGET[.VARIANT]: {error}"), None

    def entry(state: State, reason: str, trace: str = "") -> Entry:
        return Entry(found, home.key, state, reason, trace)

    if found.name.partition(".")[0] not in (home.key, str(home)):
        return entry(State.REFUSED, f"its name must start with {home.key!r}, as written"), None
    twins = [f for f in installed if f.name == found.name and f != found]
    if twins and not (found.name == DEFAULT and found.distribution == "archkey"):
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
        plugin = _load_one(found, home, target, before)
    except (ArchkeyError, pluggy.PluginValidationError) as error:
        return entry(State.REFUSED, str(error), traceback.format_exc()), None
    except (Exception, SystemExit) as error:  # whatever a plugin raises stays with that plugin
        return entry(State.BROKEN, describe(error), traceback.format_exc()), None
    role = "serves this target" if home.serves(target) else "the torch reference, as last resort"
    return entry(State.LOADED, role), plugin


def _load_one(found: Found, home: Target, target: Target, before: list[Plugin]) -> Plugin:
    """Import one plugin and check all that it registers. `before`: those already loaded, whose

    operators and capabilities it may use: base plugins sort before their variants.
    """
    module = importlib.metadata.EntryPoint(found.name, found.value, hookspecs.GROUP).load()
    check_api(module, str(found))
    # A manager a plugin: hooks are validated for this plugin alone and its results stay its own.
    manager = pluggy.PluginManager("archkey")
    manager.add_hookspecs(hookspecs)
    manager.register(module, found.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise PluginError(f"{found} implements no hook; mark hooks with @archkey.hookimpl")
    hook = manager.hook
    operators = results(hook.archkey_operators(), Operator)
    known = dict(OPERATORS) | {o.name: o for plugin in before for o in plugin.operators}
    for operator in operators:
        check_operator(operator, known)
        known[operator.name] = operator
    capabilities = results(hook.archkey_capabilities(target=target), Capability)
    facts = {fact.name for plugin in before for fact in plugin.capabilities}
    check_capabilities(capabilities)
    facts |= {fact.name for fact in capabilities}
    listed = results(hook.archkey_kernels(target=target, operators=known), Kernel)
    kernels = tuple(replace(kernel, plugin=found.name) for kernel in listed)
    check_kernels(kernels, known, facts)
    return Plugin(
        found.name, home, found.distribution, found.version, capabilities, kernels, operators
    )

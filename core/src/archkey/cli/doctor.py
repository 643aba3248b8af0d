# SPDX-License-Identifier: Apache-2.0
"""`archkey doctor`: what is wrong with this installation; a report that can be pasted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

import archkey
from archkey import diagnosis
from archkey.cli.output import emit, json_option
from archkey.diagnosis import Dependent, Effect, Instead, Standing
from archkey.plugins import Entry, State, installed_targets
from archkey.probe import Probe, probe
from archkey.session import Session

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]

_FAILED = (State.REFUSED, State.BROKEN)
_TELLING = (*_FAILED, State.DISABLED, State.LOADED, State.SKIPPED)
"""A plugin's state on several targets: the first of these that it has."""

_STATE_STYLE = {"ok": "green", "violated": "bold red", "not installed": "yellow"}


@click.command(short_help="Find what is wrong with an installation.")
@click.argument("target", required=False)
@click.option("--all", "everything", is_flag=True, help="Judge the targets of all plugins.")
@json_option
def command(target: str | None, everything: bool, as_json: bool) -> None:
    """Report on machine, plugins, and every rule on installed distributions.

    A rule says in which versions of torch, Triton or a library a kernel, or a row of its tuning, is
    right. A violated one disables what rests on it, and the next runs; here is what that changes,
    judged by the example problems of each operator. Default: the targets of this machine's devices.
    TARGET need not be here. Nothing is imported of torch or Triton, and no network is used.

    \b
    ok             the version that is installed is in the range
    violated       it is not, or it is known to be bad
    not installed  an option, unless nothing but the last resort is left (*: degraded)

    Exit code 1 if there is something to do: a violated rule changes what runs, or might (no example
    shows it), or something missing leaves the last resort; a plugin is broken or refused; an
    override names no kernel; torch is missing.

    \b
    archkey doctor
    archkey doctor rocm_gfx950
    archkey doctor --all --json | jq '.rules[] | select(.state == "violated")'
    """
    if target and everything:
        raise click.UsageError("--all judges every target; leave out TARGET.")
    here = probe()
    sessions = _sessions(here, target, everything)
    standings = diagnosis.examine(sessions)
    plugins = _plugins(sessions)
    machine = diagnosis.machine(standing.rule.package for standing in standings)
    findings = [*_findings(machine, plugins, sessions), *map(_finding, _what_matters(standings))]
    if as_json:
        emit(
            {
                "healthy": not findings,
                "findings": findings,
                "machine": machine,
                "devices": [device.kind_to_json() for device in here.devices],
                "notes": [str(note) for note in here.notes],
                "targets": [session.device.target.key for session in sessions],
                "plugins": [entry.to_json() for entry in plugins],
                "rules": [standing.to_json() for standing in standings],
            }
        )
    else:
        _show(here, machine, plugins, sessions, standings, findings)
    if findings:
        raise click.exceptions.Exit(1)


def _sessions(here: Probe, target: str | None, everything: bool) -> list[Session]:
    """One a target: of TARGET, or of the devices here, with --all of all installed plugins too."""
    if target:
        return [archkey.open(target)]
    devices = {device.target.key: device for device in reversed(here.devices)}
    asked: dict[str, Any] = dict(reversed(devices.items()))
    if everything:
        asked = {**dict.fromkeys(installed_targets()), **asked}
    return [archkey.open(device or key) for key, device in asked.items()]


def _plugins(sessions: Iterable[Session]) -> list[Entry]:
    """Each installed plugin once, in its most telling state."""
    entries = [entry for session in sessions for entry in session.report]
    entries.sort(key=lambda entry: _TELLING.index(entry.state))
    found = {entry.found: entry for entry in reversed(entries)}
    return sorted(found.values(), key=lambda entry: (entry.found.name, entry.found.distribution))


# ---- what there is to do


def _findings(
    machine: dict[str, Any], plugins: Iterable[Entry], sessions: Iterable[Session]
) -> list[str]:
    """All but the rules."""
    owners: dict[str, dict[str, str]] = machine["distributions"]
    said = []
    if not owners["torch"]:
        said.append("torch is not installed: no operator can run. Install it for your device")
    for package, found in owners.items():
        if len(found) > 1:
            names = " and ".join(f"{name} {version}" for name, version in found.items())
            said.append(f"{names} overwrite each other's files: uninstall all but one {package}")
    for entry in plugins:
        if entry.state in _FAILED:
            see = f"archkey plugins --traceback -t {entry.target}".removesuffix(" -t ")
            state = f"plugin {entry.found.name} is {entry.state.value}"
            said.append(f"{state}: {entry.reason}; see `{see}`")
    return [*said, *(text for session in sessions for text in diagnosis.misnamed(session))]


def _what_matters(standings: Iterable[Standing]) -> list[Standing]:
    return [standing for standing in standings if standing.matters]


def _finding(standing: Standing) -> str:
    facts = standing.to_json()
    said = [
        f"{facts['found']}, needed is {facts['required']}",
        standing.rule.consequence if standing.version else "",
        *_effects(standing.dependents),
        facts["remedy"],
    ]
    return "; ".join(filter(None, said))


def _effects(dependents: Iterable[Dependent]) -> list[str]:
    """What rests on a rule, a line for all operators that it means the same for."""
    alike: dict[tuple[str, str, int | None, Effect, tuple[str, ...]], list[str]] = {}
    for one in dependents:
        # What runs instead may differ in its tuning's row alone, which matters if a row is fenced.
        instead = tuple(dict.fromkeys(_instead(one, other) for other in one.instead))
        key = (one.target, one.kernel, one.row, one.effect, instead)
        alike.setdefault(key, []).append(one.operator)
    return [_effect(operators, *key) for key, operators in alike.items()]


def _effect(
    operators: Sequence[str],
    target: str,
    kernel: str,
    row: int | None,
    effect: Effect,
    instead: Sequence[str],
) -> str:
    listed = ", ".join(operators)
    if effect is Effect.NONE and len(operators) > _FEW:
        listed = f"{len(operators)} operators"
    what = f"{kernel} of {listed}" + ("" if row is None else f", row {row}")
    if not kernel.startswith(target):  # a plugin of the family, or of another target
        what = f"{target}: {what}"
    if effect is Effect.CHANGED:
        return f"{what} -> {', '.join(instead)}"
    return (
        what
        + {
            Effect.NONE: "",
            Effect.UNSEEN: " -> no example problem shows what runs instead",
            Effect.UNUSED: " -> nothing changes: it would not run here anyway",
        }[effect]
    )


_FEW = 3
"""Operators that are named where nothing is lost; `--json` names all."""


def _instead(lost: Dependent, other: Instead) -> str:
    if other.kernel is None:
        return "no kernel"
    if lost.row is not None and other.kernel == lost.kernel:
        return f"row {other.row}"
    return other.kernel + "*" * other.degraded


# ---- for people


def _show(
    here: Probe,
    machine: dict[str, Any],
    plugins: Sequence[Entry],
    sessions: Sequence[Session],
    standings: Sequence[Standing],
    findings: Sequence[str],
) -> None:
    from rich.text import Text

    from archkey.cli import render

    console = render.open_console()
    _show_machine(console, here, machine)
    _show_plugins(console, plugins)
    targets = ", ".join(session.device.target.key for session in sessions)
    if standings:
        console.print(Text(f"rules, judged for {targets}", "bold"))
        _show_rules(console, standings)
    else:
        console.print(f"no kernel for {targets} rests on a rule; --all judges every plugin's")
    if findings:
        console.print(Text(f"{len(findings)} to do:", "bold red"))
        render.facts(console, [("-", finding) for finding in findings])
    else:
        console.print(Text("nothing to do: no violated rule changes what runs", "green"))


def _show_machine(console: Console, here: Probe, machine: dict[str, Any]) -> None:
    from archkey.cli import render

    counted: dict[str, int] = {}
    for device in here.devices:
        driver = f", driver {device.driver}" if device.driver else ""
        partition = f", {device.partition}" if device.partition else ""
        text = f"{device.target} {device.name}{partition}{driver} ({device.source})"
        counted[text] = counted.get(text, 0) + 1
    render.facts(
        console,
        [
            *(("device", text + (f" x {n}" if n > 1 else "")) for text, n in counted.items()),
            *(("note", str(note)) for note in here.notes),
            ("python", f"{machine['python']} ({machine['executable']})"),
            ("platform", machine["platform"]),
            *((package, _owners(package, f)) for package, f in machine["distributions"].items()),
            *(("set", f"{name}={value}") for name, value in machine["environment"].items()),
        ],
    )


def _owners(package: str, found: dict[str, str]) -> str:
    """The version, and the name of the distribution if that is not the package's."""
    said = (v if name == package else f"{v} ({name})" for name, v in found.items())
    return ", ".join(said) or "not installed"


def _show_plugins(console: Console, plugins: Sequence[Entry]) -> None:
    from rich.text import Text

    from archkey.cli import render
    from archkey.cli.plugins import STATE_STYLE

    rows = [
        (
            Text(entry.found.name, "bold"),
            Text(entry.state.value, STATE_STYLE[entry.state]),
            f"{entry.found.distribution} {entry.found.version}",
            "" if entry.state in (State.LOADED, State.SKIPPED) else entry.reason,
        )
        for entry in plugins
    ]
    render.table(console, ("plugin", "state", "distribution", "reason"), rows)


def _show_rules(console: Console, standings: Sequence[Standing]) -> None:
    from rich.text import Text

    from archkey.cli import render

    wide = console.width >= render.WIDE
    rows: list[tuple[render.Cell, ...]] = []
    for standing in standings:
        facts = standing.to_json()
        style = "dim" if standing.state == "not installed" and not standing.matters else ""
        state = Text(standing.state, style or _STATE_STYLE[standing.state])
        name, effects = Text(facts["required"], "bold"), _effects(standing.dependents)
        remedy = "" if standing.state == "ok" else f"remedy: {facts['remedy']}"
        why = standing.rule.consequence
        if wide:
            rows.append(
                (name, facts["found"], state, why, render.stack("\n".join(effects), remedy))
            )
        else:
            rows.append((name, state, render.stack(facts["found"], why, *effects, remedy)))
    columns = ("found", "state", "severity: why", "rests on it -> runs instead")
    shown = columns if wide else ("state", "found, why, what rests on it -> runs instead")
    render.table(console, ("rule", *shown), rows, airy=True)
    if any(dependent.last_resort for s in standings for dependent in s.dependents):
        console.print(Text("* degraded: a kernel made for another target", "yellow"))

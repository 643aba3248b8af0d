# SPDX-License-Identifier: Apache-2.0
"""What surrounds two runs of the bench and may explain their times: cards, versions, ceilings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archkey.bench import noise

__all__ = ["Ceiling", "Version", "card", "ceilings", "device", "same_kind", "settings", "versions"]


@dataclass(frozen=True)
class Version:
    """A distribution, or the driver, whose version changed; "" is not installed."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Ceiling:
    """A ceiling of the machine that was read differently in the two runs, at their starts."""

    name: str
    unit: str
    old: float
    new: float


def versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Version]:
    """The distributions, and the driver, whose versions differ."""
    before, after = _installed(old), _installed(new)
    for name in sorted({*before, *after}):
        if before.get(name, "") != after.get(name, ""):
            yield Version(name, before.get(name, ""), after.get(name, ""))


def _installed(document: Mapping[str, Any]) -> dict[str, str]:
    """Every version that the document states: ours, the driver's, the peers', all others."""
    found = {"archkey": document.get("archkey"), "driver": device(document).get("driver")}
    for peer in document["peers"]:
        found.update(peer.get("versions") or {})
    found.update(document["versions"])
    return {name: str(version) for name, version in found.items() if version}


def ceilings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Ceiling]:
    """The ceilings that were read differently, by more than two readings of one card do."""
    before = {row["name"]: row for row in old["ceilings"]}
    for row in new["ceilings"]:
        was = before.get(row["name"], row)["start"]
        if was and row["start"] and noise.differ(was, row["start"]):
            yield Ceiling(row["name"], row["unit"], was, row["start"])


def settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of the runs that differ in what they mean: name -> old and new value."""
    before, after = old["settings"], new["settings"]
    names = [name for name in dict.fromkeys([*before, *after]) if name not in _EXTENT]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {n: p for n, p in pairs.items() if _meaning(n, p[0]) != _meaning(n, p[1])}


_EXTENT = ("workloads", "resumed")
"""How much was measured, and in how many goes: no time depends on it, and the entries show it."""


def _meaning(name: str, value: Any) -> Any:
    """What a setting comes to: peers in any order, and to leave out nobody is to say nothing."""
    if name in ("only", "without") and (value is not None or name == "without"):
        return frozenset(value or ())
    return value


def device(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the document says of its device; empty if it says nothing."""
    return document["machine"].get("device") or {}


def card(document: Mapping[str, Any]) -> str:
    """The device for people: "NVIDIA H200", with its partition if there is one."""
    parts = (device(document).get("name"), device(document).get("partition"))
    return " ".join(filter(None, parts)) or "unknown card"


def same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two documents are of cards of one kind: of another name or size, times differ."""
    names = ("name", "target", "compute_units", "partition")
    return all(device(old).get(n) == device(new).get(n) for n in names)

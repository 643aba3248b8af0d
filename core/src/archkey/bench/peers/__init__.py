# SPDX-License-Identifier: Apache-2.0
"""Peers: other libraries' kernels for our operators, each used only if the user has it.

The table is data; a peer's adapters are a module of this package, which imports the library and is
imported when the peer is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archkey.bench.entrant import Adapter
from archkey.bench.peers.peer import Peer, Route
from archkey.bench.peers.table import PEERS
from archkey.errors import describe
from archkey.requirements import installed_versions

__all__ = ["PEERS", "Peer", "Route", "Standing", "adapter", "standing"]


@dataclass(frozen=True)
class Standing:
    """Whether a peer can be used here.

    state     "installed", "not installed", or "broken": it is there and cannot be imported
    reason    what is missing, or what was raised
    versions  of its distributions
    """

    state: str
    reason: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {"state": self.state, "reason": self.reason, "versions": dict(self.versions)}


def standing(peer: Peer) -> Standing:
    """Import the peer's adapters, and with them the library, and say what became of it."""
    versions = installed_versions(peer.distributions)
    for package in peer.packages:
        if not any(map(_there, package.split("|"))):
            return Standing(
                "not installed",
                f"no module {package.replace('|', ' or ')}: {peer.install}",
                versions,
            )
    try:
        importlib.import_module(peer.module)
    except (Exception, SystemExit) as error:
        return Standing("broken", describe(error), versions)
    return Standing("installed", "", versions)


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def adapter(peer: Peer, route: Route) -> Adapter:
    """The adapter of a route. Raises what importing the library raises."""
    found: Adapter = getattr(importlib.import_module(peer.module), route.function)
    return found

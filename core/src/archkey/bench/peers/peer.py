# SPDX-License-Identifier: Apache-2.0
"""What is known about a peer before it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Peer", "Route"]


@dataclass(frozen=True)
class Route:
    """One way in which a peer computes an operator.

    operator  the operator's name
    function  the adapter in the peer's module
    label     tells routes of one peer apart: "fa2", "cudnn"; "" if there is one
    """

    operator: str
    function: str
    label: str = ""


@dataclass(frozen=True)
class Peer:
    """Another library.

    name           "flashinfer"; an entrant is called `name` or `name:label`
    title          as its authors write it
    module         its adapters, a module of this package
    packages       what it imports, top-level names: none of them missing means installed; "a|b" if
                   either will do
    distributions  whose versions are stated
    install        the command that installs it
    home           where it lives
    """

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    home: str
    routes: tuple[Route, ...]

    def entrant(self, route: Route) -> str:
        """What takes part under this route is called: "flashinfer:fa3", or the peer's name."""
        return f"{self.name}:{route.label}" if route.label else self.name

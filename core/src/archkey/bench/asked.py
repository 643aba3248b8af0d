# SPDX-License-Identifier: Apache-2.0
"""What a user asks to be measured, by names: workloads, further kernels of ours, peers."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archkey.bench import peers
from archkey.bench.workload import Workload, workloads_of
from archkey.errors import UnknownName
from archkey.session import Session

__all__ = ["Asked", "check_peers", "guests", "kernels", "workloads"]


@dataclass(frozen=True)
class Asked:
    """Which peers take part, by name or as one route, "flashinfer:fa3".

    only     these; None is all
    without  not these
    """

    only: Sequence[str] | None = None
    without: Sequence[str] = ()

    def has(self, peer: str, entrant: str) -> bool:
        """Whether the route of `peer` that is called `entrant` takes part."""
        names = {peer, entrant}
        return (self.only is None or bool(names & set(self.only))) and not names & set(self.without)

    def to_json(self) -> dict[str, Any]:
        """All fields, as lists: what JSON makes of them."""
        return {
            "only": None if self.only is None else list(self.only),
            "without": list(self.without),
        }


def check_peers(names: Iterable[str], *, routes: bool = True) -> None:
    """UnknownName if one of `names` is no peer's, nor, with `routes`, an entrant of one."""
    known = {peer.name for peer in peers.PEERS}
    if routes:
        known |= {peer.entrant(route) for peer in peers.PEERS for route in peer.routes}
    for name in names:
        if name not in known:
            raise UnknownName("peer", name, known)


def workloads(
    session: Session,
    operators: Sequence[str] = (),
    patterns: Sequence[str] = (),
    quick: bool = False,
) -> list[Workload]:
    """The workloads of `operators` (none named: of all) whose name fits a pattern, if there is one.

    UnknownName if there is no such operator, or no such workload among those.
    """
    known = session.operators
    for name in operators:
        if name not in known:
            raise UnknownName("operator", name, {*known, "peers"})
    listed = [w for name in operators or known for w in workloads_of(known[name])]
    if quick:
        listed = [w for w in listed if w.quick]
    if patterns:
        matched = [w for w in listed if any(fnmatch.fnmatch(w.name, p) for p in patterns)]
        if not matched:
            raise UnknownName("workload", " ".join(patterns), {w.name for w in listed})
        listed = matched
    return listed


def kernels(
    session: Session, names: Sequence[str], operators: Collection[str]
) -> dict[str, list[str]]:
    """Operator -> those of the kernels `names` that it has. UnknownName if none has one of them."""
    every = {name: session.kernels(name) for name in operators}
    for name in names:
        if not any(kernel.named(name) for listed in every.values() for kernel in listed):
            raise UnknownName("kernel", name, {k.id for listed in every.values() for k in listed})
    return {
        operator: [name for name in names if any(kernel.named(name) for kernel in listed)]
        for operator, listed in every.items()
    }


def guests(session: Session, kernels: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Names of `kernels` (operator -> names) that call another library, which they import."""
    return frozenset(
        name
        for operator, names in kernels.items()
        for name in names
        for kernel in session.kernels(operator)
        if kernel.named(name) and {r.package for r in kernel.requires} - {"torch", "triton"}
    )

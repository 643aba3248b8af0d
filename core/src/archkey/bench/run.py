# SPDX-License-Identifier: Apache-2.0
"""A bench run: which questions are asked of the measuring processes, and where the answers go.

A library that crashes or hangs costs its own entry; its process is started anew for the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from archkey._process import Ended
from archkey.bench import peers
from archkey.bench.asked import Asked
from archkey.bench.asker import Asker
from archkey.bench.ceilings import bound
from archkey.bench.measure import entrants_of
from archkey.bench.peers import Peer, Route
from archkey.bench.place import beside
from archkey.bench.results import OURS, Entry
from archkey.bench.workload import Cost, Workload

__all__ = ["checks", "run", "standings", "steps"]


def standings(asker: Asker) -> list[dict[str, Any]]:
    """Every peer: whether it can be used here, its versions, and how to install it."""
    rows = []
    for peer in peers.PEERS:
        try:
            found = asker.ask("standing", peers_too=True, peer=peer.name)["standing"]
        except Ended as end:
            found = {"state": "broken", "reason": str(end), "versions": {}}
        own = {key: getattr(peer, key) for key in ("name", "title", "install", "home")}
        served = sorted({route.operator for route in peer.routes})
        rows.append({**own, **found, "operators": served})
    return rows


def checks(asker: Asker, peer: Peer) -> Iterator[tuple[Route, list[dict[str, Any]]]]:
    """Each route of an installed peer on small inputs: what came of each case."""
    for route in peer.routes:
        try:
            question = {"operator": route.operator, "entrant": peer.entrant(route)}
            yield route, asker.ask("check", peers_too=True, **question)["check"]
        except Ended as end:
            yield route, [{"case": "", "status": "failed", "reason": str(end)}]


def run(
    document: dict[str, Any],
    asker: Asker,
    workloads: Sequence[Workload],
    kernels: Mapping[str, Sequence[str]],
    peers_asked: Asked,
    guests: Collection[str] = (),
) -> Iterator[str]:
    """Fill `document`; yields the name of each step before it is taken.

    What the document has already is not measured again, unless it failed or was not installed.

    kernels  operator -> further kernels of ours to measure beside the chosen one
    guests   those of them that call another library: they are measured where peers are

    The document can be kept after every step: an interrupted run has what was done by then.
    """
    document["complete"] = False
    yield "peers"
    document["peers"] = standings(asker)
    yield "ceilings"
    if not document["ceilings"]:
        _take_ceilings(document, asker, "start")
    rows = {(row["operator"], row["name"]): row for row in document["workloads"]}
    for workload in workloads:
        yield f"{workload.operator} {workload.name}"
        row = rows.get((workload.operator, workload.name))
        if row is None:
            row = {**_head(asker, workload), "entries": []}
            _bound(row, document["ceilings"])
            document["workloads"].append(row)
        for entrant in _entrants(workload.operator, kernels, peers_asked):
            yield f"{workload.operator} {workload.name}: {entrant}"
            known = {found["entrant"]: found for found in row["entries"]}
            if known.get(entrant, {}).get("status") not in _SETTLED:
                entry = _rated(_entry(asker, workload, entrant, document["peers"], guests), row)
                listed = {**known, entrant: entry.to_json()}.values()
                row["entries"] = [e.to_json() for e in beside(map(Entry.from_json, listed))]
    yield "ceilings"
    _take_ceilings(document, asker, "end")
    document["complete"] = True


_SETTLED = ("timed", "wrong", "not served")


def steps(
    workloads: Sequence[Workload],
    kernels: Mapping[str, Sequence[str]],
    peers_asked: Asked,
) -> int:
    """How many names `run` will yield."""
    each = (list(_entrants(w.operator, kernels, peers_asked)) for w in workloads)
    return 3 + sum(1 + len(entrants) for entrants in each)


def _entrants(
    operator: str, kernels: Mapping[str, Sequence[str]], peers_asked: Asked
) -> Iterator[str]:
    yield OURS
    yield from (f"{OURS}:{kernel}" for kernel in kernels.get(operator, ()))
    for name, (peer, _) in entrants_of(operator).items():
        if peers_asked.has(peer.name, name):
            yield name


def _head(asker: Asker, workload: Workload) -> dict[str, Any]:
    """What the workload is. If its truth cannot be had, that is said, and its entries fail."""
    try:
        head: dict[str, Any] = asker.ask("head", operator=workload.operator, workload=workload.name)
        return head["head"]  # type: ignore[no-any-return]
    except Ended as end:
        own = {key: getattr(workload, key) for key in ("name", "title", "model", "tp", "quick")}
        cost = Cost(0.0, 0.0)
        said = {"problem": "", "decision": None, "explained": str(end)}
        return {"operator": workload.operator, "family": "", **own, **cost.__dict__, **said}


def _entry(
    asker: Asker,
    workload: Workload,
    entrant: str,
    peers: Sequence[Mapping[str, Any]],
    guests: Collection[str],
) -> Entry:
    peer = entrants_of(workload.operator).get(entrant)
    if peer:
        (found,) = (row for row in peers if row["name"] == peer[0].name)
        if found["state"] != "installed":
            status = "not installed" if found["state"] == "not installed" else "failed"
            return Entry(entrant, status, found["reason"])
    try:
        question = {"operator": workload.operator, "workload": workload.name, "entrant": entrant}
        apart = bool(peer) or entrant.partition(":")[2] in guests
        return Entry.from_json(asker.ask("entry", peers_too=apart, **question)["entry"])
    except Ended as end:
        return Entry(entrant, "failed", str(end))


def _take_ceilings(document: dict[str, Any], asker: Asker, when: str) -> None:
    """Measure the ceilings. None at all if the process dies of it."""
    try:
        found = asker.ask("ceilings")["ceilings"]
    except Ended:
        return
    for ceiling in found:
        rows = {row["name"]: row for row in document["ceilings"]}
        if ceiling["name"] not in rows:
            row = {"name": ceiling["name"], "unit": ceiling["unit"], "start": None, "end": None}
            document["ceilings"].append(row)
            rows[ceiling["name"]] = row
        rows[ceiling["name"]][when] = ceiling["value"]


def _bound(row: dict[str, Any], ceilings: Sequence[Mapping[str, Any]]) -> None:
    """Put the workload's bound into its row, by the ceilings of the start: the card is cool."""
    values = {ceiling["name"]: ceiling["start"] for ceiling in ceilings}
    row |= {"bound_us": None, "bound_by": "", "ceiling": None}
    if {"copy", "bfloat16"} <= set(values) and (row["flops"] or row["bytes"]):
        cost = Cost(row["flops"], row["bytes"], row["rate"])
        us, name = bound(cost, values)
        row |= {"bound_us": us, "bound_by": name, "ceiling": values.get(name, values["bfloat16"])}


def _rated(entry: Entry, row: Mapping[str, Any]) -> Entry:
    """The entry with its rates."""
    if entry.timing is None:
        return entry
    us = entry.timing.us
    return replace(
        entry,
        tflops=row["flops"] / us / 1e6 if row["flops"] else None,
        gbs=row["bytes"] / us / 1e3 if row["bytes"] else None,
        of_bound=row["bound_us"] / us if row["bound_us"] else None,
    )

# SPDX-License-Identifier: Apache-2.0
"""The process that measures: `python -m archkey.bench.child`, asked by `run`.

Questions, by their key `ask`, and the one answer to each:

    standing   of a peer              {"standing": {...}}
    ceilings   of the device          {"ceilings": [{...}]}
    head       of a workload          {"head": {...}}
    entry      of an entrant          {"entry": {...}, "usable": whether the device still answers}
    check      of a peer's route      {"check": [{...}]}

What is wrong with the question itself is answered by {"error": text}.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from archkey._process import Say, serve
from archkey.errors import ArchkeyError, UnknownName, describe
from archkey.locate import find_device

__all__ = ["main"]


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="archkey.bench.child", description=__doc__)
    parser.add_argument("--device", required=True, help="as torch names it, or a target")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()

    def start() -> Callable[[dict[str, Any], Say], None]:
        from archkey.bench.measure import Bench

        device = find_device(given.device)
        bench = Bench(device, given.seed, given.samples, given.seconds)

        def answer(question: dict[str, Any], say: Say) -> None:
            try:
                say(**_ANSWERS[question.pop("ask")](bench, **question))
            except ArchkeyError as error:
                say(error=describe(error))

        return answer

    serve(start)


def _standing(bench: Any, peer: str) -> dict[str, Any]:
    from archkey.bench import peers

    known = {listed.name: listed for listed in peers.PEERS}
    if peer not in known:
        raise UnknownName("peer", peer, known)
    return {"standing": peers.standing(known[peer]).to_json()}


def _ceilings(bench: Any) -> dict[str, Any]:
    from archkey.bench.ceilings import measure

    return {"ceilings": [ceiling.__dict__ for ceiling in measure(bench.session)]}


def _head(bench: Any, operator: str, workload: str) -> dict[str, Any]:
    return {"head": bench.head(operator, workload)}


def _entry(bench: Any, operator: str, workload: str, entrant: str) -> dict[str, Any]:
    entry = bench.entry(operator, workload, entrant)
    return {"entry": entry.to_json(), "usable": _usable(bench.where)}


def _check(bench: Any, operator: str, entrant: str) -> dict[str, Any]:
    return {"check": list(bench.check(entrant, operator))}


def _usable(where: Any) -> bool:
    """Whether the device still answers: after a fault, a GPU's context refuses everything."""
    import torch

    if where.type == "cpu":
        return True
    try:
        torch.zeros(1, device=where).item()
    except RuntimeError:
        return False
    return True


_ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "standing": _standing,
    "ceilings": _ceilings,
    "head": _head,
    "entry": _entry,
    "check": _check,
}


if __name__ == "__main__":
    main()

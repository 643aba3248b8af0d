# SPDX-License-Identifier: Apache-2.0
"""Small workloads and made-up peers, for this process and for the measuring one.

`python -m tests.bench._small` is `archkey.bench.child` with these in the place of ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from archkey.bench import child, peers
from archkey.bench.entrant import Bound, NotServed
from archkey.bench.peers import Peer, Route
from archkey.bench.workload import Cost, Workload
from archkey.conformance.case import Maker
from archkey.ops import OPERATORS


def _rows(tokens: int) -> Any:
    def inputs(make: Maker) -> dict[str, Any]:
        weight = make.randn(256)
        return {"x": make.randn(tokens, 256), "weight": weight, "eps": 1e-6}

    return inputs


def _huge(make: Maker) -> dict[str, Any]:
    """In float32 the squares are infinite: torch's reference, which stands in for us, is wrong."""
    found = _rows(3)(make)
    return {**found, "x": found["x"] * 1e25}


def _added(make: Maker) -> dict[str, Any]:
    return {**_rows(5)(make), "residual": make.randn(5, 256)}


WORKLOADS = (
    Workload("rmsnorm", "Small", 1, "T7", _rows(7), quick=True),
    Workload("rmsnorm", "Small", 1, "T64", _rows(64)),
    Workload("rmsnorm", "Small", 1, "T3", _huge, about="huge"),
    Workload("fused_add_rmsnorm", "Small", 2, "T5", _added, quick=True),
)

COSTS = {
    "rmsnorm": lambda inputs: Cost(0.0, 2.0 * inputs["x"].nbytes + inputs["weight"].nbytes),
    "fused_add_rmsnorm": lambda inputs: Cost(0.0, 4.0 * inputs["x"].nbytes),
}


def _norm(inputs: Mapping[str, Any]) -> torch.Tensor:
    x = inputs["x"].double()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + inputs["eps"])
    return (y * (inputs["weight"].double() + inputs.get("weight_bias", 0.0))).bfloat16()


def right(inputs: Mapping[str, Any]) -> Bound:
    out = torch.empty_like(inputs["x"])
    return Bound(lambda: out.copy_(_norm(inputs)), lambda: {"out": out}, "in float64")


def coarse(inputs: Mapping[str, Any]) -> Bound:
    """Rounded twice, as a peer may."""
    out = torch.empty_like(inputs["x"])
    return Bound(lambda: out.copy_(_norm(inputs) * 1.01), lambda: {"out": out})


def wrong(inputs: Mapping[str, Any]) -> Bound:
    """Without the weight."""
    return right({**inputs, "weight": torch.ones_like(inputs["weight"])})


def refusing(inputs: Mapping[str, Any]) -> Bound:
    raise NotServed("64 tokens at most, <b>no more</b>")


def raising(inputs: Mapping[str, Any]) -> Bound:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def nameless(inputs: Mapping[str, Any]) -> Bound:
    return Bound(lambda: None, lambda: {})


def dying(inputs: Mapping[str, Any]) -> Bound:
    if len(inputs["x"]) != 7:
        raise NotServed("once is enough")
    os.abort()


def hanging(inputs: Mapping[str, Any]) -> Bound:
    if len(inputs["x"]) != 7:
        raise NotServed("once is enough")
    time.sleep(600)
    raise AssertionError


def added(inputs: Mapping[str, Any]) -> Bound:
    """In place, as archkey does by default."""
    x, residual = inputs["x"], inputs["residual"]

    def call() -> None:
        residual.add_(x)
        x.copy_(_norm({**inputs, "x": residual}))

    return Bound(call, lambda: {"out": x, "residual_out": residual})


HANGS = ("made-up:hanging", "small-tp1-t7")
"""The entrant and the workload at which it never ends."""

_ROUTES = ("right", "coarse", "wrong", "refusing", "raising", "nameless", "hanging", "dying")

PEERS = (
    Peer(
        name="made-up",
        title="Made Up",
        module="tests.bench._small",
        packages=("torch",),
        distributions=("torch",),
        install="pip install made-up",
        home="https://example.org/made-up",
        routes=(
            *(Route("rmsnorm", name, name) for name in _ROUTES),
            Route("fused_add_rmsnorm", "added"),
        ),
    ),
    Peer(
        name="absent",
        title="Absent",
        module="tests.bench._no_such_module",
        packages=("torch", "no_such_package_of_archkey"),
        distributions=("no-such-package",),
        install="pip install no-such-package",
        home="https://example.org/absent",
        routes=(Route("rmsnorm", "rmsnorm"),),
    ),
    Peer(
        name="broken",
        title="Broken",
        module="tests.bench._no_such_module",
        packages=("torch",),
        distributions=(),
        install="pip install broken",
        home="https://example.org/broken",
        routes=(Route("rmsnorm", "rmsnorm"),),
    ),
)


def put_in_place() -> None:
    """From here on archkey in this process has these workloads and peers, and no others."""
    peers.PEERS = PEERS
    for name in ("rmsnorm", "fused_add_rmsnorm"):
        OPERATORS[name] = replace(OPERATORS[name], workloads=__name__)


if __name__ == "__main__":
    import tests.bench._small as small  # by its name, which the table gives

    torch.set_num_threads(1)  # as in the tests themselves: their machines are busy
    small.put_in_place()
    child.main()

# SPDX-License-Identifier: Apache-2.0
"""Documents of the bench, made up for tests: small, whole, and easy to change in one place."""

from __future__ import annotations

import copy
from typing import Any

from archkey.bench.results import FORMAT, OURS, Entry, Timing

CARD = {
    "target": "cuda_sm90",
    "name": "NVIDIA H200",
    "compute_units": 132,
    "partition": "",
    "driver": "580.159.04",
}


def timing(us: float, spread: float = 0.01, samples: int = 30, method: str = "graph") -> Timing:
    """A time whose 10th and 90th percentile lie `spread` off its median."""
    return Timing(us, us * (1 - spread), us * (1 + spread), samples, method)


def timed(entrant: str, time: Timing | float, **fields: Any) -> dict[str, Any]:
    at = time if isinstance(time, Timing) else timing(time)
    return Entry(
        entrant, "timed", timing=at, of_bound=fields.pop("of_bound", 0.5), **fields
    ).to_json()


def untimed(entrant: str, status: str, reason: str = "so it is") -> dict[str, Any]:
    return Entry(entrant, status, reason).to_json()


def workload(
    *entries: dict[str, Any], operator: str = "rmsnorm", name: str = "t64", **fields: Any
) -> dict[str, Any]:
    return {
        "operator": operator,
        "family": operator.partition("_")[0],
        "name": name,
        "title": f"DeepSeek-V3 TP1, {name}",
        "model": "DeepSeek-V3",
        "tp": 1,
        "quick": True,
        "problem": "RmsNormProblem(width=7168)",
        "flops": 0.0,
        "bytes": 2e6,
        "rate": "bfloat16",
        "bound_us": 50.0,
        "bound_by": "copy",
        "ceiling": 4e12,
        "decision": {"chosen": "cuda_sm90:triton", "tuning": {"values": "num_warps=4"}},
        "explained": "",
        "entries": list(entries),
        **fields,
    }


def document(*workloads: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found = {
        "format": FORMAT,
        "complete": True,
        "started": "2026-11-21T14:20:42Z",
        "archkey": "0.1.0",
        "machine": {"device": dict(CARD), "host": {"name": "node"}},
        "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
        "settings": {"seed": 0, "samples": 30},
        "ceilings": [
            {"name": "copy", "unit": "B/s", "start": 4.28e12, "end": 4.27e12},
            {"name": "bfloat16", "unit": "FLOP/s", "start": 7.77e14, "end": 7.0e14},
        ],
        "peers": [
            {
                "name": "flashinfer",
                "title": "FlashInfer",
                "state": "installed",
                "reason": "",
                "versions": {"flashinfer-python": "0.7.2.post1"},
                "install": "pip install flashinfer-python",
                "home": "https://github.com/flashinfer-ai/flashinfer",
            }
        ],
        "coverage": [],
        "workloads": list(workloads),
    }
    return copy.deepcopy({**found, **fields})


def one(
    ours: Timing | float = 100.0, peer: Timing | float = 100.0, **fields: Any
) -> dict[str, Any]:
    """A document of one workload, timed for ours and one peer; `fields` are the workload's."""
    entries = (timed(OURS, ours, kernel="cuda_sm90:triton"), timed("flashinfer", peer))
    return document(workload(*entries, **fields))

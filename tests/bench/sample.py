# SPDX-License-Identifier: Apache-2.0
"""Made-up results of a bench, as full and as awkward as real ones.

python -m tests.bench.sample full results.json      # full, interrupted, empty, cpu
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.sample_rows import FA3, FI2, FI3, OPS, TRITON, Row, rows

import archkey
from archkey.bench.results import FORMAT, OURS, Entry, Timing, write
from archkey.ops import OPERATORS

EVIL = "<script>alert('peer')</script> & \"quotes\" <b>bold</b>"
LONG = (
    "RuntimeError: Error in function 'run' at "
    "/src/flashinfer/data/include/attention/hopper/prefill_sm90.cuh:412: "
    + "no instantiation for head_dim_qk=576, head_dim_vo=512, use_swa=true; " * 4
    + "größer als 256 — siehe §3 「未対応」"
)
COPY, BFLOAT16, FLOAT8 = 4.28e12, 777e12, 1410e12
CEILINGS = (("copy", "B/s", COPY), ("bfloat16", "FLOP/s", BFLOAT16), ("float8", "FLOP/s", FLOAT8))
DEGRADED = {"mla_prefill", "rmsnorm_quant"}
PEERS = (
    ("flashmla", "FlashMLA", "installed", "", {"vllm": "0.26.0"}, "vllm==0.26.0"),
    ("vllm", "vLLM", "installed", "", {"vllm": "0.26.0"}, "vllm==0.26.0"),
    (
        "flashinfer",
        "FlashInfer",
        "installed",
        "",
        {"flashinfer-python": "0.7.2.post1"},
        "flashinfer-python",
    ),
    ("sglang", "SGLang", "installed", "", {"sglang": "0.5.23"}, "sglang"),
    (
        "fla",
        "Flash Linear Attention",
        "installed",
        "",
        {"fla-core": "0.6.0", "flash-linear-attention": "0.6.0"},
        "fla-core",
    ),
    ("flashkda", "FlashKDA", "installed", "", {"flash-kda": "1ce47ea"}, "flash-kda"),
    ("liger", "Liger Kernel", "broken", EVIL, {"liger-kernel": "0.8.5"}, "liger-kernel"),
    (
        "quack",
        "QuACK",
        "not installed",
        "no module quack: python -m pip install quack-kernels",
        {},
        "quack-kernels",
    ),
)
REFUSED = {
    "mla_decode": (
        Entry(FI2, "failed", LONG),
        Entry("fla", "not served", "no counterpart for softmax_scale = 0.1147"),
    ),
    "rmsnorm": (
        Entry("liger", "failed", EVIL),
        Entry("quack", "not installed", "no module quack: python -m pip install quack-kernels"),
    ),
    "unified_attention": (
        Entry(
            FI3,
            "wrong",
            "out is off by 0.31 where 0.012 is allowed",
            error=0.31,
            tolerance=0.012,
            output="out",
        ),
    ),
    "chunk_kda": (Entry(TRITON, "not served", "softplus gate only — “lower_bound” is not there"),),
}
HOW = {
    OURS: "one CUDA graph; 1 launch",
    "flashmla": "schedule metadata made once, outside; 2 launches",
    FA3: "scheduler metadata made once, outside",
    FI3: "plan() made once, outside",
    "sglang": "writes over v: time includes a clone of it",
}


def full() -> dict[str, Any]:
    """All operators, eight peers, every status."""
    return {
        "format": FORMAT,
        "complete": True,
        "started": "2026-11-21T14:20:42Z",
        "archkey": "0.1.0",
        "machine": {"device": _device(), "host": _host()},
        "versions": {
            "torch": "2.11.0+cu130",
            "triton": "3.6.0",
            "python": "3.12.4",
            "cuda": "13.0",
        },
        "settings": {
            "seed": 0,
            "samples": 30,
            "warmup": 5,
            "quick": False,
        },
        "ceilings": [
            *({"name": n, "unit": u, "start": v, "end": v * 0.986} for n, u, v in CEILINGS),
            {"name": "launch", "unit": "us", "start": 2.04, "end": 2.11},
        ],
        "peers": [
            {
                "name": name,
                "title": title,
                "state": state,
                "reason": reason,
                "versions": versions,
                "install": f"python -m pip install {install}",
                "home": f"https://github.com/example/{name}",
            }
            for name, title, state, reason, versions, install in PEERS
        ],
        "coverage": [row for operator in OPERATORS for row in _coverage(operator)],
        "workloads": [_workload(number, row) for number, row in enumerate(rows())],
    }


def interrupted() -> dict[str, Any]:
    """Cut off after a few workloads: no ceilings at the end, entries missing."""
    document = full()
    document["complete"] = False
    document["workloads"] = document["workloads"][:4]
    document["workloads"][3]["entries"] = []
    for ceiling in document["ceilings"]:
        ceiling["end"] = None
    return document


def empty() -> dict[str, Any]:
    """Nothing was run."""
    return {
        **full(),
        "complete": False,
        "workloads": [],
        "ceilings": [],
        "peers": [],
        "coverage": [],
    }


def cpu() -> dict[str, Any]:
    """A machine without an accelerator: the reference alone, timed by the host's clock."""
    document = full()
    device = {"target": "cpu", "name": "AMD EPYC 9654", "index": 0, "driver": None}
    document["machine"]["device"] = device
    document["ceilings"] = [{"name": "copy", "unit": "B/s", "start": 1.1e10, "end": 1.0e10}]
    document["workloads"] = document["workloads"][18:30:3]
    for workload in document["workloads"]:
        timing = Timing(81234.5, 80011.0, 90210.0, 7, "host")
        ours = Entry(
            OURS,
            "timed",
            kernel="cpu:torch",
            error=1e-3,
            tolerance=1e-2,
            output="out",
            timing=timing,
            gbs=0.41,
            of_bound=0.037,
        )
        gone = Entry("flashinfer", "not installed", "no module flashinfer")
        workload["entries"] = [ours.to_json(), gone.to_json()]
    return document


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "full": full,
    "interrupted": interrupted,
    "empty": empty,
    "cpu": cpu,
}


def _device() -> dict[str, Any]:
    return {
        "target": "cuda_sm90", "index": 0, "name": "NVIDIA H200", "source": "nvml",
        "compute_units": 132, "shared_memory_bytes": 232448, "l2_bytes": 62914560,
        "memory_bytes": 150754820096, "partition": "", "uuid": "GPU-3f0c", "driver": "580.159.04",
        "torch_type": "cuda", "simulated": False,
    }  # fmt: skip


def _host() -> dict[str, str]:
    return {"cpu": "Intel Xeon Platinum 8480C", "python": "3.12.4", "os": "Linux 6.8 (glibc 2.39)"}


def _workload(number: int, row: Row) -> dict[str, Any]:
    operator = OPERATORS[row.operator]
    memory, matrix = row.bytes / COPY * 1e6, row.flops / BFLOAT16 * 1e6
    bound = max(memory, matrix)
    entries = [_timed(row, name, us, bound) for name, us in row.times.items()]
    if row.operator == "dequantize_sparse_kv":
        entries[-1] = Entry(
            OURS,
            "wrong",
            "out is off by 0.2 where 0.01 is allowed",
            kernel="cpu:torch",
            degraded=True,
            error=0.2,
            tolerance=0.01,
            output="out",
        )
    title = ", ".join(filter(None, (f"{row.model} TP{row.tp}", row.sizes, row.about)))
    decision, explained = _decision(row.operator)
    return {
        "operator": row.operator, "family": operator.family, "title": title, "model": row.model,
        "name": title.lower().replace(", ", "-").replace(" ", "-"), "tp": row.tp,
        "quick": number % 3 == 0, "problem": str(next(iter(operator.examples.values()))),
        "flops": row.flops, "bytes": row.bytes, "rate": "bfloat16", "bound_us": bound,
        "bound_by": "copy" if memory >= matrix else "bfloat16",
        "ceiling": COPY if memory >= matrix else BFLOAT16, "decision": decision,
        "explained": explained,
        "entries": [e.to_json() for e in (*entries, *REFUSED.get(row.operator, ()))],
    }  # fmt: skip


def _timed(row: Row, name: str, us: float, bound: float) -> Entry:
    spread = 0.012 + 0.03 * (len(name) % 3)
    degraded = name == OURS and row.operator in DEGRADED
    return Entry(
        name, "timed", degraded=degraded, error=0.0017 + 0.0001 * len(name), tolerance=0.012,
        kernel=("cpu:torch" if degraded else "cuda_sm90:triton") if name == OURS else "",
        output="out", timing=Timing(us, us * (1 - spread), us * (1 + 2 * spread), 30,
                                    "events" if name == OPS else "graph", us * 0.96),
        tflops=row.flops / us / 1e6 if row.flops else None, gbs=row.bytes / us / 1e3,
        of_bound=bound / us, how=HOW.get(name, ""),
    )  # fmt: skip


@cache
def _decision(operator: str) -> tuple[dict[str, Any], str]:
    session = archkey.open("cuda_sm90")
    problem = next(iter(OPERATORS[operator].examples.values()))
    return session.decide(problem).to_json(), str(session.explain(problem))


def _coverage(operator: str) -> Iterator[dict[str, Any]]:
    proof = {
        "date": "2026-11-21",
        "versions": {"torch": "2.11.0", "triton": "3.6.0"},
        "device": "NVIDIA H200",
        "cases": 214,
        "error": 0.0031,
        "tolerance": 0.012,
    }
    for target in ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950", "cpu"):
        kernel, level, problems = f"{target}:triton", "interpreted", []
        if target == "cuda_sm90":
            level = "device"
        if operator in DEGRADED or target == "cpu":
            kernel, level = "cpu:torch", "contract"
        if operator == "kda_gate" and target == "rocm_gfx950":
            kernel, level, problems = None, "none", ["device: 3 cases failed <i>here</i>"]
        yield {
            "operator": operator,
            "target": target,
            "kernel": kernel,
            "level": level,
            "degraded": kernel == "cpu:torch" and target != "cpu",
            "evidence": None
            if level == "none"
            else {**proof, "device": proof["device"] if level == "device" else None},
            "problems": problems,
        }


if __name__ == "__main__":
    write(Path(sys.argv[2]), KINDS[sys.argv[1]]())

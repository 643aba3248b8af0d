# SPDX-License-Identifier: Apache-2.0
"""RMSNorm on the card in this machine: correctness on fresh random inputs, then times.

    python tests/device/rmsnorm.py [--json FILE]

Correctness first: every listed width and token count against the float64 reference, in units in
the last place of the output's dtype. Times are medians of CUDA graph replays of one call with the
L2 cache overwritten before each, beside the copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import archkey
import archkey.session
from archkey.ops import OPERATORS
from archkey.reference import rmsnorm as reference

WIDTHS = (111, 128, 200, 256, 512, 1536, 2048, 2304, 4096, 6144, 7168, 8192, 16384, 18432)
TOKENS = (1, 2, 33, 64, 132, 256, 4096, 16384)
QK = ((1536, 512), (2048, 512), (0, 512))
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def ulps(out: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Distance in representable numbers of out's dtype."""
    kind = _BITS[out.dtype]

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(kind).long()
        return torch.where(bits < 0, -(bits & torch.iinfo(kind).max), bits)

    return (ordered(out) - ordered(want.to(out.dtype))).abs()


class Check:
    """Collects the worst distances; a NaN anywhere is infinitely far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, what: str, out: torch.Tensor, want: torch.Tensor) -> None:
        far = ulps(out, want)
        limit = 2 if out.dtype != torch.float32 else 64  # float32 sums in another order
        share = (far > 1).double().mean().item() if limit == 2 else 0.0
        bad = not bool(out.isfinite().all()) or int(far.max()) > limit or share > 1e-3
        self.rows.append({"what": what, "max_ulp": int(far.max()), "over_1": share, "ok": not bad})
        if bad:
            print("FAILED", self.rows[-1])


def correctness(seed: int) -> Check:
    """Every width, token count, dtype and layout."""
    torch.manual_seed(seed)
    check = Check()
    for n, t in itertools.product(WIDTHS, TOKENS):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if dtype != torch.bfloat16 and t not in (33, 256):
                continue
            _one(check, n, t, dtype)
    for (nq, nk), t in itertools.product(QK, (*TOKENS, 131072)):
        _qk(check, nq, nk, t)
    _long(check)
    _repeat(check)
    return check


def _one(check: Check, n: int, t: int, dtype: torch.dtype) -> None:
    wide = torch.randn(t, n + 64, device="cuda", dtype=dtype)
    x, w = wide[:, :n], torch.randn(n, device="cuda", dtype=dtype)
    bias = float(torch.rand(()) > 0.5)
    out = torch.full_like(x, float("nan"))
    archkey.rmsnorm(x, w, 1e-6, out=out, weight_bias=bias)
    (want,) = reference.rmsnorm(x, w, 1e-6, bias, compute_dtype=torch.float64)
    check(f"rmsnorm N={n} T={t} {dtype} strided", out, want)
    residual = torch.randn(t, n, device="cuda", dtype=dtype)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-6, compute_dtype=torch.float64)
    archkey.fused_add_rmsnorm(x, residual, w, 1e-6)
    check(f"fused_add_rmsnorm N={n} T={t} {dtype} out", x, y)
    check(f"fused_add_rmsnorm N={n} T={t} {dtype} sum", residual, total)


def _qk(check: Check, nq: int, nk: int, t: int) -> None:
    row = torch.randn(t, nq + nk + 64, device="cuda", dtype=torch.bfloat16)
    q, k = row[:, :nq] if nq else None, row[:, nq : nq + nk]
    qw, kw = torch.randn(nq, device="cuda").bfloat16(), torch.randn(nk, device="cuda").bfloat16()
    arguments = (q, qw if nq else None, 1e-6 if nq else None, k, kw, 1e-5)
    q_out, k_out = archkey.fused_qk_rmsnorm(*arguments)
    q_want, k_want = reference.fused_qk_rmsnorm(*arguments, compute_dtype=torch.float64)
    check(f"fused_qk_rmsnorm {nq}+{nk} T={t} k", k_out, k_want)
    if q_out is not None and q_want is not None:
        check(f"fused_qk_rmsnorm {nq}+{nk} T={t} q", q_out, q_want)


def _long(check: Check) -> None:
    """More than 2^31 elements: the last rows must be right, too."""
    t, n = 300_001, 7168
    x = torch.randn(t, n, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(n, device="cuda", dtype=torch.bfloat16)
    out = archkey.rmsnorm(x, w, 1e-6)
    (want,) = reference.rmsnorm(x[-64:], w, 1e-6, compute_dtype=torch.float64)
    check(f"rmsnorm N={n} T={t}, last rows", out[-64:], want)


def _repeat(check: Check) -> None:
    """A chain of dependent launches gives the same bits again, with and without early starts."""
    x0 = torch.randn(33, 7168, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(7168, device="cuda", dtype=torch.bfloat16)

    def chain(pdl: bool) -> torch.Tensor:
        x, residual = x0.clone(), x0.clone()
        for _ in range(100):
            archkey.fused_add_rmsnorm(x, residual, w, 1e-6, enable_pdl=pdl)
            archkey.rmsnorm(residual, w, 1e-6, out=residual, enable_pdl=pdl)
        return x

    with torch.cuda.stream(torch.cuda.Stream()):
        first = chain(pdl=False)
        for run in range(5):
            check(f"chain of 200 norms, early starts, run {run}", chain(pdl=True), first)
    torch.cuda.synchronize()


class Clock:
    """Median device time of one call: graph replays, L2 overwritten before each."""

    def __init__(self) -> None:
        self.flush = torch.empty(192 << 20, dtype=torch.uint8, device="cuda")

    def __call__(self, call: Callable[[], object], replays: int = 25) -> float:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        times = []
        for _ in range(replays):
            self.flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times)


def copy_bandwidth() -> float:
    """TB/s of a device-to-device copy, bytes read plus bytes written; the best of several."""
    a = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    best = float("inf")
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        b.copy_(a)
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3)
    return 2 * a.nbytes / best / 1e6


def workloads(t: int) -> Iterator[tuple[str, int, Callable[[], object], Callable[[], object]]]:
    """(name, bytes, ours, torch.compile's) at `t` tokens."""
    norm = torch.nn.functional.rms_norm
    row = torch.randn(t, 2112, device="cuda", dtype=torch.bfloat16)
    q, k = row[:, :1536], row[:, 1536:2048]
    qw, kw, w = (torch.randn(n, device="cuda", dtype=torch.bfloat16) for n in (1536, 512, 7168))
    q_out, k_out = (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        torch.empty(t, 512, device="cuda", dtype=torch.bfloat16),
    )
    x, r, y = (torch.randn(t, 7168, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    @torch.compile(dynamic=False)
    def qk(q: torch.Tensor, k: torch.Tensor) -> Any:
        return norm(q, (1536,), qw, 1e-6), norm(k, (512,), kw, 1e-6)

    @torch.compile(dynamic=False)
    def add(x: torch.Tensor, r: torch.Tensor) -> Any:
        s = x + r
        return norm(s, (7168,), w, 1e-6), s

    one = torch.compile(lambda x: norm(x, (7168,), w, 1e-6), dynamic=False)
    yield (
        "fused_qk 1536+512 of 2112",
        t * 2048 * 4,
        lambda: archkey.fused_qk_rmsnorm(q, qw, 1e-6, k, kw, 1e-6, q_out=q_out, k_out=k_out),
        lambda: qk(q, k),
    )
    yield (
        "add + norm 7168",
        t * 7168 * 8,
        lambda: archkey.fused_add_rmsnorm(x, r, w, 1e-6),
        lambda: add(x, r),
    )
    yield (
        "norm 7168",
        t * 7168 * 4,
        lambda: archkey.rmsnorm(x, w, 1e-6, out=y),
        lambda: one(x),
    )


def host_costs(session: archkey.Session) -> dict[str, float]:
    """Host time of a call [us], launch included; the device is faster and not waited for."""
    x = torch.randn(1, 7168, device="cuda", dtype=torch.bfloat16)
    w, y = torch.ones_like(x[0]), torch.empty_like(x)
    problem = OPERATORS["rmsnorm"].examples["DeepSeek-V3 hidden"]._replace(pdl=session.pdl)
    run = session.plan(problem).run
    calls: dict[str, Callable[[], object]] = {
        "plan.run": lambda: run(x, w, 1e-6, 0.0, False, y),
        "archkey.rmsnorm(out=)": lambda: archkey.rmsnorm(x, w, 1e-6, out=y),
        "archkey.rmsnorm": lambda: archkey.rmsnorm(x, w, 1e-6),
        "torch F.rms_norm": lambda: torch.nn.functional.rms_norm(x, (7168,), w, 1e-6),
    }
    costs = {}
    for name, call in calls.items():
        best = float("inf")
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(500):
                call()
            best = min(best, time.perf_counter() - start)
        costs[name] = best / 500 * 1e6
    return costs


def times(clock: Clock, copy_tb_s: float) -> Iterator[dict[str, Any]]:
    """Ours beside torch.compile's, and our share of the copy bandwidth."""
    for t in (1, 64, 1024, 16384):
        for name, size, ours, theirs in workloads(t):
            us, compiled = clock(ours), clock(theirs)
            share = size / us / 1e6 / copy_tb_s
            yield {"what": name, "T": t, "us": us, "torch.compile us": compiled, "share": share}


def main() -> None:
    """Check and time; a short table comes last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=torch.seed() % 2**31)
    options = parser.parse_args()
    session = archkey.session.session_of(torch.device("cuda", 0))
    clock = Clock()
    report: dict[str, Any] = {
        "device": session.device.to_json(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "seed": options.seed,
        "copy_tb_s": copy_bandwidth(),
    }
    with torch.inference_mode():
        report["checks"] = correctness(options.seed).rows
        report["times"] = list(times(clock, report["copy_tb_s"]))
        report["host_us"] = host_costs(session)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    failed = [row for row in report["checks"] if not row["ok"]]
    for row in report["times"]:
        print(
            f"{row['what']:28s} T={row['T']:6d} {row['us']:8.1f} us  {row['share']:5.0%} of copy  "
            f"torch.compile {row['torch.compile us']:8.1f} us"
        )
    costs = ", ".join(f"{name} {us:.1f}" for name, us in report["host_us"].items())
    print(f"host us a call, launch included: {costs}")
    worst = max(row["max_ulp"] for row in report["checks"] if "float32" not in row["what"])
    print(
        f"{session.device.name}, copy {report['copy_tb_s']:.2f} TB/s, seed {options.seed}: "
        f"{len(report['checks'])} checks, {len(failed)} failed, worst {worst} ulp"
    )
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

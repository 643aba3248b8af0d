# SPDX-License-Identifier: Apache-2.0
"""`session.prepare`: exactly what the calls run, by several processes, whatever goes wrong.

What compiles runs in processes of their own; see tests/conftest.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance._processes import left_behind
from tests.core import _fakes
from tests.core._fakes import FAST, Toy, World, kernel, kernels, make
from tests.core._fakes import alone as alone

import archkey
from archkey.errors import ArgumentTypeError, ArgumentValueError, PrepareError, Unsupported

Python = Callable[..., str]

# ---- one by one, without a compiler


def test_one_that_fails_does_not_lose_the_others_and_is_named() -> None:
    lost = kernel("lost", "toy_op", "build_fails_for_wide")
    session = make(lost, strict=True)
    problems = [Toy(width=1), Toy(width=2048), Toy(width=2), Toy(width=4096)]
    with pytest.raises(PrepareError) as caught:
        session.prepare(problems)
    assert _fakes.BUILT == ["lost", "lost"]
    assert list(caught.value.failed) == [problems[1], problems[3]]
    assert all(isinstance(error, Unsupported) for error in caught.value.failed.values())
    said = str(caught.value)
    assert said.startswith("2 problems could not be prepared, all others are:\n")
    assert "width=2048" in said and "width=4096" in said and "out of shared memory" in said
    session.freeze()
    assert session.launcher(Toy(width=1))() == "lost"


def test_an_error_of_prepare_travels() -> None:
    import pickle

    error = PrepareError({Toy(): Unsupported("no")})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and list(again.failed) == [Toy()]


@pytest.mark.parametrize("interpreting", ["0", "1"])
def test_what_is_no_problem_is_said_before_any_work(
    interpreting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpreting)
    with pytest.raises(ArgumentTypeError, match="found 'toy_op'"):
        make(FAST).prepare([Toy(), "toy_op"])  # type: ignore[list-item]
    assert not _fakes.BUILT


def test_jobs_are_one_or_more() -> None:
    with pytest.raises(ArgumentValueError, match="jobs must be 1 or more, found 0"):
        make(FAST).prepare([Toy()], jobs=0)


def test_interpreted_it_binds(capfd: pytest.CaptureFixture[str]) -> None:
    session = archkey.open("cuda_sm90", strict=True)
    problems = list(session.operators["rmsnorm"].examples.values())
    plans = session.prepare(problems, progress=True)
    session.freeze()
    assert [session.launcher(p) for p in problems] == [plan.run for plan in plans]
    assert not any(plan.compiled for plan in plans) and all(plan.programs for plan in plans)
    assert capfd.readouterr().err == "", "nothing to wait for, nothing to tell"


# ---- the real compiler, counted by Triton's own hook

_SESSION = """
import json, sys, time
import archkey
from triton import knobs
ran = []
knobs.compilation.listener = lambda **facts: ran.append([facts["src"].name, facts["cache_hit"]])
session = archkey.open({target!r}, strict=True)
"""

# Problems by operator: an example, with other fields. What a bfloat16 engine runs and what one
# with FP8 runs, causal or not, with and without logsumexp, with early starts and without.
TABLE: list[tuple[str, int, dict[str, Any]]] = [
    ("rmsnorm", 0, {}),
    ("rmsnorm", 0, {"pdl": True}),
    ("fused_qk_rmsnorm", 0, {"pdl": True}),
    ("rmsnorm_quant", 0, {}),
    ("rmsnorm_quant", 0, {"pdl": True}),
    ("mxfp4_linear", 0, {}),
    *(
        ("unified_attention", 0, {"kv_dtype": kv, "return_lse": lse, "queries": "decode"})
        for kv in ("bfloat16", "float8_e4m3fn")
        for lse in (False, True)
    ),
    ("mla_decode", 1, {"pdl": False}),
    ("mla_decode", 6, {"pdl": True, "return_lse": True}),
    ("mla_prefill", 0, {"causal": True, "pdl": True}),
    ("mla_prefill", 3, {"causal": False, "return_lse": True, "pdl": False}),
]
WITHOUT_EARLY_STARTS = [row for row in TABLE[:4] if not row[2]]

_TABLE = (
    _SESSION
    + """
problems = [
    list(session.operators[name].examples.values())[number]._replace(**fields)
    for name, number, fields in json.loads({table!r})
]
"""
)
_PREPARE = (
    _TABLE
    + """
started = time.perf_counter()
plans = session.prepare(problems, jobs={jobs}, progress=True)
first = time.perf_counter()
again = session.prepare(problems, jobs={jobs}, progress=True)
seconds = [first - started, time.perf_counter() - first]
assert all(a is b for a, b in zip(plans, again, strict=True))
print(json.dumps([ran, seconds, [[c.binary.hex() for c in p.compiled] for p in plans]]))
"""
)
_CALL = (
    _TABLE
    + """
plans = [session.plan(problem) for problem in reversed(problems)][::-1]
print(json.dumps([ran, [[c.binary.hex() for c in p.compiled] for p in plans]]))
"""
)


def test_after_a_restart_nothing_is_compiled_in_any_order(
    run_python: Python, tmp_path: Path
) -> None:
    """Prepared here by workers, run there by calls: the same machine code, no compilation."""
    given = {"TRITON_INTERPRET": "0", "ARCHKEY_CACHE_DIR": str(tmp_path)}
    facts = {"target": "cuda_sm90", "table": json.dumps(TABLE), "jobs": 2}
    ran, seconds, prepared = json.loads(run_python(_PREPARE.format(**facts), **given))
    assert ran == [], "the workers compiled all of it"
    assert seconds[1] < 0.01 < seconds[0]
    assert all(prepared), "each problem has machine code"
    ran, called = json.loads(run_python(_CALL.format(**facts), **given))
    assert ran == []
    assert called == prepared
    other = [["unified_attention", 0, {"window": True, "queries": "decode"}]]
    facts["table"] = json.dumps(other)
    ran, _ = json.loads(run_python(_CALL.format(**facts), **given))
    assert ran and not any(hit for _, hit in ran), "what was not prepared is compiled and counted"


def test_with_one_job_this_process_compiles(run_python: Python, tmp_path: Path) -> None:
    given = {"TRITON_INTERPRET": "0", "ARCHKEY_CACHE_DIR": str(tmp_path)}
    facts = {"target": "rocm_gfx942", "table": json.dumps(WITHOUT_EARLY_STARTS), "jobs": 1}
    ran, _, _ = json.loads(run_python(_PREPARE.format(**facts), **given))
    assert len(ran) == 2 and not any(hit for _, hit in ran)


def running(code: str, folder: Path, **given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "TRITON_INTERPRET": "0",
            "ARCHKEY_CACHE_DIR": str(folder),
            **given,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def written(folder: Path, key: str) -> int:
    """When an entry was written."""
    return (folder / "artefacts" / key / "entry.json").stat().st_mtime_ns


def kept(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("artefacts/*/entry.json")}


def test_an_interrupt_loses_nothing_that_was_compiled(run_python: Python, tmp_path: Path) -> None:
    facts = {"target": "cuda_sm90", "table": json.dumps(TABLE[:6]), "jobs": 2}
    process = running(_PREPARE.format(**facts), tmp_path)
    deadline = time.monotonic() + 120
    while not kept(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    before = kept(tmp_path)
    assert "KeyboardInterrupt" in said and before
    assert not left_behind(tmp_path)
    given = {"TRITON_INTERPRET": "0", "ARCHKEY_CACHE_DIR": str(tmp_path)}
    times = {
        key: (tmp_path / "artefacts" / key / "entry.json").stat().st_mtime_ns for key in before
    }
    run_python(_PREPARE.format(**facts), **given)
    assert kept(tmp_path) > before
    for key, time_ns in times.items():
        assert written(tmp_path, key) == time_ns


def test_the_ranks_of_a_node_compile_everything_once(tmp_path: Path) -> None:
    """Each counts what it compiled itself, and waits for what another one compiles."""
    facts = {"target": "rocm_gfx942", "table": json.dumps(WITHOUT_EARLY_STARTS), "jobs": 1}
    ranks = [running(_PREPARE.format(**facts), tmp_path) for _ in range(3)]
    counts, codes = [], []
    for rank in ranks:
        out, said = rank.communicate(timeout=200)
        assert rank.returncode == 0, said
        ran, _, code = json.loads(out)
        counts.append(len(ran))
        codes.append(code)
    assert sum(counts) == len(kept(tmp_path))
    assert codes[0] == codes[1] == codes[2]


# ---- kernels that break in a worker

_KERNELS = """
import os, sys
from archkey.launch import Program
from archkey.kernels.quantize_body import __name__ as _  # triton is here
import triton, triton.language as tl

@triton.jit
def copy_body(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.load(x + tl.arange(0, N)))

@triton.jit
def wrong_body(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.load(x + tl.arange(0, N, 3)))

def build(problem, build):
    if problem.width == 512 and "_prepare_worker" in sys.argv[0]:
        os.abort()  # as LLVM ends
    body = wrong_body if problem.width == 1536 else copy_body
    launch = build.compile(Program(body, {"x": "*bf16", "out": "*bf16"}, {"N": problem.width}))
    return lambda *arguments: None
"""
_BROKEN = """
import json, archkey
from archkey.errors import PrepareError
session = archkey.open("cuda_sm90")
first = next(iter(session.operators["rmsnorm"].examples.values()))
problems = [first._replace(width=width) for width in (128, 256, 512, 1024, 1536)]
try:
    session.prepare(problems, jobs=2)
except PrepareError as error:
    failed = {problem.width: str(why) for problem, why in error.failed.items()}
chosen = {
    p.width: session.plan(p).decision.chosen.id for p in problems if p.width not in failed
}
print(json.dumps([failed, chosen]))
"""


def test_a_compiler_that_crashes_costs_its_problem_and_one_that_refuses_its_kernel(
    run_python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    (tmp_path / "kernels_that_break.py").write_text(textwrap.dedent(_KERNELS))
    world.install("cuda_sm90.breaks", kernels('"rmsnorm", "own", "kernels_that_break:build"'))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    given = {"TRITON_INTERPRET": "0", "ARCHKEY_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    failed, chosen = json.loads(run_python(_BROKEN, **given))
    assert list(failed) == ["512"]
    assert "copy_body in the compiler: its process ended by SIGABRT" in failed["512"]
    own = "cuda_sm90.breaks:own"
    assert [chosen[width] for width in ("128", "256", "1024")] == [own] * 3
    assert chosen["1536"] == "cuda_sm90:triton", "the next kernel, as in any binding"

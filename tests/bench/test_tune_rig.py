# SPDX-License-Identifier: Apache-2.0
"""One candidate on one call: our own operators, and the real compiler without a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import archkey
from archkey.bench import gate
from archkey.bench.results import Timing
from archkey.bench.tune.rig import Rig
from archkey.bench.tune.samples import Sample
from archkey.conformance.case import Maker
from archkey.errors import ArchkeyError
from archkey.kernel import Kernel
from archkey.ops import OPERATORS
from archkey.tuning import Row, Table

ROW = Row(1)
SESSION = archkey.open("cpu")


def inputs(maker: Maker) -> Mapping[str, Any]:
    """Of fused_add_rmsnorm, which writes over two of them."""
    return {
        "x": maker.randn(4, 64),
        "residual": maker.randn(4, 64),
        "weight": maker.randn(64),
    }


def sample(kernel: Kernel) -> Sample:
    problem, _ = gate.hear(SESSION, "fused_add_rmsnorm", inputs(Maker()))
    return Sample("in place", replace(kernel, tuning=Table((ROW,))), inputs, problem)


REFERENCE = SESSION.kernels("fused_add_rmsnorm")[0]


def no_time(calls: Sequence[Callable[[], object]]) -> Timing:
    for call in calls:
        call()
    return Timing(1, 1, 1, len(calls), "host")


def build_negative(problem: Any, build: Any) -> Callable[..., None]:
    """Wrong, with tuning 2; right, as the reference is, with any other."""
    right = REFERENCE.builder()(problem, build)
    sign = -1 if build.tuning(problem) == 2 else 1

    def run(*arguments: Any) -> None:
        right(*arguments)
        arguments[-1].mul_(sign)

    return run


def test_what_is_computed_in_place_is_judged_on_fresh_inputs() -> None:
    """Each candidate gets the numbers that the truth is of, whatever was run before."""
    kernel = replace(REFERENCE, build=f"{__name__}:build_negative")
    one = Rig(SESSION, no_time)(sample(kernel), ROW)
    assert [one(values).status for values in (1, 2, 3)] == ["timed", "wrong", "timed"]
    assert one(2).reason.startswith("residual_out: 2.0e+00 > ")


def test_the_judge_and_the_clock_are_given() -> None:
    judged: list[Any] = []

    def judge(*arguments: Any, peer: bool) -> gate.Verdict:
        judged.append((arguments[0], set(arguments[2]), peer))
        return gate.Verdict(True, 0.0, 0.0, "out")

    def broken(calls: Any) -> Timing:
        raise RuntimeError("the clock stands still")

    one = Rig(SESSION, broken, judge)(sample(REFERENCE), ROW)
    assert one(1).reason == "RuntimeError: the clock stands still"
    assert judged == [("fused_add_rmsnorm", {"out", "residual_out"}, False)]


def test_a_call_too_large_to_be_judged_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = sample(REFERENCE)
    monkeypatch.setattr(gate, "listen", full)
    with pytest.raises(ArchkeyError, match="in place is too large to be judged on this device"):
        Rig(SESSION, no_time)(found, ROW)


def test_a_device_that_is_lost_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.accelerator, "synchronize", lost)
    rig = Rig(archkey.open("cuda_sm90"), no_time)
    with pytest.raises(ArchkeyError, match="goes on after it .RuntimeError: CUDA error"):
        rig(sample(REFERENCE), ROW)


_COMPILE = """
import json, archkey
from archkey.bench.tune.rig import Rig
from archkey.bench.tune.samples import Sample, pick
from archkey.kernels.tunings import RmsNormTuning
session = archkey.open("cuda_sm90")
kernel = pick(session, "rmsnorm", None)
problem = session.operators["rmsnorm"].examples[{label!r}]
rig, one = Rig(session, None), Sample("one", kernel, None, problem)
said = []
for tile, warps, spills in ((8192, 8, 0), (8192, 1, 0), (8192, 1, 1 << 16)):
    plan = rig.plan(one, RmsNormTuning(tile, warps), spills)
    said.append(plan if isinstance(plan, str) else plan.compiled[0].kernel.metadata.num_warps)
print(json.dumps(said))
"""


def test_what_the_exam_would_refuse_of_machine_code_is_no_candidate(
    run_python: Callable[..., str],
) -> None:
    (label,) = (n for n, p in OPERATORS["rmsnorm"].examples.items() if p.width == 7168)
    out = run_python(_COMPILE.replace("{label!r}", repr(label)), TRITON_INTERPRET="0")
    fits, spills, allowed = json.loads(out)
    assert (fits, allowed) == (8, 1)
    assert "spills" in spills and "allowed are 0" in spills


_AHEAD = """
import json, os, pathlib, archkey
from archkey.bench.tune.ahead import compile_ahead, jobs
from archkey.bench.tune.rig import Rig
from archkey.bench.tune.samples import Sample, pick
from archkey.bench.tune.search import Group
from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Row

def programs():
    return len(list(pathlib.Path(os.environ["ARCHKEY_CACHE_DIR"]).rglob("*.cubin")))

def main():
    session = archkey.open("cuda_sm90")
    kernel = pick(session, "rmsnorm", None)
    problem = min(session.operators["rmsnorm"].examples.values(), key=lambda p: p.width)
    values = [RmsNormTuning(1024, warps) for warps in (1, 2, 4)]
    samples = [Sample(name, kernel, None, problem) for name in ("T=1", "T=64")]
    groups = [Group(1, Row(values[0]), tuple(samples), tuple(values))]
    listed = jobs(groups, lambda sample, values: values.num_warps == 4)
    told = []
    compile_ahead(session.device, listed, 2, told.append)
    after = programs()
    for one in values[:2]:
        assert not isinstance(Rig(session, None).plan(samples[0], one, 0), str)
    print(json.dumps([len(listed), len(told), after, programs()]))

if __name__ == "__main__":
    main()
"""


def test_what_was_compiled_ahead_is_what_the_search_finds(
    run_python: Callable[..., str], tmp_path: Path
) -> None:
    """Two calls of one Problem need one compilation, and what is known none."""
    script = tmp_path / "ahead.py"
    script.write_text(_AHEAD)
    out = run_python(
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')",
        TRITON_INTERPRET="0",
        ARCHKEY_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert json.loads(out) == [2, 2, 2, 2]

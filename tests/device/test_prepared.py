# SPDX-License-Identifier: Apache-2.0
"""On a card: after prepare the first launch neither compiles nor loads, and may be captured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models._calls import LISTED

import archkey
from archkey import artefacts
from archkey.conformance.judge import maker_of
from archkey.models import problems_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


@pytest.fixture
def compiled(
    tmp_path: Path, environ: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Names of what Triton compiles in this process; the store is empty at first."""
    from triton import knobs

    environ(ARCHKEY_CACHE_DIR=str(tmp_path))
    artefacts.store.cache_clear()
    names: list[str] = []
    monkeypatch.setattr(
        knobs.compilation, "listener", lambda **facts: names.append(facts["src"].name)
    )
    yield names
    artefacts.store.cache_clear()


def tensors(result: Any) -> list[torch.Tensor]:
    """What a call returned, None left out."""
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("name", LISTED)
def test_the_first_launch_of_each_call_is_a_capture(name: str, compiled: list[str]) -> None:
    options, calls = LISTED[name]
    session = archkey.open("cuda:0")
    plans = session.prepare(problems_for(name.split()[0], session, tp=8, q_len=4, **options))
    kernels = [made.kernel for plan in plans for made in plan.compiled]
    assert kernels and all(kernel.module is not None for kernel in kernels), "loaded"
    session.freeze("error")
    compiled.clear()
    captured = 0
    with torch.inference_mode():
        for operator, inputs in calls:
            call = dict(inputs(maker_of(session)))
            if session.plan(session.problem_of(operator, **call)).decision.degraded:
                continue  # the reference reads lengths on the host
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                replayed = getattr(session, operator)(**call)
            graph.replay()
            again = getattr(session, operator)(**dict(inputs(maker_of(session))))
            for a, b in zip(tensors(replayed), tensors(again), strict=True):
                assert torch.equal(a, b), operator
            captured += 1
    assert captured > 2
    assert compiled == []


def test_what_was_not_prepared_is_refused_and_not_compiled(compiled: list[str]) -> None:
    session = archkey.open("cuda:0")
    session.prepare(problems_for("llama-3.3-70b", session, tp=8))
    session.freeze("error")
    compiled.clear()
    x = torch.randn(5, 8192, device="cuda", dtype=torch.bfloat16)
    session.rmsnorm(x, x[0], 1e-6)
    with pytest.raises(archkey.FrozenError, match="width: 8192 -> 1536"):
        session.rmsnorm(x[:, :1536], x[0, :1536], 1e-6)
    assert compiled == []


_RUN = """
import json, torch, archkey
from triton import knobs
ran = []
knobs.compilation.listener = lambda **facts: ran.append(facts["src"].name)
session = archkey.open("cuda:0")
plans = session.prepare(archkey.problems_for("qwen3.5-397b", session, tp=8, q_len=4))
x = torch.randn(5, 4096, device="cuda", dtype=torch.bfloat16)
session.rmsnorm(x, x[0], 1e-6)
torch.cuda.synchronize()
print(json.dumps([ran, len(plans)]))
"""


def test_after_a_restart_nothing_is_compiled(
    run_python: Callable[..., str], tmp_path: Path
) -> None:
    """The first process compiles in workers, the second one nowhere."""
    places = {"TRITON_INTERPRET": "0", "ARCHKEY_CACHE_DIR": str(tmp_path)}
    run_python(_RUN, **places)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("entry.json")}
    ran, plans = json.loads(run_python(_RUN, **places))
    assert ran == [] and plans > 4 and before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("entry.json")} == before

# SPDX-License-Identifier: Apache-2.0
"""chunk_kda under Triton's interpreter: pipelines against each other, and what gates may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import archkey
from archkey.kernels.kda_chunk_tunings import KdaChunkTuning
from archkey.launch import Build, interpreting, rounded_to_nearest
from archkey.reference.kda import chunk_kda as reference

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")

NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("chunk_warps", "walk_warps"), 4),
    **dict.fromkeys(("block", "columns", "few"), 16),
    **dict.fromkeys(("stages", "map_stages"), 1),
}
PIPELINES = {
    "whole": KdaChunkTuning(**NUMBERS, segment=0),
    "every segment for itself": KdaChunkTuning(**NUMBERS, segment=2, join=False),
    "joined by a launch": KdaChunkTuning(**NUMBERS, segment=2, join=True),
}
LENGTHS = (300, 0, 65, 128, 147)


def call(gate: float) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(3)
    k = torch.randn(1, sum(LENGTHS), 1, 16, generator=gen)
    return {
        "q": (torch.randn(k.shape, generator=gen) / 2 + k).bfloat16(),
        "k": torch.nn.functional.normalize(k, dim=-1).bfloat16(),
        "v": torch.randn(1, sum(LENGTHS), 1, 32, generator=gen).bfloat16(),
        "g": gate * torch.rand(k.shape, generator=gen),
        "beta": torch.rand(1, sum(LENGTHS), 1, generator=gen),
        "initial_state": torch.randn(len(LENGTHS), 1, 16, 32, generator=gen) / 8,
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
    }


def run(
    tuning: KdaChunkTuning, given: dict[str, Any], patch: pytest.MonkeyPatch, **more: Any
) -> Any:
    patch.setattr(Build, "tuning", lambda self, problem: tuning)
    session = archkey.open("cuda_sm90", override={"chunk_kda": "triton"})
    with rounded_to_nearest():
        return session.chunk_kda(**given, output_final_state=True, **more)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("gate", [-0.02, -3.0])
def test_pipelines_agree_across_the_switch(gate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = call(gate)
    o, last, *_ = reference(**given, compute_dtype=torch.float64)
    found = {name: run(tuning, given, monkeypatch) for name, tuning in PIPELINES.items()}
    for name, (got, state) in found.items():
        assert error(got, o) < 0.005 and error(state, last) < 0.005, name
        assert error(got, found["whole"][0]) < 0.002, name
        assert error(state, found["whole"][1]) < 0.002, name


def test_a_pool_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """By segments of one sequence, which end in the slot that the first of them starts from."""
    given = call(-0.05)
    slots = torch.tensor([3, 0, 4, 1, 2], dtype=torch.int32)
    states = given.pop("initial_state")
    for name, tuning in PIPELINES.items():
        pool = torch.empty_like(states)
        pool[slots.long()] = states
        _, wanted = run(tuning, given | {"initial_state": states}, monkeypatch)
        monkeypatch.setattr(Build, "tuning", lambda self, problem, tuning=tuning: tuning)
        session = archkey.open("cuda_sm90", override={"chunk_kda": "triton"})
        with rounded_to_nearest():
            session.chunk_kda(**given, initial_state=pool, initial_state_indices=slots)
        assert torch.equal(pool[slots.long()], wanted), name


def test_gates_that_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """-inf forgets everything before, and nothing after."""
    given = call(-0.02)
    given["g"][:, 100:101] = float("-inf")
    steep = given | {"g": given["g"].clamp_min(-1000.0)}
    o, last, *_ = reference(**steep, compute_dtype=torch.float64)
    got, state = run(PIPELINES["whole"], given, monkeypatch)
    assert error(got, o) < 0.005 and error(state, last) < 0.005

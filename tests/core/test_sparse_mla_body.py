# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA beyond the exam's cases: launches, segments, orders of a list, faults in the bodies.

The public functions check and the builders launch, as on a card; the interpreter runs the bodies.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import archkey
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.judge import Result, judge
from archkey.kernels import sparse_mla, sparse_mla_body, sparse_mla_programs, sparse_mla_rows
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.launch import Build, interpreting
from archkey.ops.sparse_mla import SparseMlaDecodeProblem, SparseMlaPrefillProblem

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
TUNING = SparseMlaTuning(rows=16, keys=16, num_warps=4, stages=1, resident=1)

_D = SparseDecode(3, 2, 70, lists="tail", extra_k=33, out="fp16", sink="finite", length="batch")
_P = SparsePrefill(20, 3, 40, lists="tail", length=True)


def judged(call: SparseDecode | SparsePrefill) -> Result:
    operator = "sparse_mla_decode" if isinstance(call, SparseDecode) else "sparse_mla_prefill"
    result = judge(archkey.open("cuda_sm90"), Case(operator, "", "", call), level="interpreted")
    assert result.kernel == "cuda_sm90:triton"
    return result


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int, int]]]:
    """The body and the grid of each launch, with small tiles."""
    seen: list[tuple[str, tuple[int, int, int]]] = []
    compiled = Build.compile

    def compile(build: Build, program: Any) -> Any:
        launch = compiled(build, program)

        def counted(grid: tuple[int, int, int], *arguments: Any) -> None:
            seen.append((program.body.__name__, grid))
            launch(grid, *arguments)

        return counted

    monkeypatch.setattr(Build, "compile", compile)
    monkeypatch.setattr(Build, "tuning", lambda build, problem: TUNING)
    return seen


def test_tiles_of_a_token_are_neighbours_and_its_list_one_segment_or_more(
    grids: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 heads are two tiles of 16; the grid's first axis has room for any number of tokens."""
    assert judged(_P).passed
    assert grids == [("sparse_mla_body", (6, 1, 1))]
    grids.clear()
    monkeypatch.setattr(sparse_mla, "split_of", lambda slots, tiles, keys: 3)
    assert judged(_P).passed
    assert grids == [
        ("sparse_mla_body", (6, 3, 1)),
        ("sparse_mla_segments_body", (60, 1, 1)),
    ]
    grids.clear()
    assert judged(replace(_P, invariant=True)).passed
    assert grids == [("sparse_mla_body", (6, 1, 1))]


@pytest.mark.parametrize("segments", [2, 7, 40])
def test_any_number_of_segments_adds_up(
    segments: int, grids: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two lists; some end within the first, and most have no key where there are 40."""
    monkeypatch.setattr(sparse_mla, "split_of", lambda slots, tiles, keys: segments)
    result = judged(_D)
    assert result.passed, result
    assert grids[0] == ("sparse_mla_body", (2, segments, 1))


def test_what_segments_are_cut_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that run at once, tiles, and entries of both lists: shapes, and nothing else."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        sparse_mla,
        "split_of",
        lambda *sizes: asked.append(sizes) or 1,  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(Build, "tuning", lambda build, problem: replace(TUNING, resident=2))
    session = archkey.open("cuda_sm90")
    units = session.device.compute_units or 128
    for lists in ("tail", "empty"):
        session.sparse_mla_decode(**replace(_D, lists=lists)(Maker("cpu", seed=3)))
    assert asked == [(2 * units, 2, 103)] * 2


def test_the_order_of_a_list_is_of_no_account() -> None:
    """But to the last bits, which are those of sums in another order."""
    inputs = dict(replace(_P, length=False, lists="holes", out="fp16")(Maker("cpu", seed=3)))
    session = archkey.open("cuda_sm90")
    first = [part.clone() for part in session.sparse_mla_prefill(**inputs)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    other = session.sparse_mla_prefill(**inputs | {"indices": inputs["indices"][:, order]})
    for mine, its in zip(first, other, strict=True):
        torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fmt", ["fp8_v32", "fp8_v32_nope", "fp8_model1"])
def test_alignment_of_packed_rows_is_that_of_their_blocks(fmt: str) -> None:
    """584 bytes, which nothing lies apart by, are no stride."""
    call = SparseDecode(16, 1, 8, fmt, width=576 if fmt == "fp8_v32" else 512)
    session = archkey.open("cuda_sm90")
    session.sparse_mla_decode(**call(Maker("cpu", seed=3)))
    session.sparse_mla_decode(**replace(call, gap=3)(Maker("cpu", seed=3)))
    found = [problem.aligned for problem in session.problems.values()]
    assert found == [True, False]


def test_few_heads_take_the_tile_for_few() -> None:
    session = archkey.open("cuda_sm90")
    for kind in (SparseMlaPrefillProblem, SparseMlaDecodeProblem):
        for heads, rows in ((1, 16), (16, 16), (17, 64), (128, 64)):
            problem = kind("bfloat16", "bfloat16", "bf16", heads, 2048)
            (kernel,) = [k for k in session.kernels(problem.operator) if k.name == "triton"]
            assert kernel.tuning is not None
            assert kernel.tuning.lookup(problem, session.versions).values.rows == rows


# ---- faults in the bodies


def put_in_place(
    monkeypatch: pytest.MonkeyPatch, folder: Path, module: ModuleType, name: str, old: str, new: str
) -> None:
    """The Triton function `name` of `module` with a piece of its text replaced, for all callers."""
    own = inspect.getsource(module)
    assert own.count(old) == 1, f"the body changed: {old!r}"
    path = folder / "faulty.py"  # Triton reads the text of what it is given
    path.write_text(own.replace(old, new))
    space: dict[str, Any] = {"__name__": "faulty"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    for user in (sparse_mla_body, sparse_mla_rows, sparse_mla_programs):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, space[name])


_FAULTS: dict[str, tuple[Any, ...]] = {
    "capacity is a slot": (
        sparse_mla_body, "attend", "there = (slot >= 0) & (slot <= last)\n",
        "there = (slot >= 0) & (slot <= last + 1)\n        slot = tl.minimum(slot, last)\n",
        SparsePrefill(16, 3, 40, lists="tail"),
    ),
    "slot 0 for -1": (
        sparse_mla_body, "attend", "there = (slot >= 0) &",
        "slot = tl.maximum(slot, 0)\n        there = (slot >= 0) &",
        SparsePrefill(16, 3, 40),
    ),
    "scales of the next tile": (
        sparse_mla_rows, "rows_of", "float32_at(kv, place + NOPE, s,",
        "float32_at(kv, place + NOPE, (s + 1) % SCALES,", SparseDecode(16, 2, 40),
    ),
    "scales of powers of two": (
        sparse_mla_rows, "rows_of", "value * scale[:, :, None]",
        "value * tl.exp2(tl.ceil(tl.log2(scale)))[:, :, None]", SparseDecode(16, 2, 40),
    ),
    "lengths not read": (
        sparse_mla_body, "length_of", "if topk_length is not None:", "if False:",
        SparseDecode(16, 2, 40, length="batch"),
    ),
    "the second cache's slots in the first one's pages": (
        sparse_mla_body, "sparse_mla_body", "DV, EXTRA_PAGE, KV_UNIT", "DV, PAGE, KV_UNIT",
        SparseDecode(16, 2, 40, extra_k=33),
    ),
    "rope where the latent begins": (
        sparse_mla_rows, "rows_of", "kv + place + LATENT + r", "kv + place + r",
        SparsePrefill(16, 3, 40),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant
@pytest.mark.parametrize("about", _FAULTS)
def test_a_fault_in_the_body_is_seen(
    about: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its numbers, in a case that the right body passes."""
    *fault, call = _FAULTS[about]
    assert judged(call).passed
    put_in_place(monkeypatch, tmp_path, *fault)
    result = judged(call)
    assert not result.passed
    assert result.reason in ("out", "lse", "max_logits"), result.reason

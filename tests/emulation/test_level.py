# SPDX-License-Identifier: Apache-2.0
"""Level emulated of the exam: what is asked, of whom, and that our kernels pass it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from archkey import locate
from archkey.conformance import exam
from archkey.conformance.cases import cases_of
from archkey.conformance.emulation.device import TARGETS, emulated
from archkey.conformance.levels import Item, Level
from archkey.conformance.pool import Terms, Worker
from archkey.conformance.worker import device_of, open_for
from archkey.ops import OPERATORS
from archkey.probe import Device, Probe
from archkey.target import Target


@pytest.mark.parametrize("target", TARGETS)
def test_a_device_that_stands_in(target: str) -> None:
    """On the CPU's tensors, for level emulated alone; its record names no card."""
    device = device_of(target, Level.EMULATED)
    assert device == emulated(target)
    assert device is not None
    assert (device.torch_kind, device.simulated) == ("cpu", True)
    assert device_of(target, Level.DEVICE) is None
    assert open_for(target, Level.EMULATED).device is not None
    assert device.kind_to_json()["name"] == f"emulator of {Target.parse(target).arch}"


def test_there_is_no_emulator_of_others() -> None:
    assert emulated("cuda_sm120") is None
    assert exam.no_device("cuda_sm120", Level.EMULATED) == (
        "no emulator of cuda_sm120 on this machine"
    )


def test_a_vendors_simulator_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Device(Target.parse(TARGETS[0]), 0, "X", "acme", torch_type="cpu", simulated=True)
    monkeypatch.setattr(locate, "probe", lambda pretend: Probe((own,), ()))
    assert device_of(TARGETS[0], Level.EMULATED) is own


def test_what_is_asked() -> None:
    """The edges, and with --full the sizes of real models; Triton's programs alone."""
    subject = exam.find(TARGETS[0])
    items, rows = exam.questions(subject, Level.EMULATED, ["rmsnorm"])
    edges = {case.name for case in cases_of(OPERATORS["rmsnorm"]) if case.edge}
    assert {item.case for item in items} == {*edges, "random"}
    assert {row.item.kernel: row.reason for row in rows} == {
        "cpu:torch": "no Triton body: nothing to emulate"
    }
    full, _ = exam.questions(subject, Level.EMULATED, ["rmsnorm"], full=True)
    assert {item.case for item in full} > {item.case for item in items}


def test_without_numpy_the_level_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name)
    )
    items, rows = exam.questions(exam.find(TARGETS[0]), Level.EMULATED, ["rmsnorm"])
    assert not items
    assert "numpy is not installed: pip install numpy" in {row.reason for row in rows}


CASES = (
    ("rmsnorm", "width of no power of two: tokens=3, width=111"),
    ("rmsnorm", "row of several blocks: tokens=2, width=16384, out=fp32"),
    ("rmsnorm", "far rows in place"),
    ("fused_add_rmsnorm", "the outputs change places"),
    ("fused_qk_rmsnorm", "NaN and infinity"),
    ("rmsnorm_quant", "NaN and infinity: tokens=5, width=512, quant=fp8_token"),
    ("rmsnorm_quant", "NaN and infinity: tokens=5, width=512, quant=mxfp4"),
    ("unified_attention", "two sequences"),
    ("unified_attention", "FP8 codes of the device"),
    ("mla_decode", "two sequences"),
    ("mla_decode", "FP8 codes of the device"),
    ("mla_prefill", "two sequences"),
    ("mla_prefill", "FP8 codes of the device"),
    ("merge_attn_states", "in place"),
    ("sparse_mla_prefill", "three rows"),
    ("sparse_mla_decode", "second cache"),
    ("sparse_mla_decode", "format fp8_model1"),
    ("req_to_token_to_page_table", ""),
    ("quantize_sparse_kv", "FP8 codes of the device"),
    ("quantize_sparse_kv", "slots outside the cache"),
    ("dequantize_sparse_kv", "format fp8_model1"),
    ("logical_to_physical_indices", "three sequences"),
)


SLICE = (
    ("rmsnorm", "width of no power of two: tokens=3, width=111"),
    ("fused_add_rmsnorm", "width of no power of two"),
    ("fused_qk_rmsnorm", "NaN and infinity"),
    ("rmsnorm_quant", "groups: tokens=3, width=512, quant=fp8_group"),
    ("unified_attention", "two sequences"),
    ("mla_decode", "float16: heads=16, kv_lens=37-70, q_lens=2"),
    ("mla_prefill", "two sequences"),
    ("merge_attn_states", "two parts"),
    ("sparse_mla_prefill", "three rows"),
    ("sparse_mla_decode", "two sequences"),
    ("quantize_sparse_kv", "thirty tokens"),
    ("dequantize_sparse_kv", "nine tokens"),
    ("logical_to_physical_indices", "three sequences"),
    ("ragged_kv_indices_to_page_table", "four sequences"),
    ("req_to_token_to_page_table", "four sequences"),
    ("chunk_kda", "raw gate past float32's exponential"),
    ("fused_recurrent_kda", "decode"),
    ("kda_packed_decode", "heads: batch=2, heads=1-1"),
    ("kda_gate", "gate: shape=5"),
    ("kda_gate_chunk_cumsum", "empty sequences"),
    ("mxfp4_linear", "results in float32: tokens=5, k=144, n=48, dtype=mxfp4"),
)
"""Of every kernel of NVIDIA's targets in every run; the others are slow: they compile, too."""

KERNELS = {
    ("cuda_sm90", "wgmma"): ("mla_decode", "sparse_mla_prefill", "sparse_mla_decode"),
    ("cuda_sm90", "mma"): ("chunk_kda",),
    ("cuda_sm100", "triton_scaled"): ("mxfp4_linear",),
}
"""Those that are not called triton, with their operators."""


def _asked() -> Iterator[Any]:
    """(target, kernel, operator, start of the case's name)."""
    for target in TARGETS:
        of_nvidia = target.startswith("cuda")
        asked = [(case, False) for case in SLICE] if of_nvidia else []
        asked += [(case, of_nvidia) for case in CASES if not (of_nvidia and case in SLICE)]
        for (operator, start), slow in asked:
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(target, "triton", operator, start, marks=marks)
    for (target, kernel), operators in KERNELS.items():
        for operator, start in SLICE:
            if operator in operators:
                yield pytest.param(target, kernel, operator, start)


@pytest.mark.parametrize("target", ["cuda_sm90", "cuda_sm100"])
def test_every_kernel_has_a_case_in_every_run(target: str) -> None:
    items, _ = exam.questions(exam.find(target), Level.EMULATED)
    asked = {(p.values[2], f"{p.values[0]}:{p.values[1]}") for p in _asked() if not p.marks}
    assert {(item.operator, item.kernel) for item in items} <= asked


@pytest.fixture(scope="module")
def workers() -> Iterator[Callable[[str], Worker]]:
    """A worker a target, started when it is first asked."""

    @functools.cache
    def of(target: str) -> Worker:
        made.append(Worker(target, Level.EMULATED, Terms(1, 120.0, 1, 0)))
        return made[-1]

    made: list[Worker] = []
    yield of
    for worker in made:
        worker.close()


@pytest.mark.parametrize(("target", "kernel", "operator", "start"), [*_asked()])
def test_our_kernels_pass(
    workers: Callable[[str], Worker], target: str, kernel: str, operator: str, start: str
) -> None:
    case = next(c.name for c in cases_of(OPERATORS[operator]) if c.name.startswith(start))
    found = workers(target).ask(Item("emulated", operator, f"{target}:{kernel}", case))
    assert found.outcome == "passed", found.reason

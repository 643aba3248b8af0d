# SPDX-License-Identifier: Apache-2.0
"""What the repository says of the emulator against a card: well formed, and of every kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archkey.conformance import exam
from archkey.conformance.emulation.captured.comparing import FORMAT, failed
from archkey.conformance.levels import Level

RESULTS = Path(__file__).parents[2] / "plugins"
PATHS = sorted(RESULTS.glob("*/results/emulated/*.json"))


@pytest.fixture(params=PATHS, ids=lambda path: f"{path.parts[-4]} {path.stem}")
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert found["target"] == path.parts[-4]
    return found


def test_there_is_one_of_hopper() -> None:
    assert [path for path in PATHS if path.parts[-4] == "cuda_sm90"]


def test_it_says_what_ran_where(document: dict[str, Any]) -> None:
    """On a real card, all launches of the file, and nothing that rounding does not explain."""
    assert document["format"] == FORMAT
    recorded, emulated = document["recorded"], document["emulated"]
    assert not recorded["device"]["simulated"]
    assert recorded["device"]["target"] == document["target"]
    assert recorded["device"]["driver"]
    assert {"torch", "triton", "python"} <= set(recorded["versions"])
    assert len(recorded["file"]["sha256"]) == len(emulated["sources"]) == 64
    assert emulated["complete"]
    assert not failed(document)


def test_every_kernel_is_in_it(document: dict[str, Any]) -> None:
    """With launches, or with the reason why there are none."""
    items, answered = exam.questions(exam.find(document["target"]), Level.EMULATED)
    kernels = document["kernels"]
    for item in items:
        row = kernels[f"{item.operator} {item.kernel}"]
        assert row["source"]
        assert row["explained"] or (not row["launches"] and row["reasons"])
    for outcome in answered:
        assert kernels[f"{outcome.item.operator} {outcome.item.kernel}"]["launches"] == 0
    assert {name for name, row in kernels.items() if row["explained"]} >= SHOWN


SHOWN = {
    f"{operator} cuda_sm90:{kernel}"
    for operator, kernel in (
        *(("mla_decode", "triton"), ("mla_prefill", "triton"), ("merge_attn_states", "triton")),
        *(("sparse_mla_prefill", "wgmma"), ("sparse_mla_decode", "wgmma")),
        *(("sparse_mla_prefill", "triton"), ("sparse_mla_decode", "triton")),
        *(("quantize_sparse_kv", "triton"), ("dequantize_sparse_kv", "triton")),
        *(("rmsnorm", "triton"), ("fused_add_rmsnorm", "triton"), ("rmsnorm_quant", "triton")),
        *(("fused_qk_rmsnorm", "triton"), ("logical_to_physical_indices", "triton")),
        *(("unified_attention", "triton"), ("mxfp4_linear", "triton"), ("chunk_kda", "triton")),
        *(("fused_recurrent_kda", "triton"), ("kda_packed_decode", "triton")),
        *(("kda_gate", "triton"), ("kda_gate_chunk_cumsum", "triton")),
        *(("ragged_kv_indices_to_page_table", "triton"), ("req_to_token_to_page_table", "triton")),
    )
}
"""Of all kernels of Hopper but two, whose launches were too large for what was left of the file."""


def test_its_sums_are_those_of_its_launches(document: dict[str, Any]) -> None:
    for name, row in document["kernels"].items():
        launches = [one for one in document["launches"] if one["kernel"] == name]
        differences = [one for launch in launches for one in launch["differences"]]
        assert row["launches"] == len(launches) == sum(row["bodies"].values())
        for key in ("elements", "differing"):
            assert row[key] == sum(one[key] for one in differences)
        for key in ("last", "row", "share"):
            worst = max((float(one[key]) for one in differences), default=0.0)
            assert float(row[key]) == pytest.approx(worst)
        if launches:
            assert row["explained"] == (float(row["share"]) <= 1 and not row["faults"])
        assert not [one for one in differences if "int" in one["dtype"] and one["differing"]]


def test_both_ways_of_a_matrix_product_were_compared(document: dict[str, Any]) -> None:
    """And what Blackwell shares with Hopper; nothing of tcgen05, which no Hopper has."""
    shown = document["instructions"]
    for start in (
        "mma.sync.",
        "wgmma.mma_async.",
        "cp.async.c",
        "ldmatrix.",
        "ex2.approx",
        "shfl.",
    ):
        assert any(name.startswith(start) for name in shown), start
    assert not any(name.startswith("tcgen05.") for name in shown)

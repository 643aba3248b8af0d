# SPDX-License-Identifier: Apache-2.0
"""Every plugin's Triton kernels against the float64 reference, under Triton's interpreter.

The plugin's own tuning, builder and launch code run; the interpreter stands in for the device.
It rounds towards zero where hardware rounds to nearest when it stores bfloat16, so the outputs
are judged at float32 and float16 as well.
"""

from __future__ import annotations

import pytest
import torch

import archkey
from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.attention import edges, invariant, table_edges
from archkey.conformance.cases.mla.edges import CASES as MLA_EDGES
from archkey.conformance.cases.mxfp4_linear.inputs import Linear
from archkey.conformance.cases.rmsnorm import models as cases
from archkey.conformance.cases.rmsnorm_quant.edges import CASES as QUANT_EDGES
from archkey.conformance.cases.sparse_mla.edges import CASES as SPARSE_EDGES
from archkey.conformance.cases.spec import describe
from archkey.conformance.judge import judge

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
SMALL = (  # the interpreter works through one program after the other
    cases.norm("rmsnorm", tokens=3, width=111),
    cases.norm("rmsnorm", tokens=2, width=512, dtype=torch.float32),
    cases.norm("rmsnorm", tokens=33, width=256, heads=3, dtype=torch.float16, weight_bias=1.0),
    cases.norm("rmsnorm", tokens=1, width=18432, dtype=torch.float32),
    cases.norm("fused_add_rmsnorm", tokens=5, width=2304, dtype=torch.float32),
    cases.norm("fused_add_rmsnorm", tokens=2, width=7168, dtype=torch.float16),
    cases.qk_norm(tokens=3, q_lora=1536, kv_lora=512, rope=64, dtype=torch.float32),
    cases.qk_norm(tokens=3, q_lora=0, kv_lora=512, rope=64, dtype=torch.float16),
)
# Each kind of quantisation with each rule and layout of scales, ties, thresholds, NaN. A padded
# layout has hundreds of rows of scales, so one rule has to do for it.
QUANT = [
    case
    for case in QUANT_EDGES
    if case.model in ("kinds", "ties", "thresholds of scales", "NaN and infinity", "second norm")
    and ("shuffled" not in case.label or "mode=even" in case.label)
]


def passes_on_the_shared_body(target: str, case: Case) -> None:
    """The kernel of that name ran, and is right for this level."""
    result = judge(archkey.open(target), case, level="interpreted")
    assert result.kernel == f"{target}:triton"
    assert result.passed, result


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.operator} {case.label}")
def test_kernel_agrees_with_reference(target: str, case: Case) -> None:
    result = judge(archkey.open(target), case)
    assert result.kernel == f"{target}:triton"
    assert result.passed, result


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities and NaN are meant
@pytest.mark.parametrize("target", ["cuda_sm90", "rocm_gfx942"])  # one of each flavour of FP8
@pytest.mark.parametrize("case", QUANT, ids=lambda case: case.name)
def test_kinds_of_quantisation_agree_with_reference(target: str, case: Case) -> None:
    result = judge(archkey.open(target), case, level="interpreted")
    if result.skipped:  # the operator refuses it there
        assert "nvfp4" in case.label and target.startswith("rocm"), result
        return
    assert result.kernel == f"{target}:triton"
    assert result.passed, result


LINEAR = (
    Linear((3,), 96, 70, bias="fp32", out_dtype="fp32"),
    Linear((17,), 320, 33, "fp16", out_dtype="fp32"),
    Linear((33,), 288, 20, "mxfp4", out_dtype="fp32"),
    Linear((20,), 288, 33, "mxfp4", "shuffled_gfx950", out_dtype="fp32"),
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("call", LINEAR, ids=describe)
def test_mxfp4_linear_agrees_with_reference(target: str, call: Linear) -> None:
    session = archkey.open(target)
    result = judge(session, Case("mxfp4_linear", "", describe(call), call))
    scaled = call.dtype == "mxfp4" and session.capabilities.mxfp4 == "native"
    assert result.kernel == f"{target}:triton{'_scaled' if scaled else ''}"
    assert result.passed, result


@pytest.mark.parametrize("case", table_edges.CASES, ids=lambda case: f"{case.operator} {case.name}")
def test_page_tables_agree_with_reference(case: Case) -> None:
    """On one target, since none has numbers of its own."""
    result = judge(archkey.open("cuda_sm90"), case)
    assert result.kernel == "cuda_sm90:triton"
    assert result.passed, result


# One of each thing that attention can be asked for; the exam has four hundred.
ATTENTION = [
    next(case for case in edges.CASES if case.model == about)
    for about in (
        "two sequences",
        "query rows packed with heads",
        "head dim 192",
        "head dims 100 and 111",
        "page 20",
        "page 64",
        "many tiles of queries",
        "more queries than keys",
        "no sequences",
        "keys before the window are gone",
        "window of 16 keys in a prefill",
        "heads without a sink",
        "bias is a tree",
        "all options at once",
        "float32",
        "FP8 codes of the device",
        "FP8 cache of unquantised queries",
        "FP8 output saturates",
        "cache HND",
        "workspace of the caller",
        "more segments than keys",
        "far k heads",
        "far descales",
    )
]


@pytest.mark.parametrize(
    ("target", "case"),
    [
        *(("cuda_sm90", case) for case in ATTENTION),
        # The other flavour of FP8, and other tiles.
        *(("rocm_gfx942", case) for case in ATTENTION if "FP8" in case.model or "64" in case.model),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_attention_agrees_with_reference(target: str, case: Case) -> None:
    passes_on_the_shared_body(target, case)


def test_attention_is_batch_invariant() -> None:
    case = next(case for case in invariant.CASES if case.edge and "window" in case.label)
    result = judge(archkey.open("cuda_sm90"), case, level="interpreted")
    assert result.passed, result


# One of each thing that decode, prefill and the merging of its parts can be asked for.
MLA = [
    next(case for case in MLA_EDGES if (case.operator, case.model) == (operator, about))
    for operator, abouts in (
        (
            "mla_decode",
            (
                "two sequences",
                "9 heads",
                "page 1",
                "unused slots are NaN",
                "more queries than keys",
                "sequence without queries",
                "rows past the last sequence",
                "queries packed with heads",
                "not causal",
                "window",
                "width 512",
                "V is not 512 columns",
                "FP8 codes of the device",
                "FP8 cache of 16-bit queries",
                "descales are tensors",
                "4-D cache",
                "rows apart",
                "head-major LSE",
                "far kv_cache",
            ),
        ),
        (
            "mla_prefill",
            (
                "two sequences",
                "9 heads over 3",
                "widths 256/256",
                "K and V of one projection",
                "sequence without queries",
                "more queries than keys",
                "rows past the last sequence",
                "not causal",
                "FP8 codes of the device",
                "descales are tensors",
                "rows apart",
                "head-major LSE",
                "far k heads",
            ),
        ),
        (
            "merge_attn_states",
            (
                "width 127",
                "all rows empty",
                "LSE far from 0",
                "in place",
                "output of another dtype",
                "far out_b",
            ),
        ),
    )
    for about in abouts
]


@pytest.mark.parametrize(
    ("target", "case"),
    [
        *(("cuda_sm90", case) for case in MLA),
        # The other flavour of FP8, and other tiles.
        *(("rocm_gfx942", case) for case in MLA if "FP8" in case.model or "256" in case.model),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_mla_agrees_with_reference(target: str, case: Case) -> None:
    passes_on_the_shared_body(target, case)


# One of each thing that a packed cache is asked for: every format where formats differ.
SPARSE_KV = [
    case
    for case in SPARSE_EDGES
    if case.model
    in {
        "quantize_sparse_kv": (
            *("FP8 codes of the device", "tiles of zeros", "values that underflow"),
            *("scales between powers of two", "scales rounded up to powers of two"),
            *("rows of fp32", "format fp8_model1", "other slots keep their bytes", "page 2"),
            *("slots outside the cache", "far planar out", "far k_rope"),
        ),
        "dequantize_sparse_kv": (
            *("FP8 codes of the device", "format fp8_model1", "slots outside the cache"),
            *("all slots", "output of another dtype", "far cache"),
        ),
        "logical_to_physical_indices": (
            *("three sequences", "index -1", "one sequence", "page 3", "slots past int32"),
            *("rows apart", "far out"),
        ),
    }.get(case.operator, ())
]


@pytest.mark.parametrize(
    ("target", "case"),
    [
        *(("cuda_sm90", case) for case in SPARSE_KV),
        *(("rocm_gfx942", case) for case in SPARSE_KV if "FP8" in case.model),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_packed_caches_agree_with_reference(target: str, case: Case) -> None:
    passes_on_the_shared_body(target, case)


SPARSE = [
    case
    for case in SPARSE_EDGES
    if (case.operator, case.model)
    in {
        *(("sparse_mla_prefill", about) for about in ("three rows", "infinite sinks", "9 heads")),
        *(("sparse_mla_prefill", about) for about in ("far packed kv", "rows apart")),
        *(
            ("sparse_mla_decode", about)
            for about in (
                "indices outside the cache",
                "invalid indices between valid ones",
                "rows without a valid index",
                "few rows with long lists",
                "two lengths, two caches",
                "V is not 512 columns",
                "FP8 codes of the device",
                "packed rows at odd addresses",
                "page 48",
                "page 1",
                "head-major LSE",
            )
        ),
    }
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinite sinks are meant
@pytest.mark.parametrize(
    ("target", "case"),
    [
        *(("cuda_sm90", case) for case in SPARSE),
        # The other flavour of FP8, and other tiles.
        *(("rocm_gfx942", case) for case in SPARSE if "FP8" in case.model),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_sparse_mla_agrees_with_reference(target: str, case: Case) -> None:
    passes_on_the_shared_body(target, case)


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge compares: a case whose kernel gets another eps must not pass."""
    from archkey.kernels import rmsnorm as builders

    build = builders.build_rmsnorm

    def wrong(problem: object, ctx: object) -> object:
        run = build(problem, ctx)  # type: ignore[arg-type]
        return lambda x, w, eps, bias, cast, out: run(x, w, eps + 0.1, bias, cast, out)

    monkeypatch.setattr(builders, "build_rmsnorm", wrong)
    result = judge(archkey.open("cuda_sm90"), SMALL[1])
    assert not result.passed
    assert result.tolerance < result.error < 1


def test_an_unwritten_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from archkey.kernels import rmsnorm as builders

    build = builders.build_rmsnorm

    def lazy(problem: object, ctx: object) -> object:
        run = build(problem, ctx)  # type: ignore[arg-type]
        return lambda x, w, eps, bias, cast, out: run(x[1:], w, eps, bias, cast, out[1:])

    monkeypatch.setattr(builders, "build_rmsnorm", lazy)
    assert judge(archkey.open("cuda_sm90"), SMALL[1]).error == float("inf")


def test_cases_repeat() -> None:
    """A seed names the numbers: the same ones in every process and on every device."""
    first, second = (SMALL[1].inputs(Maker("cpu", seed=7)) for _ in range(2))
    assert torch.equal(first["x"], second["x"])
    assert not torch.equal(first["x"], SMALL[1].inputs(Maker("cpu", seed=8))["x"])

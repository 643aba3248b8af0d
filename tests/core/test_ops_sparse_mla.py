# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA's public functions: what they compute, pass on, and key by."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.core._mla import (
    SCALE,
    Recorder,
    call,
    ints,
    packed_pool,
    randn,
    sparse_decode_inputs,
    sparse_prefill_inputs,
)

from archkey.errors import ArgumentValueError
from archkey.formats.sparse_kv import PACKED, load, packed
from archkey.kernel import resolve
from archkey.ops.sparse_kv import (
    DequantizeSparseKvProblem,
    LogicalToPhysicalIndicesProblem,
    QuantizeSparseKvProblem,
    dequantize_sparse_kv,
    logical_to_physical_indices,
    quantize_sparse_kv,
)
from archkey.ops.sparse_mla import (
    OPERATORS,
    SparseMlaDecodeProblem,
    SparseMlaPrefillProblem,
    sparse_mla_decode,
    sparse_mla_prefill,
)

BF16 = ("bfloat16", "bfloat16")


def _attend(q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One row `[H, d]` over `keys` `[m, d]`, in float64."""
    probabilities = (SCALE * q.double() @ keys.double().T).softmax(-1)
    return probabilities @ keys[:, :512].double()


# ---- results


@pytest.mark.parametrize("form", ["S_d", "S_1_d", "paged"])
def test_prefill_results_and_forms_of_thepacked_pool(form: str) -> None:
    inputs = sparse_prefill_inputs(return_lse=True)
    kv = inputs["kv"]
    expected = [_attend(inputs["q"][0], kv[[1, 2]]), _attend(inputs["q"][1], kv[[7, 7, 3, 4]])]
    inputs["kv"] = {"S_d": kv, "S_1_d": kv[:, None], "paged": kv.view(2, 4, 1, 576)}[form]
    if form == "S_1_d":
        inputs["indices"] = inputs["indices"][:, None]
    out, max_logits, lse = call(sparse_mla_prefill, inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[:2].double(), torch.stack(expected), rtol=1e-2, atol=1e-3)
    assert (out[2] == 0).all()
    assert (max_logits[2] == -torch.inf).all()
    assert (lse[2] == -torch.inf).all()
    logits = SCALE * inputs["q"][0].double() @ kv[[1, 2]].double().T
    torch.testing.assert_close(max_logits[0].double(), logits.amax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse[0].double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_prefill_writes_only_the_outputs_it_was_given() -> None:
    inputs = sparse_prefill_inputs()
    head_major = torch.full((16, 3), torch.nan)
    out = call(sparse_mla_prefill, inputs | {"max_logits": head_major.T})
    assert out.shape == (3, 16, 512)
    expected = call(sparse_mla_prefill, inputs | {"return_lse": True})
    torch.testing.assert_close(head_major.T, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("form", ["3d", "nhd", "fp8", "int8", "apart"])
def test_decode_results_and_forms_of_the_cache(form: str) -> None:
    inputs = sparse_decode_inputs(return_lse=True)
    cache = inputs["kv_cache"]
    keys = load(cache, torch.arange(12), packed("fp8_v32"), dtype=torch.float64)
    q = inputs["q"][:, 0]
    expected = torch.stack([_attend(q[0], keys[[1, 2]]), _attend(q[1], keys[[11, 7, 3, 3]])])
    apart = torch.zeros(3, 6, 656, dtype=torch.uint8)[:, :4]
    apart.copy_(cache)
    inputs["kv_cache"] = {
        "3d": cache,
        "nhd": cache[:, :, None],
        "fp8": cache.view(torch.float8_e4m3fn),
        "int8": cache.view(torch.int8),
        "apart": apart,
    }[form]
    out, lse = call(sparse_mla_decode, inputs)
    assert lse.shape == (2, 16)
    torch.testing.assert_close(out[:, 0].double(), expected, rtol=1e-2, atol=1e-3)


def test_decode_two_caches() -> None:
    extra = packed_pool("fp8_v32", 2, 2, seed=5)
    inputs = sparse_decode_inputs(extra_kv_cache=extra, extra_indices=ints([[3, -1]], [[0, 9]]))
    out = call(sparse_mla_decode, inputs)
    layout = packed("fp8_v32")
    keys = load(inputs["kv_cache"], torch.tensor([11, 7, 3, 3]), layout, dtype=torch.float64)
    more = load(extra, torch.tensor([0]), layout, dtype=torch.float64)
    expected = _attend(inputs["q"][1, 0], torch.cat([keys, more]))
    torch.testing.assert_close(out[1, 0].double(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", list(PACKED))
def test_every_format_makes_the_round_trip(name: str) -> None:
    layout = packed(name)
    nope = randn(3, 4, layout.nope_dim)
    rope = randn(3, 4, layout.rope_dim, seed=1) if layout.rope_dim else None
    mode = {"scale_mode": "pow2" if layout.planar else "fp32"}
    cache = call(quantize_sparse_kv, {"k_nope": nope, "k_rope": rope, "format": name} | mode)
    assert cache.shape == (3, 4, layout.row_bytes)
    assert cache.stride(0) == layout.block_bytes(4)
    rows = call(dequantize_sparse_kv, {"kv_cache": cache, "format": name})
    assert rows.shape == (3, 4, layout.head_dim)
    error = (rows[..., : layout.nope_dim] - nope).abs().max()
    assert 0 < error < nope.abs().max() / 16
    if rope is not None:
        torch.testing.assert_close(rows[..., layout.nope_dim :], rope, rtol=0, atol=0)
    q = randn(2, 1, 8, layout.head_dim)
    indices = ints([[0, 11]], [[5, -1]])
    inputs = {"q": q, "kv_cache": cache, "indices": indices, "softmax_scale": SCALE}
    out = call(sparse_mla_decode, inputs | {"kv_format": name, "head_dim_v": 448})
    keys = load(cache, torch.tensor([0, 11]), layout, dtype=torch.float64)
    expected = (SCALE * q[0, 0].double() @ keys.T).softmax(-1) @ keys[:, :448]
    torch.testing.assert_close(out[0, 0].double(), expected, rtol=1e-2, atol=1e-3)


def test_quantize_in_place_keeps_other_slots() -> None:
    cache = packed_pool("fp8_model1", 2, 4)
    before = cache.clone()
    nope, rope = randn(3, 448, seed=7), randn(3, 64, seed=8)
    mapping = torch.tensor([6, -1, 0])
    inputs = {"k_nope": nope, "k_rope": rope, "format": "fp8_model1", "scale_mode": "pow2"}
    out = call(quantize_sparse_kv, inputs | {"out": cache, "slot_mapping": mapping})
    assert out is cache
    wanted = {"kv_cache": cache, "format": "fp8_model1", "slot_mapping": ints(6, 0, 3, 99)}
    rows = call(dequantize_sparse_kv, wanted)
    torch.testing.assert_close(rows[:2, 448:], rope[[0, 2]], rtol=0, atol=0)
    layout = packed("fp8_model1")
    old = load(before, torch.tensor([3]), layout, dtype=torch.float32)[0]
    torch.testing.assert_close(rows[2].float(), old.bfloat16().float(), rtol=0, atol=0)
    assert (rows[3] == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_logical_to_physical_indices(dims: int) -> None:
    indices = ints([0, 65, -1, 128], [64, 200, 63, 1])
    table = ints([7, 2], [0, 2147480000])
    expected = [[448, 129, -1, -1], [-1, -1, 63, 1]]
    indices = indices if dims == 2 else indices[:, None]
    out = call(
        logical_to_physical_indices,
        {"indices": indices, "block_table": table, "page_size": 64},
    )
    assert out.shape == indices.shape
    assert out.view(2, 4).tolist() == expected


def test_empty_calls_launch_nothing() -> None:
    session = Recorder()
    inputs = sparse_prefill_inputs(q=randn(0, 16, 576), indices=ints([0])[:0])
    assert call(sparse_mla_prefill, inputs, session).shape == (0, 16, 512)
    inputs = sparse_decode_inputs(q=randn(0, 1, 16, 576), indices=ints([[0]])[:0])
    assert call(sparse_mla_decode, inputs, session).shape == (0, 1, 16, 512)
    rows = {"k_nope": randn(0, 512), "k_rope": randn(0, 64)}
    assert call(quantize_sparse_kv, rows, session).shape == (0, 1, 656)
    assert session.launches == 0


# ---- keys


def test_prefill_problem() -> None:
    session = Recorder(pdl=True)
    call(sparse_mla_prefill, sparse_prefill_inputs(), session)
    plain = SparseMlaPrefillProblem(*BF16, "bf16", 16, 4, pdl=True)
    assert session.problem == plain
    kv = sparse_prefill_inputs()["kv"].view(2, 4, 1, 576)
    changes = {
        "kv": kv,
        "topk_length": ints(1, 2, 3),
        "attn_sink": torch.zeros(16),
        "lse": torch.empty(3, 16),
        "out": torch.empty(3, 16, 512, dtype=torch.float16),
    }
    call(sparse_mla_prefill, sparse_prefill_inputs(**changes), session)
    assert session.problem == plain._replace(
        out_dtype="float16", page_size=4, topk_length=True, attn_sink=True, return_lse=True
    )


def test_decode_problem() -> None:
    session = Recorder()
    call(sparse_mla_decode, sparse_decode_inputs(), session)
    plain = SparseMlaDecodeProblem(*BF16, "fp8_v32", 16, 4, page_size=4)
    assert session.problem == plain
    changes = {
        "extra_kv_cache": packed_pool("fp8_v32", 2, 2),
        "extra_indices": ints([[1, 1, 1]], [[1, 1, 1]]),
        "extra_topk_length": ints(1, 2),
        "return_lse": True,
        "softmax_scale": 0.5,
    }
    call(sparse_mla_decode, sparse_decode_inputs(**changes), session)
    assert session.problem == plain._replace(
        extra_topk=3, extra_page_size=2, extra_topk_length=True, return_lse=True
    )
    plan = SimpleNamespace(problem=plain, run=session.launcher(plain))
    call(sparse_mla_decode, sparse_decode_inputs(plan=plan), session)
    with pytest.raises(ArgumentValueError, match="plan must be a plan for this call's problem"):
        call(sparse_mla_decode, sparse_decode_inputs(plan=plan, return_lse=True), session)


def test_problems_of_the_cache_functions() -> None:
    session = Recorder()
    rows = {"k_nope": randn(8, 512), "k_rope": randn(8, 64)}
    cache = call(quantize_sparse_kv, rows, session)
    plain = QuantizeSparseKvProblem("bfloat16", "fp8_v32", page_size=1, slot_dtype="none")
    assert session.problem == plain
    mapped = {"out": packed_pool("fp8_v32", 2, 4), "slot_mapping": torch.arange(8)}
    call(quantize_sparse_kv, rows | mapped | {"scale_mode": "pow2"}, session)
    assert session.problem == plain._replace(scale_mode="pow2", page_size=4, slot_dtype="int64")
    call(dequantize_sparse_kv, {"kv_cache": cache, "slot_mapping": ints(1)}, session)
    assert session.problem == DequantizeSparseKvProblem(
        "bfloat16", "fp8_v32", page_size=1, slot_dtype="int32"
    )
    table = {"indices": ints([1, 2]), "block_table": ints([3]), "page_size": 16}
    call(logical_to_physical_indices, table, session)
    assert session.problem == LogicalToPhysicalIndicesProblem(16, 2)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_operators_agree_with_reference_and_function(operator: Any) -> None:
    reference = inspect.signature(resolve(operator.reference)).parameters
    assert tuple(reference) == (*operator.inputs, "compute_dtype")
    public = inspect.signature(resolve(operator.function)).parameters
    renamed = {"kv_cache": "out"} if operator.name == "quantize_sparse_kv" else {}
    assert {renamed.get(name, name) for name in operator.inputs} <= set(public)
    assert set(operator.outputs) <= set(public)
    for problem in operator.examples.values():
        assert problem.operator == operator.name

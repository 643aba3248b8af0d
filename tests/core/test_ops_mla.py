# SPDX-License-Identifier: Apache-2.0
"""MLA's public functions: what they compute, pass on, and key by."""

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
    decode_inputs,
    ints,
    merge_inputs,
    prefill_inputs,
    randn,
)

from archkey.errors import ArgumentValueError
from archkey.kernel import resolve
from archkey.ops.mla import (
    OPERATORS,
    MergeAttnStatesProblem,
    MlaDecodeProblem,
    MlaPrefillProblem,
    merge_attn_states,
    mla_decode,
    mla_prefill,
)


def _truth(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode by hand for `decode_inputs`: each sequence gathered and attended with SDPA."""
    out, lse = [], []
    for b, pages in enumerate(([2, 1], [3])):
        length = int(inputs["cache_seqlens"][b])
        keys = inputs["kv_cache"][pages].flatten(0, 1)[:length].double()
        scores = SCALE * inputs["q"][b, 0].double() @ keys.T
        out.append(scores.softmax(-1) @ keys[:, :512])
        lse.append(scores.logsumexp(-1))
    return torch.stack(out)[:, None], torch.stack(lse)


# ---- results


@pytest.mark.parametrize("form", ["3d", "nhd", "hnd"])
def test_decode_results_and_forms_of_the_cache(form: str) -> None:
    inputs = decode_inputs(return_lse=True)
    expected, expected_lse = _truth(inputs)
    if form != "3d":
        inputs["kv_cache"] = inputs["kv_cache"].unsqueeze(2 if form == "nhd" else 1)
    out, lse = call(mla_decode, inputs)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_decode_writes_given_outputs_of_any_stride() -> None:
    inputs = decode_inputs()
    expected, expected_lse = _truth(inputs)
    wide = torch.full((2, 1, 16, 600), torch.nan, dtype=torch.float16)
    head_major = torch.full((16, 2), torch.nan)
    out = call(mla_decode, inputs | {"out": wide[..., :512], "lse": head_major.T})
    assert out.data_ptr() == wide.data_ptr()
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(head_major.T.double(), expected_lse, rtol=1e-5, atol=1e-5)
    assert wide[..., 512:].isnan().all()


def test_decode_ragged_equals_uniform() -> None:
    inputs = decode_inputs(return_lse=True)
    uniform = call(mla_decode, inputs)
    inputs |= {"q": inputs["q"][:, 0], "cu_seqlens_q": ints(0, 1, 2), "max_seqlen_q": 1}
    ragged = call(mla_decode, inputs)
    torch.testing.assert_close(ragged[0], uniform[0][:, 0], rtol=0, atol=0)
    torch.testing.assert_close(ragged[1], uniform[1], rtol=0, atol=0)


def test_sm_scale_is_the_same_as_softmax_scale() -> None:
    inputs = decode_inputs()
    plain = call(mla_decode, inputs)
    del inputs["softmax_scale"]
    torch.testing.assert_close(call(mla_decode, inputs | {"sm_scale": SCALE}), plain)


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_decode_fp8_gives_bfloat16_and_descales(fp8: torch.dtype) -> None:
    inputs = decode_inputs()
    q, cache = inputs["q"].to(fp8), inputs["kv_cache"].to(fp8)
    real = inputs | {"q": 2 * q.bfloat16(), "kv_cache": 0.5 * cache.bfloat16()}
    scaled = {"q": q, "kv_cache": cache, "q_descale": torch.tensor([2.0]), "kv_descale": 0.5}
    out = call(mla_decode, inputs | scaled)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, call(mla_decode, real))


@pytest.mark.parametrize(("batch", "q_len"), [(0, 1), (2, 0)], ids=["B0", "q_len0"])
def test_decode_of_nothing_launches_nothing(batch: int, q_len: int) -> None:
    session = Recorder()
    inputs = decode_inputs(q=randn(batch, q_len, 16, 576), return_lse=True)
    inputs |= {n: inputs[n][:batch] for n in ("block_table", "cache_seqlens")}
    out, lse = call(mla_decode, inputs, session)
    assert out.shape == (batch, q_len, 16, 512)
    assert lse.shape == (0, 16)
    assert session.launches == 0


@pytest.mark.parametrize("sequences", [0, 2], ids=["B0", "T0"])
def test_ragged_calls_of_nothing_launch_nothing(sequences: int) -> None:
    session = Recorder()
    cu = ints(*[0] * (sequences + 1))
    decode = decode_inputs(q=randn(0, 16, 576), cu_seqlens_q=cu, return_lse=True)
    decode |= {n: decode[n][:sequences] for n in ("block_table", "cache_seqlens")}
    out, lse = call(mla_decode, decode, session)
    assert (out.shape, lse.shape) == ((0, 16, 512), (0, 16))
    keys = {n: prefill_inputs()[n][:0] for n in "qkv"}
    bounds = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 0, "max_seqlen_k": 0}
    out, lse = call(mla_prefill, prefill_inputs(**keys, **bounds, return_lse=True), session)
    assert (out.shape, lse.shape) == ((0, 4, 128), (0, 4))
    out, lse = call(merge_attn_states, {n: x[:0] for n, x in merge_inputs().items()}, session)
    assert (out.shape, lse.shape) == ((0, 4, 128), (0, 4))
    assert session.launches == 0


def test_prefill_and_merge_rebuild_the_whole() -> None:
    inputs = prefill_inputs(causal=False, return_lse=True)
    whole, whole_lse = call(mla_prefill, inputs)
    parts = []
    for keys, cu in (([0, 1, 4, 6], ints(0, 2, 3, 4)), ([2, 3, 5, 7, 8], ints(0, 2, 3, 5))):
        part = {"k": inputs["k"][keys], "v": inputs["v"][keys], "cu_seqlens_k": cu}
        parts += call(mla_prefill, inputs | part)
    out, lse = call(
        merge_attn_states, dict(zip(("out_a", "lse_a", "out_b", "lse_b"), parts, strict=True))
    )
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, whole, rtol=2e-2, atol=4e-3)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-5, atol=1e-5)


def test_merge_in_place() -> None:
    inputs = merge_inputs()
    out, lse = call(merge_attn_states, inputs)
    given = {"out": inputs["out_a"], "lse": inputs["lse_a"]}
    again = call(merge_attn_states, inputs | given)
    assert again[0] is inputs["out_a"]
    torch.testing.assert_close(again[0], out, rtol=0, atol=0)
    torch.testing.assert_close(again[1], lse, rtol=0, atol=0)


# ---- keys


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {}),
        ({"return_lse": True}, {"return_lse": True}),
        ({"lse": torch.empty(2, 16)}, {"return_lse": True}),
        ({"causal": False}, {}),  # one query token sees the same either way
        ({"q": randn(2, 3, 16, 576)}, {"q_len": 4, "causal": True}),
        ({"q": randn(2, 3, 16, 576), "causal": False}, {"q_len": 4}),
        ({"window_left": 100}, {"window": True}),
        ({"q_descale": 1.5}, {"q_descale": "number"}),
        ({"kv_descale": torch.ones(())}, {"kv_descale": "tensor"}),
        ({"head_dim_v": 128}, {"head_dim_v": 128}),
        ({"q": randn(2, 1, 16, 580)[..., 1:577]}, {"aligned": False}),
        (
            {"q": randn(2, 16, 576), "cu_seqlens_q": ints(0, 1, 2), "max_seqlen_q": 1},
            {"ragged": True},
        ),
        (
            {"q": randn(7, 16, 576), "cu_seqlens_q": ints(0, 1, 2)},
            {"ragged": True, "q_len": 8, "causal": True},
        ),
        ({"num_splits": 7}, {}),  # a number that a kernel is launched with
        # One kernel for however many queries come together, so neither it nor the key knows.
        ({"batch_invariant": True}, {"q_len": 0, "causal": True, "batch_invariant": True}),
        (
            {"q": randn(2, 3, 16, 576), "batch_invariant": True, "num_splits": 1},
            {"q_len": 0, "causal": True, "batch_invariant": True},
        ),
        (
            {"q": randn(2, 3, 16, 576), "batch_invariant": True, "causal": False},
            {"q_len": 0, "batch_invariant": True},
        ),
        (  # a window is of one query token
            {"batch_invariant": True, "window_left": 3},
            {"window": True, "batch_invariant": True},
        ),
    ],
)
def test_decode_problem(changes: dict[str, Any], fields: dict[str, Any]) -> None:
    session = Recorder()
    call(mla_decode, decode_inputs(**changes), session)
    plain = MlaDecodeProblem("bfloat16", "bfloat16", "bfloat16", 16)
    assert session.problem == plain._replace(**fields)


def test_decode_problem_ignores_batch_length_and_scale() -> None:
    session, other = Recorder(), Recorder()
    inputs = decode_inputs()
    call(mla_decode, inputs, session)
    one = {n: inputs[n][:1] for n in ("q", "block_table", "cache_seqlens")}
    call(mla_decode, inputs | one | {"softmax_scale": 0.5, "max_seqlen_k": 80}, other)
    assert session.problem == other.problem


def test_prefill_and_merge_problems() -> None:
    session = Recorder(pdl=True)
    projection = randn(9, 4, 320)  # k and v as views of one projection
    views = {"k": projection[..., :192], "v": projection[..., 192:]}
    call(mla_prefill, prefill_inputs(causal=False, k_descale=2.0, **views), session)
    plain = MlaPrefillProblem("bfloat16", "bfloat16", 4, 4, pdl=True)
    assert session.problem == plain._replace(causal=False, k_descale="number")
    call(mla_prefill, prefill_inputs(enable_pdl=False), session)
    assert session.problem == plain._replace(pdl=False)
    call(mla_prefill, prefill_inputs(batch_invariant=True), session)
    assert session.problem == plain._replace(batch_invariant=True)
    call(merge_attn_states, merge_inputs(out=torch.empty(3, 4, 128)), session)
    assert session.problem == MergeAttnStatesProblem("bfloat16", "float32", 4, 128, pdl=True)


def test_plan_must_be_of_this_problem() -> None:
    session = Recorder()
    inputs = decode_inputs()
    expected = call(mla_decode, inputs, session)
    plan = SimpleNamespace(problem=session.problem, run=session.launcher(session.problem))
    torch.testing.assert_close(call(mla_decode, inputs | {"plan": plan}), expected)
    plan.problem = session.problem._replace(heads=128)
    with pytest.raises(ArgumentValueError, match=r"plan must be .* session\.plan\(MlaDecode"):
        call(mla_decode, inputs | {"plan": plan})


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_operators_agree_with_reference_and_function(operator: Any) -> None:
    reference = inspect.signature(resolve(operator.reference)).parameters
    assert tuple(reference) == (*operator.inputs, "compute_dtype")
    public = inspect.signature(resolve(operator.function)).parameters
    assert set(operator.inputs) <= set(public)
    assert set(operator.outputs) <= set(public)
    for problem in operator.examples.values():
        assert problem.operator == operator.name

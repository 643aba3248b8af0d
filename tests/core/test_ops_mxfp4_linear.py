# SPDX-License-Identifier: Apache-2.0
"""mxfp4_linear: its numbers, and what it passes on and keys by."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tests.core._fakes import Spy
from tests.core._linear import BF16, U8, K, N, call_of, packed_call, rand, weights

import archkey
from archkey.formats import dequantize_mxfp4, quantize_mxfp4, shuffle_gfx950
from archkey.kernel import resolve
from archkey.ops.mxfp4_linear import OPERATORS, Mxfp4LinearProblem

(OPERATOR,) = OPERATORS
F16, F32 = torch.float16, torch.float32


def truth(call: dict[str, Any]) -> torch.Tensor:
    """The formula in float64."""
    x, scale = call["x"], call.get("x_scale")
    x = x.double() if scale is None else dequantize_mxfp4(x, scale).double()
    y = x @ dequantize_mxfp4(call["weight"], call["weight_scale"]).double().T
    return y if call.get("bias") is None else y + call["bias"].double()


# ---- numbers


def test_by_hand() -> None:
    """Codes 2 and 9 are 1 and -0.5, the low nibble first; scales are 2^1 and 2^-1."""
    x = torch.zeros(1, 34)
    x[0, :3], x[0, 32:] = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([1000.0, 10000.0])
    weight = torch.full((1, 17), 0x92, dtype=U8)
    weight_scale = torch.tensor([[128, 126]], dtype=U8)
    out = archkey.mxfp4_linear(x, weight, weight_scale, bias=torch.tensor([0.25]))
    assert out.tolist() == [[2 * (1 - 5 + 100) + (1000 - 5000) / 2 + 0.25]]


@pytest.mark.parametrize("lead", [(), (5,), (0,), (2, 3), (2, 1, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("make", [call_of, packed_call])
def test_any_number_of_dimensions(make: Any, lead: tuple[int, ...]) -> None:
    call = make(*lead, bias=rand(N, dtype=F32))
    out = archkey.mxfp4_linear(**call)
    assert out.shape == (*lead, N)
    assert out.dtype == BF16
    torch.testing.assert_close(out.double(), truth(call), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("asked", ["out", "out_dtype", "both"])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_out_is_of_the_dtype_that_is_asked_for(dtype: torch.dtype, asked: str) -> None:
    call = packed_call(5)
    given: dict[str, Any] = {} if asked == "out" else {"out_dtype": dtype}
    if asked != "out_dtype":
        given["out"] = torch.empty(5, N, dtype=dtype)
    out = archkey.mxfp4_linear(**call, **given)
    assert out.dtype == dtype
    assert "out" not in given or out is given["out"]
    torch.testing.assert_close(out.double(), truth(call), rtol=2**-7, atol=1e-2)


def test_shuffled_scales_and_torchs_own_dtypes_are_the_same_numbers() -> None:
    call = packed_call(40)
    expected = archkey.mxfp4_linear(**call)
    shuffled = call | {"x_scale": shuffle_gfx950(call["x_scale"])}
    found = archkey.mxfp4_linear(**shuffled, x_scale_layout="shuffled_gfx950")
    assert torch.equal(found, expected)
    own = {"x": "float4_e2m1fn_x2", "weight": "float4_e2m1fn_x2"}
    own |= {"x_scale": "float8_e8m0fnu", "weight_scale": "float8_e8m0fnu"}
    renamed = {name: call[name].view(getattr(torch, dtype)) for name, dtype in own.items()}
    assert torch.equal(archkey.mxfp4_linear(**renamed), expected)


def test_it_is_a_method_of_a_session() -> None:
    call = call_of(3)
    session = archkey.open("cpu")
    assert torch.equal(session.mxfp4_linear(**call), archkey.mxfp4_linear(**call))


# ---- the key, and what a kernel gets


def problem_of(call: dict[str, Any], target: str = "cuda_sm90") -> Mxfp4LinearProblem:
    spy = Spy(OPERATOR, target)
    spy(**call)
    problem: Mxfp4LinearProblem = spy.problem
    return problem


def aligned_call(**more: Any) -> dict[str, Any]:
    return call_of(8, k=128, **more)


def test_the_key_of_a_call() -> None:
    found = problem_of(aligned_call(bias=rand(N, dtype=F32)))
    pdl = archkey.open("cuda_sm90").pdl
    # 20 columns of out are no multiple of 16.
    expected = Mxfp4LinearProblem(
        "bfloat16", "bfloat16", 128, N, "none", "float32", aligned=False, pdl=pdl
    )
    assert found == expected
    found = problem_of(packed_call(8, k=64) | {"enable_pdl": False})
    expected = Mxfp4LinearProblem(
        "uint8", "bfloat16", 64, N, "row", aligned=False, scales_aligned=False
    )
    assert found == expected


def test_the_number_of_rows_is_no_part_of_the_key() -> None:
    assert len({problem_of(call_of(tokens)) for tokens in (0, 1, 16, 17, 4096)}) == 1


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """One element further in memory."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def _apart(x: torch.Tensor) -> torch.Tensor:
    """Two elements free between rows."""
    return torch.cat((x, x[:, :2]), 1)[:, : x.shape[1]]


@pytest.mark.parametrize("name", ["x", "weight", "weight_scale", "x_scale"])
@pytest.mark.parametrize("moved", [_shifted, _apart])
def test_alignment_is_part_of_the_key(name: str, moved: Any) -> None:
    codes, scale = quantize_mxfp4(rand(8, 512, dtype=F32), "even")
    call = {"x": codes, "x_scale": scale, **weights(32, 512)}
    whole = problem_of(call)
    assert whole.aligned
    assert whole.scales_aligned
    lost = "scales_aligned" if name.endswith("scale") else "aligned"
    assert problem_of(call | {name: moved(call[name])}) == whole._replace(**{lost: False})


def test_scales_are_aligned_by_words() -> None:
    call = {"x": rand(2, 512), **weights(32, 512)}
    scale = call["weight_scale"]
    wide = torch.cat((scale, scale[:, :4]), 1)[:, : scale.shape[1]]
    assert problem_of(call | {"weight_scale": wide}).scales_aligned


def test_rows_that_are_not_evenly_spaced_are_heads() -> None:
    wide = rand(3, 5, K)
    assert problem_of(call_of() | {"x": wide[:, :4]}).heads == 4
    assert problem_of(call_of() | {"x": wide}).heads == 1
    out = torch.empty(3, 5, N, dtype=BF16)[:, :4]
    assert problem_of(call_of() | {"x": wide[:, :4].contiguous(), "out": out}).heads == 4


def test_a_kernel_gets_rows_of_bytes_in_the_same_memory() -> None:
    spy = Spy(OPERATOR, "cuda_sm90")
    call = packed_call(2, 3, 4)
    own = call | {"weight": call["weight"].view(torch.float4_e2m1fn_x2)}
    out = spy(**own)
    assert out.shape == (2, 3, 4, N)
    for name, shape in (("x", (6, 4, K // 2)), ("x_scale", (6, 4, 3)), ("weight", (N, K // 2))):
        assert spy.arguments[name].shape == shape
        assert spy.arguments[name].dtype == U8
        assert spy.arguments[name].data_ptr() == call[name].data_ptr()
    assert spy.arguments["out"].shape == (6, 4, N)
    assert spy.arguments["out"].data_ptr() == out.data_ptr()


def test_a_device_without_pdl_ignores_it() -> None:
    assert not problem_of(call_of(2, enable_pdl=True), "rocm_gfx942").pdl


def test_names_and_examples_agree() -> None:
    parameters = inspect.signature(resolve(OPERATOR.function)).parameters
    assert set(OPERATOR.inputs) < set(parameters)
    for problem in OPERATOR.examples.values():
        packed = problem.x_scale_layout != "none"
        assert packed == (problem.dtype == "uint8")
        assert problem.scales_aligned == (-(-problem.in_features // 32) % 4 == 0)


@pytest.mark.parametrize("target", ["cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950"])
def test_who_serves_the_examples(target: str) -> None:
    """Scaled products where both operands are packed and the hardware has them."""
    session = archkey.open(target)
    native = session.capabilities.mxfp4 == "native"
    for label, problem in OPERATOR.examples.items():
        chosen = session.decide(problem).chosen
        assert chosen is not None
        scaled = native and problem.dtype == "uint8"
        assert chosen.id == f"{target}:triton{'_scaled' if scaled else ''}", label

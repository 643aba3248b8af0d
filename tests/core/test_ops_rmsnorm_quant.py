# SPDX-License-Identifier: Apache-2.0
"""rmsnorm_quant: its numbers, what it passes on and keys by, and what it refuses."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from tests.core import _fakes
from tests.core._fakes import Spy

import archkey
from archkey import formats
from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported
from archkey.kernel import resolve
from archkey.ops._rmsnorm_quant_kinds import KINDS, TILES
from archkey.ops.rmsnorm_quant import OPERATORS, RmsNormQuantProblem
from archkey.session import Session

(OPERATOR,) = OPERATORS
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
META = torch.device("meta")


def rand(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The formula in float64."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()


def one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def call_of(quant: str, shape: tuple[int, ...] = (4, 256), **more: Any) -> dict[str, Any]:
    """A call that is in order; the given scales have room for y, which reaches 13."""
    scale = {"fp8_tensor": one(0.05), "nvfp4": one(0.01)}.get(quant)
    call = {"x": rand(*shape), "weight": rand(shape[-1], seed=1), "eps": 1e-6, "quant": quant}
    return call | ({} if scale is None else {"scale": scale}) | more


def values(quant: str, out: torch.Tensor, scale: torch.Tensor, given: Any) -> torch.Tensor:
    """Float64 numbers that codes and row-major scales stand for."""
    if quant == "mxfp4":
        return formats.dequantize_mxfp4(out, scale).double()
    if quant == "nvfp4":
        return formats.dequantize_nvfp4(out, scale, given).double()
    return formats.dequantize_fp8(out, scale).double()


# ---- numbers

SHAPES = [(1, 256), (33, 512), (2, 3, 256), (0, 256)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("quant", KINDS)
def test_values_are_those_of_the_formula(quant: str, shape: tuple[int, ...]) -> None:
    call = call_of(quant, shape)
    result = archkey.rmsnorm_quant(**call)
    want = norm(call["x"], call["weight"])
    got = values(quant, result.out, result.scale, call.get("scale"))
    assert got.shape == want.shape
    # Half a step: of FP8 1/16 of the number, of FP4 at most a quarter, or half of the smallest.
    relative = 0.26 if "fp4" in quant else 1 / 15
    torch.testing.assert_close(got, want, rtol=relative, atol=0.4 if "fp4" in quant else 1e-3)
    assert result[2:] == (None, None, None)


def test_dynamic_scales_put_the_largest_at_448() -> None:
    call = call_of("fp8_token", (5, 384))
    want = norm(call["x"], call["weight"])
    out, scale, *_ = archkey.rmsnorm_quant(**call)
    assert scale is not None and scale.shape == (5, 1)
    torch.testing.assert_close(scale.double(), want.abs().amax(-1, keepdim=True) / 448)
    assert out.float().abs().amax(-1).tolist() == [448.0] * 5
    call["quant"] = "fp8_group"
    _, by_group, *_ = archkey.rmsnorm_quant(**call)
    amax = want.reshape(5, 3, 128).abs().amax(-1)
    torch.testing.assert_close(by_group.double(), amax / 448)
    _, power, *_ = archkey.rmsnorm_quant(**call, scale_mode="pow2")
    torch.testing.assert_close(power.double(), 2 ** (amax / 448).log2().ceil(), rtol=0, atol=0)


def test_codes_come_from_the_unrounded_result() -> None:
    call = call_of("fp8_tensor", (64, 512))
    call["scale"] = one(0.25)
    want = norm(call["x"], call["weight"])
    out, *_ = archkey.rmsnorm_quant(**call)
    exact, rounded = (
        formats.encode_fp8(y / 0.25, "float8_e4m3fn") for y in (want, want.bfloat16())
    )
    assert (out.float() != exact.float()).double().mean() < 1e-4
    assert (rounded.float() != exact.float()).double().mean() > 1e-2


def test_mxfp4_modes_differ_where_they_should() -> None:
    x = torch.full((1, 32), 1.0)
    x[0, 0] = 7.0  # 7 / 4 = 1.75: "even" goes up, "floor" does not; 7 / 6 > 1: "rceil" goes up
    weight = torch.full((32,), float(x.square().mean().sqrt()))  # y is x
    got = {}
    for mode in KINDS["mxfp4"].modes:
        call = {"x": x, "weight": weight, "eps": 1e-12, "quant": "mxfp4", "scale_mode": mode}
        got[mode] = int(archkey.rmsnorm_quant(**call).scale)
    assert got == {"rceil": 128, "even": 128, "floor": 127, "ceil": 128}


def test_zero_rows_and_nan() -> None:
    for quant in KINDS:
        call = call_of(quant, (3, 256))
        call["x"][1] = 0
        result = archkey.rmsnorm_quant(**call)
        got = values(quant, result.out, result.scale, call.get("scale"))
        assert torch.equal(got[1], torch.zeros(256).double()), quant
    call = call_of("fp8_token", (3, 256))
    call["x"][2, 5] = math.nan
    out, *_ = archkey.rmsnorm_quant(**call)
    assert out.float().isnan().all(-1).tolist() == [False, False, True]


# ---- layouts


def test_column_scales() -> None:
    call = call_of("fp8_group", (6, 512))
    row, col = archkey.rmsnorm_quant(**call), archkey.rmsnorm_quant(**call, scale_layout="col")
    assert col.scale.stride() == (1, 6)
    assert torch.equal(row.scale, col.scale)
    padded = torch.full((4, 8), 7.0)  # a pitch of 8, as a matmul may want it
    given = padded.t()[:6]
    assert archkey.rmsnorm_quant(**call, scale_layout="col", out_scale=given).scale is given
    assert torch.equal(given, row.scale)
    assert torch.equal(padded[:, 6:], torch.full((4, 2), 7.0))


def test_column_scales_of_three_dimensions() -> None:
    call = call_of("fp8_group", (2, 3, 256))
    row, col = archkey.rmsnorm_quant(**call), archkey.rmsnorm_quant(**call, scale_layout="col")
    assert col.scale.stride() == (3, 1, 6)
    assert torch.equal(row.scale, col.scale)


@pytest.mark.parametrize(
    ("quant", "layout", "shape", "undo"),
    [
        ("mxfp4", "shuffled_gfx950", (256, 16), formats.unshuffle_gfx950),
        ("nvfp4", "swizzled_128x4", (256, 20), formats.unswizzle_128x4),
    ],
)
def test_padded_scales(quant: str, layout: str, shape: Any, undo: Any) -> None:
    width, block = (280, 32) if quant == "mxfp4" else (272, 16)
    call = call_of(quant, (130, width))
    plain = archkey.rmsnorm_quant(**call)
    given = torch.full(shape, 0x7F, dtype=torch.uint8).view(plain.scale.dtype)
    tiled = archkey.rmsnorm_quant(**call, scale_layout=layout, out_scale=given)
    assert tiled.scale is given
    assert torch.equal(tiled.out, plain.out)
    back = undo(given, 130, -(-width // block))
    assert torch.equal(back.view(torch.uint8), plain.scale.view(torch.uint8))
    written = int((given.view(torch.uint8) != 0).sum())
    assert written == int((plain.scale.view(torch.uint8) != 0).sum()), "padding is 0"
    new = archkey.rmsnorm_quant(**call, scale_layout=layout).scale
    assert torch.equal(new.view(torch.uint8), given.view(torch.uint8))


# ---- what is fused


def test_residual_is_updated_in_place() -> None:
    call = call_of("fp8_group")
    residual = rand(4, 256, dtype=torch.float32, seed=2)
    total = call["x"] + residual
    result = archkey.rmsnorm_quant(**call, residual=residual)
    assert result.residual_out is residual and torch.equal(residual, total)
    got = values("fp8_group", result.out, result.scale, None)
    torch.testing.assert_close(got, norm(total, call["weight"]), rtol=1 / 15, atol=1e-3)


def test_residual_out_and_unquantized_out() -> None:
    call = call_of("mxfp4")
    residual, kept = rand(4, 256, seed=2), rand(4, 256, seed=2)
    total, y = torch.empty(4, 256, dtype=torch.bfloat16), torch.empty(4, 256)
    buffers = {"residual_out": total, "unquantized_out": y}
    result = archkey.rmsnorm_quant(**call, residual=residual, **buffers)
    assert result.residual_out is total and result.unquantized_out is y
    assert torch.equal(residual, kept) and torch.equal(total, call["x"] + residual)
    # From the float32 sum, not from the rounded one that is stored.
    exact = norm(call["x"].double() + residual.double(), call["weight"])
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)


def test_q_a_and_kv_a_of_one_row_into_wider_rows() -> None:
    """DeepSeek's fused projection: q_a 1536, kv_a 512, k_pe 64 in a row of 2112."""
    row = rand(3, 2112)
    before = row.clone()
    weights = rand(1536, seed=1), rand(512, seed=2)
    codes = torch.zeros(3, 1600, dtype=FN)
    cache = torch.full((3, 576), 7.0, dtype=torch.bfloat16)
    result = archkey.rmsnorm_quant(
        row[:, :1536], weights[0], 1e-6, quant="fp8_group", out=codes[:, :1536],
        x2=row[:, 1536:2048], x2_weight=weights[1], x2_eps=1e-5, x2_out=cache[:, :512],
    )  # fmt: skip
    want = norm(before[:, 1536:2048], weights[1], 1e-5)
    torch.testing.assert_close(cache[:, :512], want.bfloat16(), rtol=0.01, atol=0)
    assert torch.equal(cache[:, 512:], torch.full((3, 64), 7.0, dtype=torch.bfloat16))
    got = values("fp8_group", codes[:, :1536], result.scale, None)
    torch.testing.assert_close(got, norm(before[:, :1536], weights[0]), rtol=1 / 15, atol=1e-3)
    assert not codes[:, 1536:].float().any()
    assert torch.equal(row, before)


def test_weight_bias_is_for_both_norms() -> None:
    call = call_of("fp8_token", weight_bias=1.0)
    second = {"x2": rand(4, 64, seed=3), "x2_weight": rand(64, seed=4), "x2_eps": 1e-6}
    y = torch.empty(4, 256)
    result = archkey.rmsnorm_quant(**call, **second, unquantized_out=y)
    torch.testing.assert_close(y, norm(call["x"], call["weight"].double() + 1).float())
    want = norm(second["x2"], second["x2_weight"].double() + 1)
    torch.testing.assert_close(result.x2_out, want.bfloat16(), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_before_weight_is_what_two_calls_give(dtype: torch.dtype) -> None:
    """vLLM's fused operators quantise what its norm would have stored."""
    call = call_of("fp8_tensor", (33, 256)) | {"cast_before_weight": True}
    call["x"], call["weight"] = call["x"].to(dtype), call["weight"].to(dtype)
    y = archkey.rmsnorm(call["x"], call["weight"], call["eps"], cast_before_weight=True)
    want = formats.encode_fp8(y.float() / call["scale"], "float8_e4m3fn")
    assert torch.equal(archkey.rmsnorm_quant(**call).out.float(), want.float())
    apart = archkey.rmsnorm_quant(**call | {"cast_before_weight": False}).out
    assert not torch.equal(apart.float(), want.float())


def test_static_scale_is_returned_and_may_have_any_rank() -> None:
    call = call_of("fp8_tensor", (2, 3, 64))
    want = archkey.rmsnorm_quant(**call)
    assert want.scale is call["scale"]
    for shape in ((), (1, 1, 1, 1)):
        got = archkey.rmsnorm_quant(**call | {"scale": call["scale"].reshape(shape)})
        assert torch.equal(got.out.float(), want.out.float())


# ---- what is passed on, and what decides


@pytest.mark.parametrize(
    ("target", "dtype", "mode"),
    [
        ("cpu", FN, "rceil"),
        ("cuda_sm90", FN, "rceil"),
        ("cuda_sm100", FN, "rceil"),
        ("rocm_gfx942", FNUZ, "even"),
        ("rocm_gfx950", FN, "even"),
    ],
)
def test_defaults_of_a_device(target: str, dtype: torch.dtype, mode: str) -> None:
    spy = Spy(OPERATOR, target)
    assert spy(**call_of("fp8_token")).out.dtype == dtype
    assert spy.problem.scale_mode == spy.arguments["scale_mode"] == "fp32"
    assert spy.arguments["fp8_dtype"] == spy.problem.out_dtype == str(dtype)[6:]
    spy(**call_of("mxfp4"))
    assert spy.problem.scale_mode == spy.arguments["scale_mode"] == mode
    assert spy.problem.out_dtype == "uint8" and spy.arguments["fp8_dtype"] is None
    spy(**call_of("mxfp4", scale_mode="floor"))
    assert spy.problem.scale_mode == "floor"
    assert spy(**call_of("nvfp4")).scale.dtype == FN, "a fact of the format, not of the device"
    assert spy.problem.scale_mode == "none" and spy.arguments["scale_mode"] is None


def test_either_fp8_is_allowed_where_torch_computes() -> None:
    call = call_of("fp8_token")
    out = torch.empty(4, 256, dtype=FNUZ)
    result = archkey.rmsnorm_quant(**call, out=out)
    assert result.out is out and out.float().abs().max() == 240


def test_problem_says_what_is_there() -> None:
    spy = Spy(OPERATOR, "cuda_sm90")
    spy.pdl = True  # off where tests interpret kernels
    spy(**call_of("fp8_group", (4, 256), group_size=64))
    plain = RmsNormQuantProblem(
        "fp8_group", "bfloat16", "bfloat16", "float8_e4m3fn", 256, 64, "fp32", pdl=True
    )
    assert spy.problem == plain
    spy(**call_of("fp8_group", (4, 256), group_size=64, enable_pdl=False))
    assert spy.problem == plain._replace(pdl=False)
    spy(
        **call_of("fp8_group", (4, 256), group_size=64, scale_layout="col"),
        residual=rand(4, 256, dtype=torch.float32),
        unquantized_out=rand(4, 256, dtype=torch.float16),
        x2=rand(4, 2, 512)[:, :, :320],
        x2_weight=rand(320),
        x2_eps=1e-6,
        x2_out=rand(4, 2, 320, dtype=torch.float32),
    )
    assert spy.problem == plain._replace(
        scale_layout="col",
        residual_dtype="float32",
        unquantized_dtype="float16",
        x2_width=320,
        x2_out_dtype="float32",
    )
    spy(**call_of("fp8_token"), residual=rand(4, 256))
    assert (spy.problem.group_size, spy.problem.residual_dtype) == (256, "bfloat16")
    spy(**call_of("fp8_tensor"))
    assert (spy.problem.group_size, spy.problem.scale_mode) == (0, "none")


def test_problem_says_how_rows_lie() -> None:
    odd = rand(4 * 256 + 1)[1:].view(4, 256)
    second = {"x2": rand(4, 256), "x2_weight": rand(256), "x2_eps": 1e-6}
    byte = torch.uint8
    for changed in (
        {"x": odd},
        {"x": rand(4, 264)[:, :256]},
        {"x": rand(4, 48), "weight": rand(48)},  # codes 24 bytes apart
        {"weight": rand(257)[1:]},
        {"residual": odd},
        {"residual": rand(4, 256), "residual_out": odd},
        {"unquantized_out": rand(4, 264)[:, :256]},
        {"out": torch.empty(4, 136, dtype=byte)[:, :128]},
        {"out": torch.empty(4 * 128 + 1, dtype=byte)[1:].view(4, 128)},
        {"x": rand(4, 2, 256), "out": torch.empty(4, 2, 136, dtype=byte)[..., :128]},
        second | {"x2": odd},
        second | {"x2_weight": rand(257)[1:]},
        second | {"x2_out": odd},
        second | {"x2": rand(4, 256)[:, :200], "x2_weight": rand(200)},  # x2_out is 200 wide
    ):
        spy = Spy(OPERATOR, "cpu")  # one that has seen no other call
        spy(**call_of("mxfp4") | changed)
        assert not spy.problem.aligned, changed.keys()


def test_scales_have_no_part_in_how_rows_lie() -> None:
    spy = Spy(OPERATOR, "cpu")
    x, odd = rand(4, 256), rand(4 * 256 + 1)[1:].view(4, 256)
    for start in (0, 1):
        scale = torch.empty(33, dtype=torch.uint8)[start:][:32].view(4, 8)
        for rows, aligned in ((x, True), (odd, False), (x, True)):
            spy(**call_of("mxfp4") | {"x": rows}, out_scale=scale)
            assert spy.problem.aligned == aligned


def test_problem_counts_heads_of_unevenly_spaced_rows_alone() -> None:
    spy = Spy(OPERATOR, "cpu")
    even, uneven = rand(4, 3, 512)[..., :256], rand(4, 5, 256)[:, :3]
    for changed, heads in (
        ({}, 1),
        ({"x": even}, 1),
        ({"x": uneven}, 3),
        ({"residual": uneven}, 3),
        ({"out": torch.empty(4, 5, 256, dtype=FN)[:, :3]}, 3),
        ({"out_scale": torch.empty(4, 5, 2)[:, :3]}, 3),
        ({"unquantized_out": uneven}, 3),
    ):
        spy(**call_of("fp8_group", (4, 3, 256)) | changed)
        assert (spy.problem.heads, spy.problem.x2_heads) == (heads, 1), changed.keys()
    spy(**call_of("fp8_token"), x2=uneven, x2_weight=rand(256), x2_eps=1e-6)
    assert (spy.problem.heads, spy.problem.x2_heads) == (1, 3)


def test_operator_is_what_the_reference_takes() -> None:
    *names, last = inspect.signature(resolve(OPERATOR.reference)).parameters
    assert (*names,) == OPERATOR.inputs and last == "compute_dtype"
    for target in ("cpu", "cuda_sm90", "rocm_gfx950"):
        session = archkey.open(target)
        for label, problem in OPERATOR.examples.items():
            assert session.decide(problem).chosen is not None, label


def test_kinds_are_those_of_the_formats() -> None:
    assert set(KINDS["mxfp4"].modes) == set(formats.SCALE_MODES)
    assert KINDS["fp8_token"].modes == KINDS["fp8_group"].modes == formats.SCALE_ROUNDINGS
    assert KINDS["mxfp4"].block == formats.MXFP4_BLOCK
    assert KINDS["nvfp4"].block == formats.NVFP4_BLOCK
    assert set(TILES) == {layout for kind in KINDS.values() for layout in kind.layouts[1:]} - {
        "col"
    }


def test_session_method_is_the_function() -> None:
    call = call_of("fp8_token")
    got, want = archkey.open("cpu").rmsnorm_quant(**call), archkey.rmsnorm_quant(**call)
    assert torch.equal(got.out.float(), want.out.float()) and torch.equal(got.scale, want.scale)


# ---- refusals

X, W = rand(4, 256), rand(256, seed=1)
VALUE, TYPE = ArgumentValueError, ArgumentTypeError
SECOND = {"x2": rand(4, 64), "x2_weight": rand(64), "x2_eps": 1e-6}
U8 = torch.zeros(4, 128, dtype=torch.uint8)


def wide(n: int, rows: int = 4) -> dict[str, Any]:
    return {"x": rand(rows, n), "weight": rand(n)}


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "x list": ("fp8_token", {"x": [[1.0]]}, TYPE, "x must be a tensor, found list"),
    "x dtype": ("fp8_token", {"x": X.double()}, TYPE, "x must be .*, found float64"),
    "x dims": ("fp8_token", {"x": rand(256)}, VALUE, r"x must be of shape \[T, N\]"),
    "x apart": ("fp8_token", {"x": rand(256, 4).t()}, VALUE, "x must be contiguous in its last"),
    "weight": ("fp8_token", {"weight": rand(8)}, VALUE, r"weight must be of shape \[256\]"),
    "eps 0": ("fp8_token", {"eps": 0.0}, VALUE, "eps must be > 0, found 0.0"),
    "eps NaN": ("fp8_token", {"eps": math.nan}, VALUE, "eps must be > 0, found nan"),
    "gradient": ("fp8_token", {"weight": rand(256).requires_grad_()}, VALUE, "requires_grad"),
    "quant": ("fp8_tokens", {}, VALUE, "found 'fp8_tokens'; did you mean 'fp8_token'"),
    "quant None": (None, {}, VALUE, "quant must be a kind that it knows, found None; known: fp8_g"),
    "mode": ("mxfp4", {"scale_mode": "rcel"}, VALUE, "did you mean 'rceil'"),
    "mode of mxfp4": ("fp8_group", {"scale_mode": "even"}, VALUE, "'even'; known: fp32, pow2"),
    "mode of fp8": ("mxfp4", {"scale_mode": "pow2"}, VALUE, "a rule of mxfp4, found 'pow2'"),
    "mode, static": ("nvfp4", {"scale_mode": "fp32"}, VALUE, "scale_mode must be None with nvfp4"),
    "layout": ("mxfp4", {"scale_layout": "shuffled"}, VALUE, "did you mean 'shuffled_gfx950'"),
    "layout of fp8": ("mxfp4", {"scale_layout": "col"}, VALUE, "a layout of mxfp4, found 'col'"),
    "layout, token": ("fp8_token", {"scale_layout": "col"}, VALUE, "found 'col'; known: row"),
    "layout, static": ("fp8_tensor", {"scale_layout": "col"}, VALUE, "a layout of fp8_tensor"),
    "layout of nvfp4": ("mxfp4", {"scale_layout": "swizzled_128x4"}, VALUE, "a layout of mxfp4"),
    "3-D shuffled": (
        "mxfp4",
        {"x": rand(4, 2, 256), "scale_layout": "shuffled_gfx950"},
        VALUE,
        r"x must be of shape \[T, N\], found 3 dimensions.*two-dimensional",
    ),
    "3-D swizzled": (
        "nvfp4",
        {"x": rand(4, 2, 256), "scale_layout": "swizzled_128x4"},
        VALUE,
        "two-dimensional",
    ),
    "odd N": ("mxfp4", wide(111), VALUE, "a multiple of 2 columns with mxfp4, found 111"),
    "N % 16": ("nvfp4", wide(200), VALUE, "a multiple of 16 columns with nvfp4, found 200"),
    "N % group": ("fp8_group", wide(200), VALUE, "group_size must be a divisor of x's 200 .* 128"),
    "group 0": ("fp8_group", {"group_size": 0}, VALUE, "group_size must be .*, found 0"),
    "group None": ("fp8_group", {"group_size": None}, VALUE, "group_size must be .*, found None"),
    "group, mxfp4": ("mxfp4", {"group_size": 64}, VALUE, "left alone with mxfp4.*32 columns"),
    "no scale": ("fp8_tensor", {"scale": None}, VALUE, "scale must be a float32 tensor of one"),
    "no global scale": ("nvfp4", {"scale": None}, VALUE, "one element with nvfp4, found None"),
    "scale float": ("fp8_tensor", {"scale": 0.5}, TYPE, "scale must be a tensor, found float"),
    "scale half": ("fp8_tensor", {"scale": one(1.0).half()}, TYPE, "scale must be float32"),
    "scale [2]": ("nvfp4", {"scale": torch.ones(2)}, VALUE, r"of one element, found \[2\]"),
    "scale [0]": ("fp8_tensor", {"scale": torch.ones(0)}, VALUE, r"of one element, found \[0\]"),
    "scale device": ("fp8_tensor", {"scale": one(1.0).to(META)}, VALUE, "scale must be on cpu"),
    "scale, dynamic": (
        "fp8_token",
        {"scale": one(1.0)},
        VALUE,
        "scale must be None with fp8",
    ),
    "scale, mxfp4": ("mxfp4", {"scale": one(1.0)}, VALUE, "scale must be None with mxfp4"),
    "out dtype": ("fp8_token", {"out": X.clone()}, TYPE, "out must be float8_e4m3fn or float8"),
    "out fp8": ("mxfp4", {"out": torch.zeros(4, 128, dtype=FN)}, TYPE, "out must be uint8"),
    "out N": ("mxfp4", {"out": U8.repeat(1, 2)}, VALUE, r"out must be of shape \[4, 128\]"),
    "out apart": ("mxfp4", {"out": U8.view(128, 4).t()}, VALUE, "out must be contiguous in"),
    "out device": ("mxfp4", {"out": U8.to(META)}, VALUE, "out must be on cpu"),
    "out overlaps": ("mxfp4", {"out": U8[:1].expand(4, 128)}, VALUE, "out must be free of"),
    "out_scale, static": ("fp8_tensor", {"out_scale": one(1.0)}, VALUE, "out_scale must be None"),
    "out_scale dtype": ("fp8_token", {"out_scale": rand(4, 1)}, TYPE, "out_scale must be float32"),
    "out_scale shape": ("fp8_token", {"out_scale": torch.ones(4)}, VALUE, r"of shape \[4, 1\]"),
    "out_scale group": ("fp8_group", {"out_scale": torch.ones(2, 4)}, VALUE, r"of shape \[4, 2\]"),
    "out_scale device": (
        "mxfp4",
        {"out_scale": torch.zeros(4, 8, dtype=torch.uint8, device=META)},
        VALUE,
        "out_scale must be on cpu",
    ),
    "out_scale uint8": (
        "nvfp4",
        {"out_scale": torch.zeros(4, 16, dtype=torch.uint8)},
        TYPE,
        "out_scale must be float8_e4m3fn, found uint8",
    ),
    "out_scale unpadded": (
        "mxfp4",
        {"scale_layout": "shuffled_gfx950", "out_scale": torch.zeros(4, 8, dtype=torch.uint8)},
        VALUE,
        r"out_scale must be of shape \[256, 8\], found \[4, 8\]",
    ),
    "out_scale pitch": (
        "nvfp4",
        {"scale_layout": "swizzled_128x4", "out_scale": torch.zeros(128, 20, dtype=FN)[:, :16]},
        VALUE,
        r"out_scale must be contiguous with swizzled_128x4, found strides \(20, 1\)",
    ),
    "out_scale by row": (
        "fp8_group",
        {"scale_layout": "col", "out_scale": torch.ones(4, 2)},
        VALUE,
        r"out_scale must be contiguous along the tokens with col, found strides \(2, 1\)",
    ),
    "out_scale by column": (
        "fp8_group",
        {"out_scale": torch.ones(2, 4).t()},
        VALUE,
        "out_scale must be contiguous in its last",
    ),
    "out_scale overlaps": (
        "fp8_group",
        {"scale_layout": "col", "out_scale": torch.ones(4, 1).expand(4, 2)},
        VALUE,
        "out_scale must be free of elements that overlap",
    ),
    "residual shape": ("fp8_token", {"residual": rand(3, 256)}, VALUE, "residual must be of shape"),
    "residual dtype": ("fp8_token", {"residual": X.double()}, TYPE, "residual must be"),
    "residual overlaps": ("fp8_token", {"residual": X[:1].expand(4, 256)}, VALUE, "residual_out"),
    "no residual": ("fp8_token", {"residual": None}, VALUE, "residual_out must be None without"),
    "residual_out dtype": (
        "fp8_token",
        {"residual_out": X.float()},
        TYPE,
        "residual_out must be bfloat16 like residual, found float32",
    ),
    "y shape": ("mxfp4", {"unquantized_out": rand(4, 128)}, VALUE, "unquantized_out must be of"),
    "y dtype": ("mxfp4", {"unquantized_out": X.double()}, TYPE, "unquantized_out must be"),
    "x2 alone": ("mxfp4", {"x2_weight": None, "x2_eps": None}, VALUE, "x2_weight must be given"),
    "x2 without eps": ("mxfp4", {"x2_eps": None}, VALUE, "x2_eps must be > 0, found None"),
    "x2 eps": ("mxfp4", {"x2_eps": -1.0}, VALUE, "x2_eps must be > 0"),
    "x2 tokens": ("mxfp4", {"x2": rand(5, 64)}, VALUE, r"x2 must be of x's 4 tokens, found \[5"),
    "x2 dtype": ("mxfp4", {"x2": rand(4, 64).half()}, TYPE, "x2 must be bfloat16 like x"),
    "x2 apart": ("mxfp4", {"x2": rand(64, 4).t()}, VALUE, "x2 must be contiguous in its last"),
    "x2 device": ("mxfp4", {"x2": rand(4, 64).to(META)}, VALUE, "x2 must be on cpu"),
    "x2 weight": ("mxfp4", {"x2_weight": rand(65)}, VALUE, r"x2_weight must be of shape \[64\]"),
    "x2 weight dtype": ("mxfp4", {"x2_weight": rand(64).half()}, TYPE, "bfloat16 like weight"),
    "no x2, weight": ("mxfp4", {"x2": None}, VALUE, "x2_weight must be None without x2"),
    "no x2, out": ("mxfp4", {"x2": None, "x2_weight": None}, VALUE, "x2_out must be None without"),
    "no x2, eps": (
        "mxfp4",
        {"x2": None, "x2_weight": None, "x2_out": None},
        VALUE,
        "x2_eps must be None without x2, found 1e-06",
    ),
    "x2_out shape": ("mxfp4", {"x2_out": rand(4, 65)}, VALUE, r"x2_out must be of shape \[4, 64\]"),
}


def buffers(quant: Any) -> dict[str, torch.Tensor]:
    """Every output of `call_of(quant)`, of the right shape and full of sevens."""
    kind = KINDS.get(quant, KINDS["fp8_token"])
    rows = {"residual_out": 256, "unquantized_out": 256, "x2_out": 64}
    made = {name: torch.full((4, n), 7.0, dtype=torch.bfloat16) for name, n in rows.items()}
    made["out"] = U8 + 7 if kind.packed else torch.full((4, 256), 7.0).to(FN)
    columns = {"fp8_token": 1, "fp8_group": 2, "mxfp4": 8, "nvfp4": 16}.get(quant)
    if columns is not None:
        made["out_scale"] = torch.full((4, columns), 7.0).to(getattr(torch, kind.scale_dtype))
    return made


@pytest.mark.parametrize(("quant", "change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_written(
    quant: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    residual, outputs = rand(4, 256, seed=3), buffers(quant)
    if "residual" in change and change["residual"] is not None:
        del outputs["residual_out"]  # in place
    call = call_of(quant) | SECOND | {"residual": residual} | outputs | change
    tensors = {name: t for name, t in call.items() if isinstance(t, torch.Tensor)}
    on_host = {name: t for name, t in tensors.items() if not t.is_meta}
    before = {name: t.clone() for name, t in on_host.items()}
    with pytest.raises(error, match="^rmsnorm_quant: .*" + message):
        archkey.rmsnorm_quant(**call)
    for name, kept in before.items():
        assert torch.equal(on_host[name].detach().float(), kept.detach().float()), name


@pytest.mark.parametrize("quant", KINDS)
def test_the_call_that_refusals_change_is_in_order(quant: str) -> None:
    outputs = buffers(quant)
    call = call_of(quant) | SECOND | {"residual": rand(4, 256, seed=3)} | outputs
    result = archkey.rmsnorm_quant(**call)
    for name, tensor in outputs.items():
        assert not torch.equal(tensor.float(), torch.full(tensor.shape, 7.0)), name
        assert tensor is getattr(result, "scale" if name == "out_scale" else name)


def test_one_tensor_for_two_outputs_is_refused() -> None:
    residual = rand(4, 256)
    kept, call = residual.clone(), call_of("fp8_token", residual=residual)
    with pytest.raises(VALUE, match="unquantized_out must be another tensor than residual_out"):
        archkey.rmsnorm_quant(**call, unquantized_out=residual)
    second = {"x2": rand(4, 256), "x2_weight": W, "x2_eps": 1e-6, "x2_out": residual}
    with pytest.raises(VALUE, match="x2_out must be another tensor"):
        archkey.rmsnorm_quant(**call, **second)
    assert torch.equal(residual, kept)


@pytest.mark.parametrize(("target", "dtype"), [("rocm_gfx942", FN), ("rocm_gfx950", FNUZ)])
def test_fp8_of_another_device_is_refused(target: str, dtype: torch.dtype) -> None:
    spy, out = Spy(OPERATOR, target), torch.full((4, 256), 7.0).to(dtype)
    with pytest.raises(TYPE, match="out must be float8_e4m3fn.* on this device.*do not view"):
        spy(**call_of("fp8_token"), out=out)
    assert spy.problem is None and bool((out.float() == 7).all())


@pytest.mark.parametrize(
    ("quant", "capability"), [("fp8_group", "fp8"), ("mxfp4", "mxfp4"), ("nvfp4", "nvfp4")]
)
def test_what_the_device_lacks_is_unsupported(quant: str, capability: str) -> None:
    facts = [_fakes.capability(name, "none") for name in ("fp8", "mxfp4", "nvfp4")]
    plugin = _fakes.plugin(capabilities=facts)
    loaded = _fakes.Loaded((plugin, _fakes.last_resort("rmsnorm_quant")), ())
    spy = Spy(OPERATOR, Session(_fakes.card(), _fakes.Settings(), loaded=loaded))
    outputs = {name: t for name, t in buffers(quant).items() if name in ("out", "out_scale")}
    before = {name: t.clone() for name, t in outputs.items()}
    why = rf"found '{quant}'. Its capability {capability} is none \(fake data sheet\): because the"
    with pytest.raises(Unsupported, match=why):
        spy(**call_of(quant), **outputs)
    assert spy.problem is None
    assert all(torch.equal(t.float(), before[name].float()) for name, t in outputs.items())

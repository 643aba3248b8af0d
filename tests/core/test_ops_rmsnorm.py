# SPDX-License-Identifier: Apache-2.0
"""RMSNorm's contract: what is refused, before anything is written, and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import archkey
from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.ops.rmsnorm import RmsNormProblem
from archkey.session import Session

SENTINEL = 7.0


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The formula in float64."""
    x, weight = x.double(), weight.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


X, W = rand(4, 8), rand(8, seed=1)
META = torch.device("meta")

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "columns apart": (
        {"x": rand(8, 4).t()},
        ArgumentValueError,
        r"x must be contiguous in its last dimension, found strides \(1, 4\)",
    ),
    "vector": ({"x": rand(8)}, ArgumentValueError, r"x must be of shape \[T, N\] or \[T, h, N\]"),
    "four dims": ({"x": rand(1, 1, 4, 8)}, ArgumentValueError, r"found \[1, 1, 4, 8\]"),
    "width 0": ({"x": rand(4, 0), "weight": rand(0)}, ArgumentValueError, "N > 0"),
    "float64": ({"x": X.double()}, ArgumentTypeError, "x must be bfloat16 or .*, found float64"),
    "int": ({"x": X.int()}, ArgumentTypeError, "found int32"),
    "no weight": ({"weight": None}, ArgumentTypeError, "weight must be a tensor, found NoneType"),
    "weight size": ({"weight": rand(7)}, ArgumentValueError, r"weight must be of shape \[8\]"),
    "weight dims": ({"weight": rand(1, 8)}, ArgumentValueError, r"weight .* found \[1, 8\]"),
    "weight apart": ({"weight": rand(16)[::2]}, ArgumentValueError, "weight must be contiguous"),
    "weight dtype": ({"weight": W.double()}, ArgumentTypeError, "weight .* found float64"),
    "weight device": (
        {"weight": W.to(META)},
        ArgumentValueError,
        "weight must be on cpu like .*, found a tensor on meta",
    ),
    "eps 0": ({"eps": 0.0}, ArgumentValueError, "eps must be > 0, found 0.0"),
    "eps negative": ({"eps": -1e-6}, ArgumentValueError, "eps must be > 0"),
    "eps NaN": ({"eps": math.nan}, ArgumentValueError, "eps must be > 0, found nan"),
    "out shape": ({"out": rand(4, 9)}, ArgumentValueError, r"out must be of shape \[4, 8\]"),
    "out dtype": ({"out": X.long()}, ArgumentTypeError, "out must be .*, found int64"),
    "out apart": ({"out": rand(8, 4).t()}, ArgumentValueError, "out must be contiguous"),
    "out device": ({"out": X.to(META)}, ArgumentValueError, "out must be on cpu"),
    "gradient": (
        {"weight": W.clone().requires_grad_()},
        ArgumentValueError,
        "requires_grad=True. archkey is for inference",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_written(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    x, residual = X.clone(), X.clone()
    call: dict[str, Any] = {"x": x, "weight": W, "eps": 1e-6, "out": torch.full((4, 8), SENTINEL)}
    call |= change
    with pytest.raises(error, match="^rmsnorm: .*" + message):
        archkey.rmsnorm(**call)
    kept = call["out"]
    if "out" not in change:
        assert torch.equal(kept, torch.full((4, 8), SENTINEL))
    # The in-place form, whose outputs are its inputs.
    del call["out"]
    call |= {"x": x, "residual": residual, "weight": W, "eps": 1e-6, **change}
    with pytest.raises(error, match="^fused_add_rmsnorm: .*" + message):
        archkey.fused_add_rmsnorm(**call)
    assert torch.equal(x, X) and torch.equal(residual, X)


ADD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no residual": ({"residual": None}, ArgumentTypeError, "residual must be a tensor, found None"),
    "residual shape": (
        {"residual": rand(3, 8)},
        ArgumentValueError,
        r"residual must be of shape \[4, 8\], found \[3, 8\]",
    ),
    "residual dims": ({"residual": rand(2, 2, 8)}, ArgumentValueError, r"found \[2, 2, 8\]"),
    "residual dtype": ({"residual": X.double()}, ArgumentTypeError, "residual .* found float64"),
    "residual apart": (
        {"residual": rand(8, 4).t()},
        ArgumentValueError,
        "residual must be contiguous in its last dimension",
    ),
    "residual device": ({"residual": X.to(META)}, ArgumentValueError, "residual must be on cpu"),
    "residual in place overlaps": (
        {"residual": rand(1, 8).expand(4, 8), "residual_out": None},
        ArgumentValueError,
        "residual_out must be free of elements that overlap",
    ),
    "sum shape": (
        {"residual_out": rand(4, 9)},
        ArgumentValueError,
        r"residual_out must be of shape \[4, 8\]",
    ),
    "sum dtype": (
        {"residual_out": X.half()},
        ArgumentTypeError,
        "residual_out must be float32 like residual, found float16",
    ),
    "sum apart": ({"residual_out": rand(8, 4).t()}, ArgumentValueError, "residual_out must be con"),
    "sum device": ({"residual_out": X.to(META)}, ArgumentValueError, "residual_out must be on cpu"),
    "out overlaps": (
        {"out": rand(1, 8).expand(4, 8)},
        ArgumentValueError,
        "out must be free of elements that overlap",
    ),
    "x in place overlaps": (
        {"x": rand(1, 8).expand(4, 8), "out": None},
        ArgumentValueError,
        r"out must be free of elements that overlap, found strides \(0, 1\)",
    ),
    "weight": ({"weight": rand(9)}, ArgumentValueError, r"weight must be of shape \[8\]"),
    "eps": ({"eps": -1.0}, ArgumentValueError, "eps must be > 0, found -1.0"),
}


@pytest.mark.parametrize(("change", "error", "message"), ADD.values(), ids=ADD)
def test_fused_add_refused_and_nothing_written(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    outputs = {name: torch.full((4, 8), SENTINEL) for name in ("out", "residual_out")}
    call: dict[str, Any] = {"x": X.clone(), "residual": X.clone(), "weight": W, "eps": 1e-6}
    call |= outputs | change
    given = {name: t for name, t in call.items() if isinstance(t, torch.Tensor) and not t.is_meta}
    before = {name: t.clone() for name, t in given.items()}
    with pytest.raises(error, match="^fused_add_rmsnorm: .*" + message):
        archkey.fused_add_rmsnorm(**call)
    for name, kept in before.items():
        assert torch.equal(given[name], kept), name


QK: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weight without q": (
        {"q": None, "q_eps": None},
        ArgumentValueError,
        "q_weight.* must be None when q is None",
    ),
    "eps without q": (
        {"q": None, "q_weight": None},
        ArgumentValueError,
        "q_eps.* must be None when q is None",
    ),
    "out without q": (
        {"q": None, "q_weight": None, "q_eps": None, "q_out": X},
        ArgumentValueError,
        "q_out.* must be None when q is None",
    ),
    "q without weight": ({"q_weight": None}, ArgumentValueError, "q_weight must be given with q"),
    "q without eps": ({"q_eps": None}, ArgumentValueError, "q_eps must be .* given with it"),
    "q_eps": ({"q_eps": 0.0}, ArgumentValueError, "q_eps must be > 0"),
    "k_eps": ({"k_eps": math.nan}, ArgumentValueError, "k_eps must be > 0"),
    "dtypes": ({"q": X.half()}, ArgumentTypeError, "q.* found float16"),
    "weights": ({"q_weight": W.half()}, ArgumentTypeError, "q_weight.* found .*float16"),
    "outputs": ({"q_out": X.half()}, ArgumentTypeError, "q_out.* found .*float16"),
    "tokens": ({"q": rand(3, 8)}, ArgumentValueError, r"q must be of k's 4 tokens.* \[3, 8\]"),
    "device": ({"k_weight": W.to(META)}, ArgumentValueError, "k_weight must be on cpu"),
    "columns apart": ({"k": rand(8, 4).t()}, ArgumentValueError, "k must be contiguous"),
    "columns of q apart": ({"q": rand(8, 4).t()}, ArgumentValueError, "q must be contiguous"),
    "no k": ({"k": None, "k_out": None}, ArgumentTypeError, "k must be a tensor, found NoneType"),
    "q_eps NaN": ({"q_eps": math.nan}, ArgumentValueError, "q_eps must be > 0, found nan"),
    "k_eps negative": ({"k_eps": -1e-6}, ArgumentValueError, "k_eps must be > 0"),
    "k_weight size": ({"k_weight": rand(7)}, ArgumentValueError, r"k_weight .* shape \[8\]"),
    "q_weight size": ({"q_weight": rand(9)}, ArgumentValueError, r"q_weight .* shape \[8\]"),
    "q_weight device": ({"q_weight": W.to(META)}, ArgumentValueError, "q_weight must be on cpu"),
    "q_out shape": ({"q_out": rand(4, 7)}, ArgumentValueError, r"q_out .* shape \[4, 8\]"),
    "k_out shape": ({"k_out": rand(3, 8)}, ArgumentValueError, r"k_out .* shape \[4, 8\]"),
    "k_out dtype": ({"k_out": X.int()}, ArgumentTypeError, "k_out must be .*, found int32"),
    "q_out overlaps": (
        {"q_out": rand(1, 8).expand(4, 8)},
        ArgumentValueError,
        "q_out must be free of elements that overlap",
    ),
    "gradient": (
        {"k_weight": W.clone().requires_grad_()},
        ArgumentValueError,
        "requires_grad=True. archkey is for inference",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), QK.values(), ids=QK)
def test_fused_qk_refused_and_nothing_written(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    k_out = torch.full((4, 8), SENTINEL)
    call: dict[str, Any] = {"q": X, "q_weight": W, "q_eps": 1e-6}
    call |= {"k": X, "k_weight": W, "k_eps": 1e-6}
    with pytest.raises(error, match="^fused_qk_rmsnorm: .*" + message):
        archkey.fused_qk_rmsnorm(**call | {"k_out": k_out} | change)
    assert torch.equal(k_out, torch.full((4, 8), SENTINEL))


def test_fused_qk_refuses_one_tensor_for_both_outputs() -> None:
    both = torch.full((4, 8), SENTINEL)
    with pytest.raises(ArgumentValueError, match="q_out must be another tensor than k_out"):
        archkey.fused_qk_rmsnorm(X, W, 1e-6, X, W, 1e-6, q_out=both, k_out=both)
    assert torch.equal(both, torch.full((4, 8), SENTINEL))


@pytest.mark.parametrize(
    "call",
    [
        lambda r: archkey.fused_add_rmsnorm(X.clone(), r, W, out=r),
        lambda r: archkey.fused_add_rmsnorm(r, r, W),
        lambda r: archkey.rmsnorm(X, W, out=r[:1].expand(4, 8)),
    ],
    ids=["out is residual", "x is residual", "out expanded"],
)
def test_outputs_that_overlap_are_refused(call: Callable[[torch.Tensor], Any]) -> None:
    residual = X.clone()
    with pytest.raises(ArgumentValueError):
        call(residual)
    assert torch.equal(residual, X)


def test_what_is_no_tensor_is_named() -> None:
    for x in ([[1.0]], None):
        with pytest.raises(ArgumentTypeError, match="rmsnorm: x must be a tensor, found"):
            archkey.rmsnorm(x, W)  # type: ignore[arg-type]


# ---- accepted

SHAPES = pytest.mark.parametrize("shape", [(1, 8), (3, 111), (2, 3, 40), (5, 2112)], ids=str)


@SHAPES
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.float16], ids=str)
def test_values_are_those_of_the_formula(
    shape: tuple[int, ...], out_dtype: torch.dtype | None
) -> None:
    x, w = rand(*shape, dtype=torch.bfloat16), rand(shape[-1], seed=1)
    out = None if out_dtype is None else torch.empty(shape, dtype=out_dtype)
    found = archkey.rmsnorm(x, w, 1e-5, out=out)
    assert found.dtype == (out_dtype or torch.bfloat16)
    assert out is None or found is out
    torch.testing.assert_close(found, norm(x, w, 1e-5).to(found.dtype))


@SHAPES
def test_in_place_is_the_same(shape: tuple[int, ...]) -> None:
    x, r, w = rand(*shape), rand(*shape, seed=2), rand(shape[-1], seed=1)
    apart = archkey.fused_add_rmsnorm(
        x, r, w, out=torch.empty_like(x), residual_out=torch.empty_like(r)
    )
    torch.testing.assert_close(apart[0], norm(x + r, w).float())
    x2, r2 = x.clone(), r.clone()
    out, total = archkey.fused_add_rmsnorm(x2, r2, w)
    assert out is x2 and total is r2
    assert torch.equal(out, apart[0]) and torch.equal(total, apart[1]) and torch.equal(total, x + r)
    alone = x.clone()
    assert archkey.rmsnorm(alone, w, out=alone) is alone
    assert torch.equal(alone, archkey.rmsnorm(x, w))


def test_slices_of_a_row_of_2112_are_read_and_written_in_place() -> None:
    """DeepSeek's fused projection: q_a 1536, kv_a 512, k_pe 64 in one row."""
    row = rand(3, 2112)
    before = row.clone()
    q, k = row[:, :1536], row[:, 1536:2048]
    q_w, k_w = rand(1536, seed=1), rand(512, seed=2)
    q_out, k_out = archkey.fused_qk_rmsnorm(q, q_w, 1e-6, k, k_w, 1e-5, q_out=q, k_out=k)
    assert q_out is q and k_out is k
    torch.testing.assert_close(row[:, :1536], norm(before[:, :1536], q_w).float())
    torch.testing.assert_close(row[:, 1536:2048], norm(before[:, 1536:2048], k_w, 1e-5).float())
    assert torch.equal(row[:, 2048:], before[:, 2048:]), "k_pe is nobody's output"


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, :, :40],
        lambda t: t[:, 1:, :40],
        lambda t: t.transpose(0, 1),
        lambda t: t[::2],
    ],
    ids=["narrow", "fewer heads", "heads first", "every other token"],
)
def test_strided_heads(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """`[T, h, N]` whose rows lie anywhere."""
    x, out = view(rand(6, 4, 64)), view(torch.full((6, 4, 64), SENTINEL))
    w = rand(x.shape[-1], seed=1)
    archkey.rmsnorm(x, w, out=out)
    torch.testing.assert_close(out, norm(x, w).float())


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (4, 0, 8)], ids=str)
def test_no_tokens_give_no_rows(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert archkey.rmsnorm(x, W).shape == shape
    out, total = archkey.fused_add_rmsnorm(x, x.clone(), W)
    assert out.shape == total.shape == shape
    assert archkey.fused_qk_rmsnorm(None, None, None, x, W, 1e-6)[1].shape == shape


def test_gradients_are_refused_only_where_they_would_be_needed() -> None:
    w = W.clone().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(archkey.rmsnorm(X, w), norm(X, W).float())
    with torch.inference_mode():
        assert archkey.rmsnorm(X, w).shape == X.shape


@pytest.fixture
def problem_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RmsNormProblem]:
    """The Problem that a call of rmsnorm builds."""

    def problem_of(*args: Any, **kwargs: Any) -> RmsNormProblem:
        seen: list[RmsNormProblem] = []

        def launcher(session: Session, problem: RmsNormProblem) -> Callable[..., None]:
            seen.append(problem)
            return lambda *arguments: None

        with monkeypatch.context() as patch:
            patch.setattr(Session, "launcher", launcher)
            archkey.rmsnorm(*args, **kwargs)
        (problem,) = seen
        return problem

    return problem_of


def test_the_problem_knows_all_that_decides_the_code(
    problem_of: Callable[..., RmsNormProblem],
) -> None:
    x = rand(4, 64, dtype=torch.bfloat16)
    w = rand(64, seed=1)
    assert problem_of(x, w) == RmsNormProblem("bfloat16", "float32", "bfloat16", 64)
    assert problem_of(x, w, out=torch.empty(4, 64)).out_dtype == "float32"
    assert problem_of(x, w, cast_before_weight=True).cast_before_weight
    assert problem_of(rand(4, 3, 64), w).heads == 1, "evenly spaced rows are rows"
    assert problem_of(rand(4, 5, 64)[:, :3], w).heads == 3
    assert not problem_of(rand(4, 65)[:, 1:], w).aligned
    assert not problem_of(rand(4, 72)[:, :64], w).aligned, "row stride 72 is no multiple of 16"


@pytest.mark.parametrize("tokens", [1, 2, 33, 1000])
def test_the_number_of_tokens_is_not_in_the_problem(
    tokens: int, problem_of: Callable[..., RmsNormProblem]
) -> None:
    w = rand(64, seed=1)
    assert problem_of(rand(tokens, 64), w) == RmsNormProblem("float32", "float32", "float32", 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: {"eps": 0.0}, "eps must be > 0"),
        (lambda out: {"weight": W.clone().requires_grad_()}, "requires_grad"),
        (lambda out: {"residual_out": out}, "other memory"),
        (lambda out: {"residual_out": out[:]}, "other memory"),
    ],
    ids=["eps", "gradient", "one output for both", "one memory for both"],
)
def test_a_call_like_one_that_passed_is_checked_all_the_same(
    change: Callable[[torch.Tensor], dict[str, Any]], message: str
) -> None:
    """Its metadata are remembered; what is not in them has to be read each time."""
    out, total = torch.full((4, 8), SENTINEL), torch.full((4, 8), SENTINEL)
    call: dict[str, Any] = {"x": X, "residual": X.clone(), "weight": W, "eps": 1e-6}
    archkey.fused_add_rmsnorm(**call, out=torch.empty(4, 8), residual_out=torch.empty(4, 8))
    call |= {"out": out, "residual_out": total} | change(out)
    with pytest.raises(ArgumentValueError, match=message):
        archkey.fused_add_rmsnorm(**call)
    for untouched in (out, total):
        assert torch.equal(untouched, torch.full((4, 8), SENTINEL))


@pytest.mark.parametrize("name", ["out", "residual_out"])
def test_an_output_that_is_no_tensor_is_refused_by_name(name: str) -> None:
    x = torch.ones(2, 8)
    with pytest.raises(ArgumentTypeError, match=f"{name} must be a tensor"):
        archkey.fused_add_rmsnorm(x, x.clone(), x[0], 1e-6, **{name: "x"})

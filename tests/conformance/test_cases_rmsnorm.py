# SPDX-License-Identifier: Apache-2.0
"""The cases of RMSNorm: right kernels pass them, and each wrong one fails where it is named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance import _wrong
from tests.conformance._wrong import Wrong, edges, in_32_bits, name_of, nothing_past_2_31, packed

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import random_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS

FAMILY = ("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm")
TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
# NaN and infinity are inputs here; numpy, which interprets, warns of them.
QUIET = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def test_names_are_unique() -> None:
    names = Counter(name_of(case) for case in edges(*FAMILY))
    assert names.most_common(1)[0][1] == 1


@pytest.mark.parametrize("case", edges(*FAMILY), ids=name_of)
def test_the_reference_passes(case: Case) -> None:
    result = judge(archkey.open("cpu"), case)
    assert result.passed, result


# One plugin for warps and one for wavefronts; the others run the same body with other tiles.
@QUIET
@pytest.mark.parametrize("target", ["cuda_sm90", "rocm_gfx942"])
@pytest.mark.parametrize("operator", FAMILY)
def test_the_interpreted_kernels_pass(target: str, operator: str) -> None:
    session = archkey.open(target)
    for case in edges(operator):
        result = judge(session, case, kernel=f"{target}:triton", level="interpreted")
        assert result.passed, result


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_calls_of_interpreted_kernels_pass(target: str, data: Any) -> None:
    case = data.draw(st.one_of(*(random_of(OPERATORS[name]) for name in FAMILY)))
    result = judge(archkey.open(target), case, kernel=f"{target}:triton", level="interpreted")
    assert result.passed, result


@pytest.mark.parametrize("operator", FAMILY)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_random_calls_of_the_reference_pass(operator: str, data: Any) -> None:
    result = judge(archkey.open("cpu"), data.draw(random_of(OPERATORS[operator])))
    assert result.passed, result


# ---- wrong kernels


def _formula(y: Any) -> Wrong:
    """rmsnorm by another formula: `y(x, eps, rms)`, all float32."""

    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        x = given["x"].float() + (given["residual"].float() if "residual" in given else 0)
        weight = given["weight"].float() + given["weight_bias"]
        return (y(x, given["eps"]) * weight, *((x,) if "residual" in given else ()))

    return wrong


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True)


def _next_power(x: torch.Tensor) -> float:
    return x.shape[-1] / (1 << (x.shape[-1] - 1).bit_length())


def _half_range(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Squares in float16."""
    return x * torch.rsqrt(x.half().square().float().mean(-1, keepdim=True) + eps)


def _rounded_sum(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    total = (given["x"].float() + given["residual"].float()).to(given["residual"].dtype)
    return right(**given | {"x": total, "residual": torch.zeros_like(total)})


def _sum_first(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """residual_out is stored before the norm reads x and residual again."""
    outputs["residual_out"].copy_(given["x"].float() + given["residual"].float())
    return right(**given)[0], None


def _not_last(name: str) -> Wrong:
    """The last row of an output stays unwritten."""

    def wrong(right: Any, given: dict[str, Any], outputs: dict[str, Any]) -> Any:
        results = right(**given)
        at = list(outputs).index(name)
        outputs[name][:-1] = results[at][:-1].to(outputs[name].dtype)
        return (*results[:at], None, *results[at + 1 :])

    return wrong


def _halves_swapped(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    return right(**given | {"q_eps": given["k_eps"], "k_eps": given["q_eps"]})


def _one_head_stride(x: torch.Tensor) -> torch.Tensor:
    """Rows of heads taken to be evenly spaced, as far apart as the heads of a token."""
    if x.dim() == 2:
        return x
    return x.as_strided(x.shape, (x.stride(1) * x.shape[1], x.stride(1), 1))


def _nan_is_zero(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    return [y if y is None else y.nan_to_num() for y in right(**given)]


_ANY = (
    (
        "eps outside of the root",
        "eps under the root",
        _formula(lambda x, eps: x / (_mean(x).sqrt() + eps)),
    ),
    ("no eps", "eps alone", _formula(lambda x, eps: x / _mean(x).sqrt())),
    ("the default eps", "eps of 1", _wrong.given(eps=1e-6)),
    (
        "mean over a power of two",
        "no power of two",
        _formula(lambda x, eps: x * torch.rsqrt(_mean(x) * _next_power(x) + eps)),
    ),
    (
        "mean subtracted",
        "mean not zero",
        _formula(
            lambda x, eps: (
                (x - x.mean(-1, keepdim=True))
                * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + eps)
            )
        ),
    ),
    (
        "last column lost",
        "only the last column",
        _formula(lambda x, eps: x * torch.rsqrt(_mean(x[..., :-1]) + eps)),
    ),
    ("squares in float16", "range of float16", _formula(_half_range)),
    ("last row unwritten", "rows that fill no tile", _not_last("out")),
    ("x read as contiguous", "strided rows", _wrong.given(x=packed)),
    ("x read as evenly spaced", "heads apart", _wrong.given(x=_one_head_stride)),
    ("weight rounded", "dtypes", _wrong.given(weight=lambda w: w.bfloat16())),
    ("no weight bias", "weight bias", _wrong.given(weight_bias=0.0)),
    (
        "biased weight rounded",
        "weight bias",
        lambda right, g, _: right(
            **g | {"weight": (g["weight"] + g["weight_bias"]).bfloat16(), "weight_bias": 0.0}
        ),
    ),
    ("flag ignored", "rounded before the weight", _wrong.given(cast_before_weight=False)),
    ("always rounded", "not rounded before", _wrong.given(cast_before_weight=True)),
    ("NaN turned into zero", "NaN and infinity", _nan_is_zero),
    ("zero over zero", "rows of zeros", _formula(lambda x, eps: x / _mean(x).sqrt())),
    ("x at 32-bit offsets", "rows past element 2^31", _wrong.given(x=in_32_bits)),
    (
        "first row everywhere not seen",
        "one row for all",
        _wrong.given(x=lambda x: packed(x) if x.dim() == 2 else x),
    ),
)

MISTAKES = (
    *((operator, *row) for operator in FAMILY[:2] for row in _ANY),
    ("rmsnorm", "heads at 32-bit offsets", "heads past element 2^31", _wrong.given(x=in_32_bits)),
    ("rmsnorm", "out at 32-bit offsets", "rows of out past", nothing_past_2_31("out")),
    ("fused_add_rmsnorm", "no residual", "in place", _wrong.given(residual=torch.zeros_like)),
    ("fused_add_rmsnorm", "sum rounded first", "unrounded sum", _rounded_sum),
    ("fused_add_rmsnorm", "sum stored too early", "outputs change places", _sum_first),
    ("fused_add_rmsnorm", "sum stored too early", "in place", _sum_first),
    ("fused_add_rmsnorm", "x's strides for both", "in place", _wrong.given(residual=packed)),
    (
        "fused_add_rmsnorm",
        "residual at 32 bits",
        "past element 2^31",
        _wrong.given(residual=in_32_bits),
    ),
    ("fused_add_rmsnorm", "out at 32 bits", "past element 2^31", nothing_past_2_31("out")),
    ("fused_add_rmsnorm", "sum at 32 bits", "past element 2^31", nothing_past_2_31("residual_out")),
    ("fused_qk_rmsnorm", "eps of the other half", "eps of the other half", _halves_swapped),
    ("fused_qk_rmsnorm", "k read as contiguous", "no q", _wrong.given(k=packed)),
    ("fused_qk_rmsnorm", "q read as contiguous", "q and k of one row", _wrong.given(q=packed)),
    ("fused_qk_rmsnorm", "last row of k unwritten", "heads of k alone", _not_last("k_out")),
    ("fused_qk_rmsnorm", "last row of q unwritten", "k wider than q", _not_last("q_out")),
    (
        "fused_qk_rmsnorm",
        "q's weight for k",
        "q=0-512, k=0-512",
        lambda right, g, _: right(**g | {"k_weight": g["q_weight"]}),
    ),
    (
        "fused_qk_rmsnorm",
        "q at 32-bit offsets",
        "rows past element 2^31",
        _wrong.given(q=in_32_bits),
    ),
    (
        "fused_qk_rmsnorm",
        "k at 32-bit offsets",
        "rows past element 2^31",
        _wrong.given(k=in_32_bits),
    ),
    ("fused_qk_rmsnorm", "out at 32-bit offsets", "rows of out past", nothing_past_2_31("k_out")),
)


@pytest.mark.parametrize(
    ("operator", "about", "wrong"),
    [pytest.param(op, about, wrong, id=f"{op}-{what}") for op, what, about, wrong in MISTAKES],
)
def test_a_wrong_kernel_fails_by_name(
    monkeypatch: pytest.MonkeyPatch, operator: str, about: str, wrong: Wrong
) -> None:
    assert _wrong.catching(monkeypatch, operator, wrong, about)


def test_tokens_without_heads() -> None:
    """Nothing to do, and no head to divide by where the rows are found."""
    for target in TARGETS:
        session = archkey.open(target)
        assert session.rmsnorm(torch.ones(3, 0, 64), torch.ones(64)).shape == (3, 0, 64)
        assert [p.heads for p in session.problems.values()] == [1]

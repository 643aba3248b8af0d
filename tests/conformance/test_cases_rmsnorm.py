# SPDX-License-Identifier: Apache-2.0
"""The cases of RMSNorm: interpreted kernels pass them, and each wrong one fails where named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from tests.conformance import _wrong
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    contiguous,
    edges,
    given,
    in_16_bits_of_rows,
    last_unwritten,
    packed,
    read_after_write,
    read_in_32_bits,
    strides_of,
    written_in_32_bits,
)

import archkey
from archkey.conformance.cases import random_of
from archkey.conformance.judge import judge
from archkey.ops import OPERATORS

FAMILY = ("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm")
TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
# NaN and infinity are inputs here; numpy, which interprets, warns of them.
QUIET = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


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
@drawn(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_calls_of_interpreted_kernels_pass(target: str, data: Any) -> None:
    case = data.draw(st.one_of(*(random_of(OPERATORS[name]) for name in FAMILY)))
    result = judge(archkey.open(target), case, kernel=f"{target}:triton", level="interpreted")
    assert result.passed, result


# ---- wrong kernels


def _formula(y: Any) -> Wrong:
    """rmsnorm by another formula: `y(x, eps, rms)`, all float32."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        x = inputs["x"].float() + (inputs["residual"].float() if "residual" in inputs else 0)
        weight = inputs["weight"].float() + inputs["weight_bias"]
        results = {"out": y(x, inputs["eps"]) * weight}
        return results | ({"residual_out": x} if "residual" in inputs else {})

    return wrong


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True)


def _next_power(x: torch.Tensor) -> float:
    return x.shape[-1] / (1 << (x.shape[-1] - 1).bit_length())


def _half_range(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Squares in float16."""
    return x * torch.rsqrt(x.half().square().float().mean(-1, keepdim=True) + eps)


def _rounded_sum(right: Right, inputs: Values, outputs: Values) -> Values:
    total = (inputs["x"].float() + inputs["residual"].float()).to(inputs["residual"].dtype)
    return right(**inputs | {"x": total, "residual": torch.zeros_like(total)})


def _sum_first(right: Right, inputs: Values, outputs: Values) -> Values:
    """residual_out is stored before the norm reads x and residual again."""
    outputs["residual_out"].copy_(inputs["x"].float() + inputs["residual"].float())
    return {"out": right(**inputs)["out"]}


def _halves_swapped(right: Right, inputs: Values, outputs: Values) -> Values:
    return right(**inputs | {"q_eps": inputs["k_eps"], "k_eps": inputs["q_eps"]})


def _one_head_stride(x: torch.Tensor) -> torch.Tensor:
    """Rows of heads taken to be evenly spaced, as far apart as the heads of a token."""
    if x.dim() == 2:
        return x
    return x.as_strided(x.shape, (x.stride(1) * x.shape[1], x.stride(1), 1))


def _nan_is_zero(right: Right, inputs: Values, outputs: Values) -> Values:
    return {name: result.nan_to_num() for name, result in right(**inputs).items()}


def _bias_in(inputs: Values) -> Values:
    """The weight with its bias, rounded."""
    return {"weight": (inputs["weight"] + inputs["weight_bias"]).bfloat16(), "weight_bias": 0.0}


_ANY: tuple[tuple[str, str, Wrong], ...] = (
    (
        "eps outside of the root",
        "eps under the root",
        _formula(lambda x, eps: x / (_mean(x).sqrt() + eps)),
    ),
    ("no eps", "eps alone", _formula(lambda x, eps: x / _mean(x).sqrt())),
    ("the default eps", "eps of 1", given(eps=1e-6)),
    (
        "mean over a power of two",
        "width of no power of two",
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
    ("squares in float16", "squares past the range of float16", _formula(_half_range)),
    ("last row unwritten", "rows that fill no tile", last_unwritten("out")),
    ("x read as contiguous", "strided rows", contiguous("x")),
    ("x read as evenly spaced", "heads apart", given(x=_one_head_stride)),
    ("weight rounded", "dtypes", given(weight=lambda w: w.bfloat16())),
    ("no weight bias", "weight bias", given(weight_bias=0.0)),
    (
        "biased weight rounded",
        "weight bias",
        lambda right, inputs, outputs: right(**inputs | _bias_in(inputs)),
    ),
    ("flag ignored", "rounded before the weight", given(cast_before_weight=False)),
    ("always rounded", "not rounded before the weight", given(cast_before_weight=True)),
    ("NaN turned into zero", "NaN and infinity", _nan_is_zero),
    ("zero over zero", "rows of zeros", _formula(lambda x, eps: x / _mean(x).sqrt())),
    ("x at 32-bit offsets", "far rows", read_in_32_bits("x")),
    (
        "first row everywhere not seen",
        "one row for all",
        given(x=lambda x: packed(x) if x.dim() == 2 else x),
    ),
    ("second read after the write", "out is x", read_after_write("out")),
    ("rows past the grid", "131072 rows", in_16_bits_of_rows("out")),
)

_OWN_WAY = "each heads apart in its own way"

MISTAKES: tuple[Mistake, ...] = (
    *((operator, *row) for operator in FAMILY[:2] for row in _ANY),
    ("rmsnorm", "out written like x", "strided rows", strides_of("out", "x")),
    ("rmsnorm", "heads at 32-bit offsets", "far heads", read_in_32_bits("x")),
    ("rmsnorm", "out at 32-bit offsets", "far out", written_in_32_bits("out")),
    ("fused_add_rmsnorm", "no residual", "in place", given(residual=torch.zeros_like)),
    ("fused_add_rmsnorm", "sum rounded first", "norm of the unrounded sum", _rounded_sum),
    ("fused_add_rmsnorm", "sum stored too early", "the outputs change places", _sum_first),
    ("fused_add_rmsnorm", "sum stored too early", "in place", _sum_first),
    ("fused_add_rmsnorm", "x's strides for both", "in place", contiguous("residual")),
    (
        "fused_add_rmsnorm",
        "residual at 32 bits",
        "far rows",
        read_in_32_bits("residual"),
    ),
    ("fused_add_rmsnorm", "out at 32 bits", "far rows", written_in_32_bits("out")),
    ("fused_add_rmsnorm", "sum at 32 bits", "far rows", written_in_32_bits("residual_out")),
    *(
        ("fused_add_rmsnorm", "heads at 32 bits", "far heads", wrong)
        for wrong in (
            read_in_32_bits("x"),
            read_in_32_bits("residual"),
            written_in_32_bits("out"),
            written_in_32_bits("residual_out"),
        )
    ),
    *(
        ("fused_add_rmsnorm", f"{name} {do} like {other}", "in place", strides_of(name, other))
        for name, do, other in (
            ("residual", "read", "x"),
            ("residual_out", "written", "out"),
        )
    ),
    *(
        ("fused_add_rmsnorm", f"heads of {name} like {other}'s", _OWN_WAY, strides_of(*pair, 1))
        for pair in (("residual", "x"), ("out", "x"), ("residual_out", "residual"))
        for name, other in (pair,)
    ),
    (
        "fused_add_rmsnorm",
        "sum past the grid",
        "131072 rows",
        in_16_bits_of_rows("residual_out"),
    ),
    ("fused_qk_rmsnorm", "k past the grid", "131072 rows", in_16_bits_of_rows("k_out")),
    ("fused_qk_rmsnorm", "second read after the write", "in place", read_after_write("q_out")),
    *(
        ("fused_qk_rmsnorm", f"{name} like {other}", "strided", strides_of(name, other))
        for name, other in (("k", "q"), ("k_out", "q_out"))
    ),
    *(
        ("fused_qk_rmsnorm", "heads at 32 bits", "far heads", wrong)
        for wrong in (
            read_in_32_bits("q"),
            read_in_32_bits("k"),
            written_in_32_bits("q_out"),
            written_in_32_bits("k_out"),
        )
    ),
    ("fused_qk_rmsnorm", "eps of the other half", "eps of the other half", _halves_swapped),
    ("fused_qk_rmsnorm", "k read as contiguous", "no q", contiguous("k")),
    ("fused_qk_rmsnorm", "q read as contiguous", "q and k of one row", contiguous("q")),
    ("fused_qk_rmsnorm", "last row of k unwritten", "heads of k alone", last_unwritten("k_out")),
    ("fused_qk_rmsnorm", "last row of q unwritten", "k wider than q", last_unwritten("q_out")),
    (
        "fused_qk_rmsnorm",
        "q's weight for k",
        "eps of the other half: q=0-512, k=0-512",
        lambda right, inputs, outputs: right(**inputs | {"k_weight": inputs["q_weight"]}),
    ),
    (
        "fused_qk_rmsnorm",
        "q at 32-bit offsets",
        "far rows",
        read_in_32_bits("q"),
    ),
    (
        "fused_qk_rmsnorm",
        "k at 32-bit offsets",
        "far rows",
        read_in_32_bits("k"),
    ),
    ("fused_qk_rmsnorm", "out at 32-bit offsets", "far out", written_in_32_bits("k_out")),
)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)


def test_tokens_without_heads() -> None:
    """Nothing to do, and no head to divide by where the rows are found."""
    for target in TARGETS:
        session = archkey.open(target)
        assert session.rmsnorm(torch.ones(3, 0, 64), torch.ones(64)).shape == (3, 0, 64)
        assert [p.heads for p in session.problems.values()] == [1]

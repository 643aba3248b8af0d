# SPDX-License-Identifier: Apache-2.0
"""What mxfp4_linear refuses, and that nothing was written when it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._linear import BF16, U8, K, N, call_of, packed_call, rand, weights

import archkey
from archkey.errors import ArgumentTypeError, ArgumentValueError

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x of integers": ({"x": torch.zeros(2, K, dtype=torch.int32)}, ArgumentTypeError, "x must"),
    "x of doubles": ({"x": torch.zeros(2, K).double()}, ArgumentTypeError, "x must"),
    "x without dimensions": ({"x": torch.zeros(())}, ArgumentValueError, r"x must.*\[.., K\]"),
    "x of another width": ({"x": torch.zeros(2, 64)}, ArgumentValueError, "x must.*96"),
    "x by columns": ({"x": torch.zeros(K, 2).T}, ArgumentValueError, "x must.*contiguous"),
    "x in four dimensions, apart": (
        {"x": torch.zeros(2, 4, 3, K)[:, :3]},
        ArgumentValueError,
        "x must be evenly spaced",
    ),
    "packed x without scales": (
        {"x": torch.zeros(2, K // 2, dtype=U8)},
        ArgumentValueError,
        "x_scale must be given",
    ),
    "scales of a float x": (
        {"x_scale": torch.zeros(2, 3, dtype=U8)},
        ArgumentValueError,
        "x_scale must be None",
    ),
    "a layout of a float x": (
        {"x_scale_layout": "shuffled_gfx950"},
        ArgumentValueError,
        "x_scale_layout must be left alone",
    ),
    "an unknown layout": (
        {"x_scale_layout": "shuffled"},
        ArgumentValueError,
        "x_scale_layout must.*shuffled_gfx950",
    ),
    "weight of floats": ({"weight": torch.zeros(N, K)}, ArgumentTypeError, "weight must"),
    "weight of three dimensions": (
        {"weight": torch.zeros(1, N, K // 2, dtype=U8)},
        ArgumentValueError,
        "weight must",
    ),
    "no weight": ({"weight": torch.zeros(0, K // 2, dtype=U8)}, ArgumentValueError, "weight must"),
    "weight by columns": (
        {"weight": torch.zeros(K // 2, N, dtype=U8).T},
        ArgumentValueError,
        "weight must.*contiguous",
    ),
    "scales of floats": (
        {"weight_scale": torch.zeros(N, 3)},
        ArgumentTypeError,
        "weight_scale must",
    ),
    "scales of too few blocks": (
        {"weight_scale": torch.zeros(N, 2, dtype=U8)},
        ArgumentValueError,
        r"weight_scale must.*\[20, 3\]",
    ),
    "scales by columns": (
        {"weight_scale": torch.zeros(3, N, dtype=U8).T},
        ArgumentValueError,
        "weight_scale must.*contiguous",
    ),
    "bias of another width": ({"bias": torch.zeros(N + 1)}, ArgumentValueError, "bias must"),
    "bias of integers": (
        {"bias": torch.zeros(N, dtype=torch.int32)},
        ArgumentTypeError,
        "bias must",
    ),
    "out of another shape": ({"out": torch.zeros(3, N)}, ArgumentValueError, "out must"),
    "out of bytes": ({"out": torch.zeros(2, N, dtype=U8)}, ArgumentTypeError, "out must"),
    "out over itself": (
        {"out": torch.zeros(1, N).expand(2, N)},
        ArgumentValueError,
        "out must.*overlap",
    ),
    "out by columns": ({"out": torch.zeros(N, 2).T}, ArgumentValueError, "out must.*contiguous"),
    "out unlike out_dtype": (
        {"out": torch.zeros(2, N), "out_dtype": BF16},
        ArgumentTypeError,
        "out must be bfloat16",
    ),
    "out_dtype of bytes": ({"out_dtype": U8}, ArgumentTypeError, "out_dtype must"),
    "x with a gradient": (
        {"x": torch.zeros(2, K, requires_grad=True)},
        ArgumentValueError,
        "free of gradients",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    change, error, message = REFUSED[what]
    call = call_of(2) | change
    before = call["out"].clone() if "out" in call else None
    for _ in range(2):  # what was refused is not remembered as right
        with pytest.raises(error, match=message):
            archkey.mxfp4_linear(**call)
    assert before is None or torch.equal(call["out"], before)


REFUSED_PACKED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "scales of other rows": (
        {"x_scale": torch.zeros(3, 3, dtype=U8)},
        ArgumentValueError,
        r"x_scale must.*\[2, 3\]",
    ),
    "scales of floats": ({"x_scale": torch.zeros(2, 3)}, ArgumentTypeError, "x_scale must"),
    "shuffled scales of another size": (
        {"x_scale_layout": "shuffled_gfx950"},
        ArgumentValueError,
        r"x_scale must.*\[256, 8\]",
    ),
    "shuffled scales apart": (
        {"x_scale": torch.zeros(256, 9, dtype=U8)[:, :8], "x_scale_layout": "shuffled_gfx950"},
        ArgumentValueError,
        "x_scale must be contiguous",
    ),
    "shuffled scales of three dimensions": (
        {"x": torch.zeros(2, 1, K // 2, dtype=U8), "x_scale_layout": "shuffled_gfx950"},
        ArgumentValueError,
        "x must be of shape",
    ),
    "packed x of another width": (
        {"x": torch.zeros(2, K, dtype=U8)},
        ArgumentValueError,
        r"x must.*\[2, 48\]",
    ),
}


@pytest.mark.parametrize("what", REFUSED_PACKED)
def test_refuses_with_packed_x(what: str) -> None:
    change, error, message = REFUSED_PACKED[what]
    with pytest.raises(error, match=message):
        archkey.mxfp4_linear(**packed_call(2) | change)


_CHANGES = {
    "dtype": lambda x: x.double(),
    "stride": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "rank": lambda x: x[None, None],
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("name", ["x", "x_scale", "weight", "weight_scale", "bias", "out"])
def test_what_was_accepted_opens_no_door(name: str, change: str) -> None:
    call = packed_call(2, bias=rand(N), out=torch.empty(2, N))
    archkey.mxfp4_linear(**call)
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=f"mxfp4_linear: (x|{name})"):
        archkey.mxfp4_linear(**call | {name: _CHANGES[change](call[name])})


def test_refuses_to_write_over_x() -> None:
    call = call_of(2) | weights(K, K)
    archkey.mxfp4_linear(**call, out=torch.empty(2, K, dtype=BF16))
    with pytest.raises(ArgumentValueError, match="out must be another tensor than x"):
        archkey.mxfp4_linear(**call, out=call["x"])


@pytest.mark.parametrize("name", ["weight", "weight_scale", "x_scale", "bias", "out"])
def test_refuses_another_device(name: str) -> None:
    call = packed_call(2, bias=rand(N), out=torch.empty(2, N))
    with pytest.raises(ArgumentValueError, match=f"{name} must be on cpu"):
        archkey.mxfp4_linear(**call | {name: call[name].to("meta")})

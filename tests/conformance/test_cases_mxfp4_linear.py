# SPDX-License-Identifier: Apache-2.0
"""The cases of mxfp4_linear: each wrong kernel fails where it is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conformance import _wrong
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    contiguous,
    given,
    last_unwritten,
    read_in_32_bits,
    stored,
    written_in_32_bits,
)

OP = "mxfp4_linear"


def _swapped(codes: torch.Tensor) -> torch.Tensor:
    return (codes >> 4) | (codes << 4)


def _if_bytes(change: Any) -> Any:
    """A change of packed x; a float one stays."""
    return lambda x: change(x) if x.dtype == torch.uint8 else x


def _finite(x: torch.Tensor) -> torch.Tensor:
    """The largest number for infinity; a float x only."""
    return x.nan_to_num(nan=torch.nan) if x.is_floating_point() else x


def _rounded_to(dtype: torch.dtype) -> Any:
    return lambda x: x.to(dtype).to(x.dtype) if x.is_floating_point() else x


def _without_last_block(right: Right, inputs: Values, outputs: Values) -> Values:
    """Full blocks of 32 columns alone."""
    weight = inputs["weight"].clone()
    weight[:, weight.shape[1] // 16 * 16 :] = 0
    return right(**inputs | {"weight": weight})


def _scales_of_16(right: Right, inputs: Values, outputs: Values) -> Values:
    """A scale for 16 columns, as in NVFP4."""
    scale = inputs["weight_scale"]
    doubled = scale.repeat_interleave(2, -1)[:, : scale.shape[1]]
    return right(**inputs | {"weight_scale": doubled.contiguous()})


def _bias_of_rows(right: Right, inputs: Values, outputs: Values) -> Values:
    """Added to rows of out, not to its columns."""
    results, bias = right(**inputs | {"bias": None}), inputs["bias"].float()
    rows = bias.repeat(-(-results["out"].shape[0] // len(bias)))[: results["out"].shape[0]]
    return {"out": results["out"] + rows[:, None]}


def _not_unshuffled(right: Right, inputs: Values, outputs: Values) -> Values:
    """Shuffled scales read row by row."""
    rows, blocks = inputs["x"].shape[0], -(-inputs["x"].shape[1] // 16)
    scale = inputs["x_scale"][:rows, :blocks].contiguous()
    return right(**inputs | {"x_scale": scale, "x_scale_layout": "row"})


def _pitch_of_blocks(right: Right, inputs: Values, outputs: Values) -> Values:
    """Tiles of shuffled scales as if rows of them were not padded."""
    scale, tiles = inputs["x_scale"], inputs["x"].shape[1] * 2 // 256
    flat = scale.flatten()[: 256 * tiles * (scale.shape[0] // 32)]
    moved = torch.zeros_like(scale).flatten()
    moved[: len(flat)] = flat.roll(256)
    return right(**inputs | {"x_scale": moved.view_as(scale)})


def _first_rows_alone(most: int) -> Wrong:
    """Rows past the first tile are those of the first tile again."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        out = right(**inputs)["out"]
        return {"out": out[torch.arange(len(out)) % most]}

    return wrong


def _zero_for_nan(right: Right, inputs: Values, outputs: Values) -> Values:
    """255 read as one more power of two."""
    return {"out": right(**inputs)["out"].nan_to_num(0.0)}


_PACKED = "dtype=mxfp4"
_ROWS: tuple[tuple[str, str, Wrong], ...] = (
    ("nibbles of the weight swapped", "kinds", given(weight=_swapped)),
    ("nibbles of x swapped", f"kinds: {_PACKED}", given(x=_if_bytes(_swapped))),
    ("signs of codes dropped", "kinds", given(weight=lambda w: w & 0x77)),
    ("0.5 read as 0", "kinds", given(weight=lambda w: torch.where(w & 7 == 1, w & 0xF8, w))),
    ("scales off by one block", "kinds", given(weight_scale=lambda s: s.roll(1, -1))),
    ("scales off by one row", "kinds", given(weight_scale=lambda s: s.roll(1, 0))),
    ("scales of x off by one block", f"kinds: {_PACKED}", given(x_scale=lambda s: s.roll(1, -1))),
    ("scales of 16 columns", "kinds", _scales_of_16),
    ("scales squared", "kinds", given(weight_scale=lambda s: s * 2 - 127)),
    ("no scales", "kinds", given(weight_scale=lambda s: torch.full_like(s, 127))),
    ("scales off by a power", "kinds", given(weight_scale=lambda s: s + 1)),
    ("last block dropped", "kinds", _without_last_block),
    ("last block dropped", "sizes: k=34", _without_last_block),
    ("shuffled scales in rows", "kinds: layout=shuffled_gfx950", _not_unshuffled),
    ("tiles without padding", "few rows and many: k=288, tokens=33", _pitch_of_blocks),
    (
        "bfloat16 for float16",
        "results in float32: dtype=fp16",
        given(x=_rounded_to(torch.bfloat16)),
    ),
    (
        "bfloat16 for float32",
        "results in float32: dtype=fp32",
        given(x=_rounded_to(torch.bfloat16)),
    ),
    ("float16 for float32", "results in float32: dtype=fp32", given(x=_rounded_to(torch.float16))),
    ("out rounded first", "out of another dtype", stored(out=_rounded_to(torch.bfloat16))),
    ("no bias", "bias", given(bias=None)),
    ("bias twice", "bias", given(bias=lambda b: 2 * b)),
    ("bias of rows", "bias", _bias_of_rows),
    ("byte 0 is zero", "least scales", given(weight=torch.zeros_like)),
    ("byte 0 is 2^-126", "least scales", given(weight_scale=lambda s: s.clamp_min(1))),
    ("byte 254 is infinite", "largest scales", stored(out=lambda y: y / 0)),
    ("byte 254 is 2^126", "largest scales", given(weight_scale=lambda s: s.clamp_max(253))),
    ("NaN lost", "NaN scales", _zero_for_nan),
    ("NaN is 2^127", "NaN scales", given(weight_scale=lambda s: s.clamp_max(254))),
    ("NaN everywhere", "NaN scales", stored(out=lambda y: y * torch.nan)),
    ("infinity lost", "x not finite", given(x=_finite)),
    ("infinity is NaN", "x not finite", stored(out=lambda y: y + (y - y))),
    ("rows of the first tile", "few rows and many", _first_rows_alone(64)),
    ("rows of the first few", "few rows and many: tokens=17", _first_rows_alone(16)),
    ("x read as contiguous", "strided", contiguous("x")),
    ("weight read as contiguous", "strided", contiguous("weight")),
    ("scales read as contiguous", "strided", contiguous("weight_scale")),
    ("scales of x read as contiguous", f"strided: {_PACKED}", contiguous("x_scale")),
    ("out written as contiguous", "strided", contiguous("out")),
    ("heads read as contiguous", "heads apart", contiguous("x")),
    ("heads written as contiguous", "heads apart", contiguous("out")),
    ("one row read as many", "one row for all", contiguous("x")),
    ("last row unwritten", "sizes", last_unwritten("out")),
    ("last row unwritten", "few rows and many", last_unwritten("out")),
    ("x at 32-bit offsets", "far rows", read_in_32_bits("x")),
    ("weight at 32 bits", "far rows", read_in_32_bits("weight")),
    ("scales at 32 bits", "far rows", read_in_32_bits("weight_scale")),
    ("scales of x at 32 bits", f"far rows: {_PACKED}", read_in_32_bits("x_scale")),
    ("out at 32 bits", "far rows", written_in_32_bits("out")),
)

MISTAKES: tuple[Mistake, ...] = tuple((OP, *row) for row in _ROWS)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)

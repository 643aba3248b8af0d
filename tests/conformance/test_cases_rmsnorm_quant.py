# SPDX-License-Identifier: Apache-2.0
"""The cases of rmsnorm_quant: each wrong kernel fails where it is named."""

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
    in_16_bits_of_rows,
    last_unwritten,
    read_after_write,
    read_in_32_bits,
    stored,
    strides_of,
    written_in_32_bits,
)

from archkey.formats import encode_e2m1, pack_e2m1, shuffle_gfx950, swizzle_128x4
from archkey.reference.rmsnorm import _lay_out, _quantize

OP = "rmsnorm_quant"


def _of_y(change: Any) -> Wrong:
    """Codes and scales of another y."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        names = "quant", "scale", "group_size", "fp8_dtype", "scale_mode"
        out, scale = _quantize(
            change(results["unquantized_out"].float()), *(inputs[name] for name in names)
        )
        if scale is not None:
            scale = _lay_out(scale, inputs["quant"], inputs["scale_layout"])
        return results | {"out": out, "out_scale": scale}

    return wrong


def _nan_past_the_range(right: Right, inputs: Values, outputs: Values) -> Values:
    """A conversion that does not saturate."""
    results = right(**inputs)
    out, y = results["out"], results["unquantized_out"]
    past = (y / inputs["scale"]).abs() > torch.finfo(out.dtype).max
    return results | {"out": torch.where(past, torch.nan, out.float())}


def _zero_over_zero(right: Right, inputs: Values, outputs: Values) -> Values:
    results = right(**inputs)
    out, zeros = results["out"], (results["unquantized_out"] == 0).all(-1, keepdim=True)
    if out.dtype == torch.uint8:
        return results | {"out": torch.where(zeros, 0x77, out)}
    return results | {"out": torch.where(zeros, torch.nan, out.float())}


def _other_bytes(right: Right, inputs: Values, outputs: Values) -> Values:
    """Bytes of the other flavour of FP8."""
    name = inputs["fp8_dtype"]
    if name is None:
        return right(**inputs)
    fn, fnuz = "float8_e4m3fn", "float8_e4m3fnuz"
    results = right(**inputs | {"fp8_dtype": fnuz if name == fn else fn})
    return results | {"out": results["out"].view(torch.uint8).view(getattr(torch, name))}


def _not_laid_out(right: Right, inputs: Values, outputs: Values) -> Values:
    """Padded scales, row by row."""
    results = right(**inputs | {"scale_layout": "row"})
    scale, padded = results["out_scale"], torch.zeros_like(outputs["out_scale"])
    padded.view(torch.uint8)[: scale.shape[0], : scale.shape[1]] = scale.view(torch.uint8)
    return results | {"out_scale": padded}


def _padding(value: int) -> Wrong:
    """The padding of the scales is something else than 0."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        rows, blocks = inputs["x"].shape[0], -(-inputs["x"].shape[1] // 32)
        lay_out = shuffle_gfx950
        if inputs["quant"] == "nvfp4":
            blocks, lay_out = inputs["x"].shape[1] // 16, swizzle_128x4
        live = lay_out(torch.ones(rows, blocks, dtype=torch.uint8)).bool()
        results["out_scale"].view(torch.uint8)[~live] = value
        return results

    return wrong


def _packed_columns(right: Right, inputs: Values, outputs: Values) -> Values:
    """Columns of scales written next to each other, whatever their pitch."""
    results, out = right(**inputs), outputs["out_scale"]
    if out.dim() == 2:
        columns = out.as_strided(out.shape, (1, out.shape[0]))
        columns.copy_(results.pop("out_scale"))
    return results


def _unrounded_block_scale(right: Right, inputs: Values, outputs: Values) -> Values:
    """NVFP4 codes of y over the scale as it was before it was rounded to FP8."""
    results = right(**inputs)
    blocks = results["unquantized_out"].float().unflatten(-1, (-1, 16))
    exact = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 6
    return results | {"out": pack_e2m1(encode_e2m1(blocks / exact).flatten(-2))}


def _last_block_of_the_next_row(right: Right, inputs: Values, outputs: Values) -> Values:
    """The last block takes its scale over 32 columns, those past the row as well."""
    results = right(**inputs)
    if inputs["x"].shape[-1] % 32:
        scale = results["out_scale"].clone()
        scale[scale > 0] += 1
        results["out_scale"] = scale
    return results


def _rounded_sum(right: Right, inputs: Values, outputs: Values) -> Values:
    total = (inputs["x"].float() + inputs["residual"].float()).to(inputs["residual"].dtype)
    return right(**inputs | {"x": total, "residual": torch.zeros_like(total)})


FP8_KINDS = ("fp8_tensor", "fp8_token", "fp8_group")
EVERY = (*FP8_KINDS, "mxfp4", "nvfp4")

_ROWS: tuple[tuple[str, str, Wrong], ...] = (
    *(
        (
            "y rounded first",
            f"y not rounded first: quant={kind}",
            _of_y(lambda y: y.bfloat16().float()),
        )
        for kind in FP8_KINDS
    ),
    *(
        (
            "ties away from zero",
            f"ties: quant={kind}",
            _of_y(lambda y: y * (1 + 1e-6)),
        )
        for kind in EVERY
    ),
    *(
        (
            "ties towards zero",
            f"ties: quant={kind}",
            _of_y(lambda y: y * (1 - 1e-6)),
        )
        for kind in EVERY
    ),
    *(("cut off", f"kinds: quant={kind}", _of_y(lambda y: y * 0.97)) for kind in EVERY),
    ("no saturation", "saturation: quant=fp8_tensor", _nan_past_the_range),
    *(("other bytes", f"kinds: quant={kind}", _other_bytes) for kind in FP8_KINDS),
    ("scale multiplies", "scale of a tensor", given(scale=lambda s: 1 / s)),
    ("scale dropped", "scale of a tensor", given(scale=torch.ones_like)),
    ("scale twice", "scale of a tensor", given(scale=lambda s: s * s)),
    ("scales are powers of two", "kinds: mode=fp32", given(scale_mode="pow2")),
    ("scales are no powers of two", "kinds: mode=pow2", given(scale_mode="fp32")),
    *(
        (
            f"{wrong} for {mode}",
            f"thresholds of scales: mode={mode}",
            given(scale_mode=wrong),
        )
        for mode in ("rceil", "even", "floor", "ceil")
        for wrong in ("rceil", "even", "floor", "ceil")
        if wrong != mode
    ),
    (
        "a scale for the row",
        "groups",
        given(quant=lambda q: "fp8_token" if q == "fp8_group" else q),
    ),
    (
        "nibbles swapped",
        "kinds",
        stored(out=lambda out: (out >> 4) | (out << 4) if out.dtype == torch.uint8 else out),
    ),
    ("not shuffled", "kinds: layout=shuffled_gfx950", _not_laid_out),
    ("not swizzled", "kinds: layout=swizzled_128x4", _not_laid_out),
    ("padding of 1.0", "padded scales: quant=mxfp4", _padding(127)),
    ("padding of 1.0", "padded scales: quant=nvfp4", _padding(0x38)),
    ("pitch ignored", "columns of scales apart", _packed_columns),
    ("block scale not rounded", "kinds: quant=nvfp4", _unrounded_block_scale),
    ("columns past the row", "last block not full", _last_block_of_the_next_row),
    ("zero over zero", "rows of zeros", _zero_over_zero),
    ("NaN lost", "NaN and infinity", _of_y(lambda y: y.nan_to_num())),
    ("NaN lost in y", "y too", stored(unquantized_out=lambda y: torch.zeros_like(y))),
    ("residual ignored", "residual", given(residual=torch.zeros_like)),
    ("sum rounded first", "residual", _rounded_sum),
    (
        "x's eps for x2",
        "second norm",
        lambda right, inputs, outputs: right(**inputs | {"x2_eps": inputs["eps"]}),
    ),
    ("x2 not normed", "second norm", given(x2=lambda x: x * 3 + 1)),
    ("no weight bias", "weight bias", given(weight_bias=0.0)),
    (
        "not rounded before the weight",
        "rounded before the weight",
        given(cast_before_weight=False),
    ),
    ("default eps", "eps under the root", given(eps=1e-6)),
    ("weight rounded", "dtypes", given(weight=lambda w: w.to(torch.float8_e4m3fn).float())),
    ("x read as contiguous", "strided", contiguous("x")),
    ("residual read as contiguous", "strided", contiguous("residual")),
    ("x2 read as contiguous", "strided", contiguous("x2")),
    ("heads read as contiguous", "heads apart", contiguous("x")),
    ("last row of scales unwritten", "kinds", last_unwritten("out_scale")),
    ("last row unwritten", "one row", last_unwritten("out")),
    ("last row of the sum unwritten", "residual", last_unwritten("residual_out")),
    ("x at 32-bit offsets", "far rows", read_in_32_bits("x")),
    ("residual at 32 bits", "far rows", read_in_32_bits("residual")),
    ("x2 at 32 bits", "far rows", read_in_32_bits("x2")),
    ("out at 32 bits", "far rows", written_in_32_bits("out")),
    ("y at 32 bits", "far rows", written_in_32_bits("unquantized_out")),
    ("sum at 32 bits", "far rows", written_in_32_bits("residual_out")),
    ("x2_out at 32 bits", "far rows", written_in_32_bits("x2_out")),
    ("heads at 32 bits", "far heads", read_in_32_bits("x")),
    ("heads of codes at 32 bits", "far heads", written_in_32_bits("out")),
    *(
        (f"{name} like {other}", "each in its own way", strides_of(name, other, first))
        for name, other in (
            ("residual", "x"),
            ("residual_out", "residual"),
            ("residual_out", "x"),
            ("unquantized_out", "x"),
            ("out", "x"),
        )
        for first in (0, 1)
    ),
    ("second read after the write", "row of several blocks", read_after_write("unquantized_out")),
    ("codes past the grid", "131072 rows: mxfp4", in_16_bits_of_rows("out")),
    ("y past the grid", "131072 rows: fp8_token", in_16_bits_of_rows("unquantized_out")),
    ("scales at 32 bits", "far scales", written_in_32_bits("out_scale")),
    ("columns at 32 bits", "far scales: layout=col", written_in_32_bits("out_scale")),
)

MISTAKES: tuple[Mistake, ...] = tuple((OP, *row) for row in _ROWS)


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)

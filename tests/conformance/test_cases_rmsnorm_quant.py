# SPDX-License-Identifier: Apache-2.0
"""The cases of rmsnorm_quant: the reference passes them, and wrong kernels fail where named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance import _wrong
from tests.conformance._wrong import Wrong, edges, in_32_bits, name_of, nothing_past_2_31, packed

import archkey
from archkey.conformance.case import Case
from archkey.conformance.cases import random_of
from archkey.conformance.judge import judge
from archkey.formats import encode_e2m1, pack_e2m1, shuffle_gfx950, swizzle_128x4
from archkey.ops import OPERATORS
from archkey.reference.rmsnorm import _lay_out, _quantize

OP = "rmsnorm_quant"
FNUZ = [case for case in edges(OP) if "nvfp4" not in case.name]  # which gfx942 has not


def test_names_are_unique() -> None:
    assert Counter(name_of(case) for case in edges(OP)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("case", edges(OP), ids=name_of)
def test_the_reference_passes(case: Case) -> None:
    result = judge(archkey.open("cpu"), case)
    assert result.passed, result


def test_the_reference_passes_in_the_other_flavour_of_fp8() -> None:
    session = archkey.open("rocm_gfx942")
    for case in FNUZ:
        result = judge(session, case)
        assert result.passed, result
    assert {p.out_dtype for p in session.problems.values()} == {"float8_e4m3fnuz", "uint8"}


@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_random_calls_of_the_reference_pass(data: Any) -> None:
    result = judge(archkey.open("cpu"), data.draw(random_of(OPERATORS[OP])))
    assert result.passed, result


# ---- wrong kernels


def _of_y(change: Any) -> Wrong:
    """Codes and scales of another y."""

    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        _, _, y, *rest = right(**given)
        names = "quant", "scale", "group_size", "fp8_dtype", "scale_mode"
        out, scale = _quantize(change(y.float()), *(given[name] for name in names))
        if scale is not None:
            scale = _lay_out(scale, given["quant"], given["scale_layout"])
        return (out, scale, y, *rest)

    return wrong


def _result(name: str, change: Any) -> Wrong:
    """One output is changed."""

    def wrong(right: Any, given: dict[str, Any], outputs: dict[str, Any]) -> Any:
        results = list(right(**given))
        at = list(outputs).index(name)
        if results[at] is not None:
            results[at] = change(results[at])
        return results

    return wrong


def _nan_past_the_range(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """A conversion that does not saturate."""
    out, *rest = right(**given)
    if given["scale"] is None:
        return (out, *rest)
    most = torch.finfo(out.dtype).max
    past = (rest[1] / given["scale"]).abs() > most
    return (torch.where(past, torch.nan, out.float()), *rest)


def _zero_over_zero(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    out, *rest = right(**given)
    if out.dtype == torch.uint8:
        return (torch.where((rest[1] == 0).all(-1, keepdim=True), 0x77, out), *rest)
    return (torch.where((rest[1] == 0).all(-1, keepdim=True), torch.nan, out.float()), *rest)


def _other_bytes(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Bytes of the other flavour of FP8."""
    name = given["fp8_dtype"]
    if name is None:
        return right(**given)
    fn, fnuz = "float8_e4m3fn", "float8_e4m3fnuz"
    out, *rest = right(**given | {"fp8_dtype": fnuz if name == fn else fn})
    return (out.view(torch.uint8).view(getattr(torch, name)), *rest)


def _not_laid_out(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Padded scales, row by row."""
    results = list(right(**given | {"scale_layout": "row"}))
    rows, columns = results[1].shape
    padded = torch.zeros_like(outputs["out_scale"])
    padded.view(torch.uint8)[:rows, :columns] = results[1].view(torch.uint8)
    results[1] = padded
    return results


def _padding(value: int) -> Wrong:
    """The padding of the scales is something else than 0."""

    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        out, scale, *rest = right(**given)
        rows, blocks = given["x"].shape[0], -(-given["x"].shape[1] // 32)
        lay_out = shuffle_gfx950
        if given["quant"] == "nvfp4":
            blocks, lay_out = given["x"].shape[1] // 16, swizzle_128x4
        if given["scale_layout"] == "row":
            return (out, scale, *rest)
        live = lay_out(torch.ones(rows, blocks, dtype=torch.uint8)).bool()
        scale.view(torch.uint8)[~live] = value
        return (out, scale, *rest)

    return wrong


def _packed_columns(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Columns of scales written next to each other, whatever their pitch."""
    results = list(right(**given))
    out, scale = outputs["out_scale"], results[1]
    if given["scale_layout"] == "col" and out.dim() == 2:
        columns = out.as_strided(out.shape, (1, out.shape[0]))
        columns.copy_(scale)
        results[1] = None
    return results


def _unrounded_block_scale(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """NVFP4 codes of y over the scale as it was before it was rounded to FP8."""
    out, scale, y, *rest = right(**given)
    if given["quant"] != "nvfp4":
        return (out, scale, y, *rest)
    blocks = y.float().unflatten(-1, (-1, 16))
    exact = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 6
    return (pack_e2m1(encode_e2m1(blocks / exact).flatten(-2)), scale, y, *rest)


def _last_block_of_the_next_row(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """The last block takes its scale over 32 columns, those past the row as well."""
    out, scale, *rest = right(**given)
    if scale is not None and given["x"].shape[-1] % 32:
        scale = scale.clone()
        scale[scale > 0] += 1
    return (out, scale, *rest)


def _rounded_sum(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    if given["residual"] is None:
        return right(**given)
    total = (given["x"].float() + given["residual"].float()).to(given["residual"].dtype)
    results = list(right(**given | {"x": total, "residual": torch.zeros_like(total)}))
    return results


def _unwritten(name: str) -> Wrong:
    """The last row of an output stays as it was."""

    def wrong(right: Any, given: dict[str, Any], outputs: dict[str, Any]) -> Any:
        results = list(right(**given))
        at = list(outputs).index(name)
        out, result = outputs[name], results[at]
        if out is not None:
            out[:-1] = result[:-1].to(out.dtype)
            results[at] = None
        return results

    return wrong


FP8_KINDS = ("fp8_tensor", "fp8_token", "fp8_group")
EVERY = (*FP8_KINDS, "mxfp4", "nvfp4")

MISTAKES = (
    *(("y rounded first", f"{kind}", _of_y(lambda y: y.bfloat16().float())) for kind in FP8_KINDS),
    *(
        (
            "ties away from zero",
            f"ties: tokens=5, width=512, quant={kind}",
            _of_y(lambda y: y * (1 + 1e-6)),
        )
        for kind in EVERY
    ),
    *(
        (
            "ties towards zero",
            f"ties: tokens=5, width=512, quant={kind}",
            _of_y(lambda y: y * (1 - 1e-6)),
        )
        for kind in EVERY
    ),
    *(
        ("cut off", f"kinds: tokens=5, width=512, quant={kind}", _of_y(lambda y: y * 0.97))
        for kind in EVERY
    ),
    ("no saturation", "saturation", _nan_past_the_range),
    ("other bytes", "kinds", _other_bytes),
    ("scale multiplies", "scale of a tensor", _wrong.given(scale=lambda s: 1 / s)),
    ("scale dropped", "scale of a tensor", _wrong.given(scale=torch.ones_like)),
    ("scale twice", "scale of a tensor", _wrong.given(scale=lambda s: s * s)),
    ("scales are powers of two", "mode=fp32", _wrong.given(scale_mode="pow2")),
    ("scales are no powers of two", "mode=pow2", _wrong.given(scale_mode="fp32")),
    *(
        (
            f"{wrong} for {mode}",
            f"thresholds of scales: tokens=2, width=1024, quant=mxfp4, mode={mode}",
            _wrong.given(scale_mode=wrong),
        )
        for mode in ("rceil", "even", "floor", "ceil")
        for wrong in ("rceil", "even", "floor", "ceil")
        if wrong != mode
    ),
    (
        "a scale for the row",
        "groups",
        _wrong.given(quant=lambda q: "fp8_token" if q == "fp8_group" else q),
    ),
    (
        "nibbles swapped",
        "kinds",
        _result("out", lambda out: (out >> 4) | (out << 4) if out.dtype == torch.uint8 else out),
    ),
    ("not shuffled", "layout=shuffled_gfx950", _not_laid_out),
    ("not swizzled", "layout=swizzled_128x4", _not_laid_out),
    ("padding of 1.0", "padded scales", _padding(127)),
    ("padding of 1.0", "layout=swizzled_128x4", _padding(0x38)),
    ("pitch ignored", "columns of scales apart", _packed_columns),
    ("block scale not rounded", "quant=nvfp4", _unrounded_block_scale),
    ("columns past the row", "last block not full", _last_block_of_the_next_row),
    ("zero over zero", "rows of zeros", _zero_over_zero),
    ("NaN lost", "NaN and infinity", _of_y(lambda y: y.nan_to_num())),
    ("NaN lost in y", "y too", _result("unquantized_out", lambda y: torch.zeros_like(y))),
    ("residual ignored", "residual", _wrong.given(residual=torch.zeros_like)),
    ("sum rounded first", "residual", _rounded_sum),
    (
        "x's eps for x2",
        "second norm",
        lambda right, given, _: right(**given | {"x2_eps": given["eps"]}),
    ),
    ("x2 not normed", "second norm", _wrong.given(x2=lambda x: x * 3 + 1)),
    ("no weight bias", "weight bias", _wrong.given(weight_bias=0.0)),
    ("default eps", "eps under the root", _wrong.given(eps=1e-6)),
    ("weight rounded", "dtypes", _wrong.given(weight=lambda w: w.to(torch.float8_e4m3fn).float())),
    ("x read as contiguous", "strided", _wrong.given(x=packed)),
    ("residual read as contiguous", "strided", _wrong.given(residual=packed)),
    ("x2 read as contiguous", "strided", _wrong.given(x2=packed)),
    ("heads read as contiguous", "heads apart", _wrong.given(x=packed)),
    ("last row of scales unwritten", "kinds", _unwritten("out_scale")),
    ("last row unwritten", "one row", _unwritten("out")),
    ("last row of the sum unwritten", "residual", _unwritten("residual_out")),
    ("x at 32-bit offsets", "rows past element 2^31", _wrong.given(x=in_32_bits)),
    ("residual at 32 bits", "rows past element 2^31", _wrong.given(residual=in_32_bits)),
    ("x2 at 32 bits", "rows past element 2^31", _wrong.given(x2=in_32_bits)),
    ("out at 32 bits", "rows past element 2^31", nothing_past_2_31("out")),
    ("y at 32 bits", "rows past element 2^31", nothing_past_2_31("unquantized_out")),
    ("scales at 32 bits", "scales past element 2^31", nothing_past_2_31("out_scale")),
    ("columns at 32 bits", "group, layout=col", nothing_past_2_31("out_scale")),
)


@pytest.mark.parametrize(
    ("about", "wrong"),
    [pytest.param(about, wrong, id=f"{what}-{about}") for what, about, wrong in MISTAKES],
)
def test_a_wrong_kernel_fails_by_name(
    monkeypatch: pytest.MonkeyPatch, about: str, wrong: Wrong
) -> None:
    assert _wrong.catching(monkeypatch, OP, wrong, about)

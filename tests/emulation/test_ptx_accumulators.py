# SPDX-License-Identifier: Apache-2.0
"""How Hopper's matrix units add: rules, one by one, and launches of an H200 to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archkey.conformance.emulation.captured.archive import Archive
from archkey.conformance.emulation.captured.replay import compare
from archkey.conformance.emulation.ptx.accumulators import HOPPER, Width, added
from archkey.conformance.emulation.wave import Array

LAUNCHES = Path(__file__).with_name("h200.launches")
"""Two of those that plugins/cuda_sm90/results/emulated tells of."""

BF16, FP8 = HOPPER["bf16"], HOPPER["e4m3"]


def _one(products: list[tuple[float, float]], c: float, width: Width = BF16) -> float:
    """The sum of a row of one column."""
    x, y = (np.array(side)[None, None] for side in zip(*products, strict=True))
    return float(added(x, y.transpose(0, 2, 1), np.full((1, 1, 1), c), width)[0, 0, 0])


def test_what_float32_holds_is_exact() -> None:
    assert _one([(1.5, 2.0), (-0.25, 4.0)], 10.0) == 12.0
    assert _one([(0.0, 5.0)], 0.0) == 0.0
    assert _one([(0.0, 5.0)], 2.0**-100) == 2.0**-100


@pytest.mark.parametrize("width", [BF16, FP8])
def test_each_summand_is_cut_off_behind_the_largest(width: Width) -> None:
    least = 2.0**-width.bits
    assert _one([(1.0, 1.0), (least / 2, 1.0)], -1.0, width) == 0.0
    assert _one([(1.0, 1.0), (least, 1.0)], -1.0, width) == least
    assert _one([(least, 1.0), (1.0, 1.0)], -1.0, width) == least  # in any order
    assert _one([(-least, 1.75), (1.0, 1.0)], -1.0, width) == -least  # towards zero


def test_a_product_has_the_exponent_of_its_factors() -> None:
    """1.5 * 1.5 is more than 2 and cuts off as 1 does."""
    assert _one([(1.5, 1.5), (2.0**-25, 1.0), (-1.5, 1.5)], 0.0) == 2.0**-25
    assert _one([(2.25, 1.0), (2.0**-25, 1.0), (-2.25, 1.0)], 0.0) == 0.0


def test_the_sum_is_cut_off_not_rounded() -> None:
    assert _one([(1.0, 1.0), (2.0**-24, 1.75)], 0.0) == 1.0
    assert _one([(-1.0, 1.0), (2.0**-24, -1.75)], 0.0) == -1.0
    assert _one([(2.0**-25, 1.0)] * 4, 1.0) == 1.0 + 2.0**-23
    assert _one([(1.0, 1.0)], 2.0**13 - 0.5, FP8) == 2.0**13
    assert _one([(1.0, 1.0)], 2.0**13 + 0.5, FP8) == 2.0**13 + 1  # 0.5 is one of 14 bits


def test_the_parts_of_a_large_product_make_no_difference() -> None:
    random = np.random.default_rng(0)
    x, y, c = (
        random.standard_normal(shape).astype(np.float32).astype(np.float64)
        for shape in ((64, 16), (16, 256), (64, 256))
    )
    whole = added(x, y, c, BF16)
    columns = [added(x, y[:, n : n + 8], c[:, n : n + 8], BF16) for n in range(0, 256, 8)]
    assert np.array_equal(whole, np.concatenate(columns, axis=1))
    exact = x @ y + c
    assert 0 < np.abs(whole - exact).max() < 16 * 2.0**-23 * np.abs(exact).max()


def _special(value: float) -> Array:
    x = np.ones((2, 16))
    x[0, 3] = value
    return added(x, np.ones((16, 8)), np.zeros((2, 8)), BF16)


def test_what_is_not_finite_stays_in_its_row() -> None:
    assert np.isnan(_special(np.nan)[0]).all()
    assert (_special(-np.inf)[0] == -np.inf).all()
    assert (_special(np.inf)[1] == 16.0).all()


def _kept() -> list[int]:
    return [kept.at for kept in Archive(LAUNCHES).read()[1]]


@pytest.mark.parametrize("at", _kept())
def test_the_cards_bits(at: int) -> None:
    """Of sums of BF16 in float32, of FP8 and BF16 in attention; two units of lg2 in its lse."""
    archive = Archive(LAUNCHES)
    about, _, _ = archive.read()
    assert about["device"]["name"] == "NVIDIA H200"
    found = {one.argument: one for one in compare(archive.launch(at))}
    assert found["out"].elements > 700
    assert found.pop("out").differing == 0
    assert all(one.argument == "lse" and one.last <= 2 for one in found.values())

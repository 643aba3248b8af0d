# SPDX-License-Identifier: Apache-2.0
"""Formats and roundings against torch's own types and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.emulation.machine import EDGES

from archkey.conformance.emulation.numbers import (
    bf16_bits,
    bf16_values,
    decode,
    e8m0,
    encode,
    fma,
)

TORCH = {
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}


def spread(seed: int, count: int = 20000) -> np.ndarray:
    """Random float32 of all sizes, with the edges."""
    random = np.random.default_rng(seed)
    wide = random.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    near = (random.standard_normal(count) * np.exp2(random.uniform(-12, 12, count))).astype("f4")
    return np.concatenate([wide, near, EDGES])


@pytest.mark.parametrize("name", TORCH)
def test_every_code_of_fp8(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    want = codes.view(TORCH[name]).float().numpy()
    np.testing.assert_array_equal(decode(codes.numpy(), name), want)


@pytest.mark.parametrize("name", TORCH)
def test_rounding_to_fp8(name: str) -> None:
    """Where torch does not saturate, either: below the largest number."""
    limit = float(torch.finfo(TORCH[name]).max)
    values = spread(1)
    values = values[np.abs(values) <= limit]
    want = torch.from_numpy(values).to(TORCH[name]).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(values, name, saturate=False), want)
    np.testing.assert_array_equal(encode(values, name, saturate=True), want)


@pytest.mark.parametrize(
    ("name", "over", "clamped"),
    [
        ("e4m3fn", [0x7F, 0xFF], [0x7E, 0xFE]),
        ("e5m2", [0x7C, 0xFC], [0x7B, 0xFB]),
        ("e4m3fnuz", [0x80, 0x80], [0x7F, 0xFF]),
        ("e5m2fnuz", [0x80, 0x80], [0x7F, 0xFF]),
    ],
)
def test_overflow_of_fp8(name: str, over: list[int], clamped: list[int]) -> None:
    values = np.array([1e9, -1e9], np.float32)
    assert encode(values, name, saturate=False).tolist() == over
    assert encode(values, name, saturate=True).tolist() == clamped
    limit = float(torch.finfo(TORCH[name]).max)
    half_a_step_more = np.array([np.nextafter(np.float32(limit * 1.01), np.float32(0))])
    assert encode(half_a_step_more, name, saturate=False).tolist() == clamped[:1]


def test_every_code_of_fp4_and_its_ties() -> None:
    sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP MX, E2M1
    np.testing.assert_array_equal(decode(np.arange(16), "e2m1"), [*sizes, *(-s for s in sizes)])
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 100.0, -2.5])
    assert encode(ties, "e2m1", saturate=False).tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 12]


def test_scales() -> None:
    found = e8m0(np.array([0, 126, 127, 254, 255]))
    assert found[:4].tolist() == [2.0**-127, 0.5, 1.0, 2.0**127]
    assert np.isnan(found[4])


def test_bfloat16() -> None:
    values = spread(2)
    want = torch.from_numpy(values).to(torch.bfloat16)
    found = bf16_values(bf16_bits(values))
    np.testing.assert_array_equal(found, want.float().numpy())


def exact_fma(a: float, b: float, c: float) -> np.float32:
    """The float32 nearest to the exact value, ties to even."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    finite = [value for value in around if np.isfinite(value)]
    return min(
        finite,
        key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1),
    )


def test_a_fused_product_is_rounded_once() -> None:
    random = np.random.default_rng(3)
    a, b, c = (random.standard_normal(3000).astype(np.float32) for _ in range(3))
    # Sums that lie next to the middle between two float32: 1 + 2^-24 + (something tiny).
    a[:100], b[:100] = 1.0 + 2.0**-12, 1.0 + 2.0**-12
    c[:100] = random.choice([2.0**-60, -(2.0**-60), 2.0**30 + 2.0**7], 100)
    # Products near the smallest numbers.
    a[100:200] *= np.float32(2.0**-75)
    b[100:200] *= np.float32(2.0**-74)
    c[100:200] *= np.float32(2.0**-148)
    want = [exact_fma(*map(float, row)) for row in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(fma(a, b, c), np.array(want))


def test_a_product_rounded_twice_would_differ() -> None:
    """1 + 2^-24 lies in the middle of two float32; only what comes below float64 decides."""
    one, middle = np.array([1.0], "f4"), np.array([1.0 + 2.0**-12], "f4")
    # (1 + 2^-12)^2 - 2^-11 = 1 + 2^-24, exactly; a bit more or less makes it one or the other.
    c = np.array([-(2.0**-11)], "f4")
    assert fma(middle, middle, c)[0] == 1.0
    more = np.array([2.0**-12 * (1 + 2.0**-23)], "f4")
    assert fma(more, np.array([2.0**-12], "f4"), one)[0] == np.nextafter(
        np.float32(1), np.float32(2)
    )
    less = np.array([2.0**-12 * (1 - 2.0**-24)], "f4")
    assert fma(less, np.array([2.0**-12], "f4"), one)[0] == 1.0

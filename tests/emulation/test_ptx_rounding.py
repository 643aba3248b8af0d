# SPDX-License-Identifier: Apache-2.0
"""Roundings that are not to the nearest, carries, and atomics of halves, against exact numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.emulation.ptx_machine import anything, apply, launch

from archkey.conformance.emulation.faults import UnknownInstruction


def _directed(exact: Fraction, mode: str) -> float:
    """The float32 next to it, toward zero, down or up."""
    near = np.float32(float(exact))
    low, high = (
        (near, np.nextafter(near, np.float32(np.inf)))
        if Fraction(float(near)) <= exact
        else (np.nextafter(near, np.float32(-np.inf)), near)
    )
    if Fraction(float(low)) == exact:
        return float(low)
    return float({"rm": low, "rp": high, "rz": low if exact > 0 else high}[mode])


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_directed(name: str, mode: str) -> None:
    random = np.random.default_rng(2)
    a, b, c = random.standard_normal((3, 64)) * np.exp2(random.integers(-20, 20, (3, 64)))
    a, b, c = (x.astype(np.float32) for x in (a, b, c))
    operands = [x.view("u4") for x in ((a, b, c) if name == "fma" else (a, b))]
    letters = ", ".join("ABC"[: len(operands)])
    kinds = " ".join(["b32"] * len(operands))
    found = apply(f"{name}.{mode}.f32 D, {letters};", kinds, *operands).view(np.float32)
    rows = [[Fraction(float(x)) for x in row] for row in zip(a, b, c, strict=True)]
    exact = {
        "add": [x + y for x, y, _ in rows],
        "sub": [x - y for x, y, _ in rows],
        "mul": [x * y for x, y, _ in rows],
        "fma": [x * y + z for x, y, z in rows],
    }[name]
    assert found.tolist() == [_directed(x, mode) for x in exact]


def test_numbers_of_96_bits() -> None:
    """A product of 64 by 32 bits, and a sum and a difference of it."""
    a, b = anything("u4", seed=1), anything("u4", seed=2)
    one, two = (apply(f"{line}", "b32 b32", a, b) for line in (
        "{ mul.lo.u32 %r40, A, B; mad.lo.cc.u32 %r41, A, B, 0xFFFFFFF0; madc.hi.u32 D, A, B, 7; }",
        "{ sub.cc.u32 %r40, A, B; subc.u32 D, 5, 0; }",
    ))  # fmt: skip
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert one.tolist() == [
        ((x * y >> 32) + 7 + ((x * y % (1 << 32)) + 0xFFFFFFF0 >> 32)) % (1 << 32) for x, y in pairs
    ]
    assert two.tolist() == [5 - (x < y) for x, y in pairs]
    with pytest.raises(UnknownInstruction, match="a carry of another block"):
        apply("addc.u32 D, A, B;", "b32 b32", a, b)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_sums_of_halves_in_memory(kind: str) -> None:
    """Each thread adds its two halves to the one word, whose sums are exact."""
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    values = torch.tensor([0.5, -0.25] * 128).to(dtype)
    total = torch.zeros(2, dtype=dtype)
    lines = [
        *("add.s64 %rd10, %rd1, %rd9;", "ld.global.b32 %r50, [%rd10];"),
        f"red.global.gpu.relaxed.add.noftz.{kind}x2 [%rd0], %r50;",
    ]
    launch(lines, total.view(torch.int32), values.view(torch.int32))
    assert total.tolist() == [64.0, -32.0]


def test_a_short_number_is_exchanged() -> None:
    """Of all threads that expect 0 one finds it."""
    word, seen = torch.zeros(1, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    lines = [
        *("cvt.u16.u32 %rs1, %r0;", "add.s16 %rs1, %rs1, 1;", "mov.b16 %rs2, 0;"),
        *("atom.global.acq_rel.gpu.cas.b16 %rs3, [%rd0], %rs2, %rs1;", "cvt.u32.u16 %r50, %rs3;"),
        *("add.s64 %rd10, %rd1, %rd9;", "st.global.b32 [%rd10], %r50;"),
    ]
    launch(lines, word, seen)
    assert (seen == 0).sum() == 1
    assert word.item() == seen.max().item()

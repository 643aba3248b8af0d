# SPDX-License-Identifier: Apache-2.0
"""Instructions of one thread, against Python's integers and torch's floats."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.emulation.ptx_machine import anything, apply, launch

from archkey.conformance.emulation.faults import UnknownInstruction


def _signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> bits - 1 else value


def _quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: _quotient(a, b or 1),
    "rem": lambda a, b, n: a - _quotient(a, b or 1) * (b or 1),
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", TWO)
def test_integers(name: str, kind: str) -> None:
    bits, sign = int(kind[1:]), kind[0]
    a, b = (anything(f"{'i' if sign == 's' else 'u'}{bits // 8}", seed=seed) for seed in (1, 2))
    b = np.roll(b, 3)
    if name in ("div", "rem"):
        b = np.where(b == 0, 1, b).astype(b.dtype)
    found = apply(f"{name}.{kind} D, A, B;", f"b{bits} b{bits}", a, b, result=f"b{bits}")
    want = [TWO[name](int(x), int(y), bits) % (1 << bits) for x, y in zip(a, b, strict=True)]
    assert found.tolist() == want


@pytest.mark.parametrize("sign", "su")
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(sign: str, bits: int) -> None:
    """A distance past the width leaves nothing but signs."""
    a = anything(f"{'i' if sign == 's' else 'u'}{bits // 8}")
    by = np.resize(np.array([0, 1, 15, 16, 31, 32, 33, 63, 64, 255, 1 << 31], np.uint32), 64)
    kinds = f"b{bits} b32"
    right = apply(f"shr.{sign}{bits} D, A, B;", kinds, a, by, result=f"b{bits}")
    left = apply(f"shl.b{bits} D, A, B;", kinds, a, by, result=f"b{bits}")
    steps = [min(int(n), bits) for n in by]
    values = list(zip(a.tolist(), steps, strict=True))
    assert right.tolist() == [(x >> n) % (1 << bits) for x, n in values]
    assert left.tolist() == [(x << n) % (1 << bits) for x, n in values]


def test_products_of_twice_the_width() -> None:
    a, b = anything("i4", seed=1), anything("i4", seed=2)
    c = anything("i8", seed=3)
    found = apply("mad.wide.s32 D, A, B, C;", "b32 b32 b64", a, b, c, result="b64")
    want = [x * y + z for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert found.tolist() == [x % (1 << 64) for x in want]
    wide = apply("mul.wide.u32 D, A, B;", "b32 b32", a, b, result="b64")
    pairs = zip(a.view("u4").tolist(), b.view("u4").tolist(), strict=True)
    assert wide.tolist() == [x * y for x, y in pairs]


def test_fields_and_bytes() -> None:
    a, b = anything("u4", seed=1), anything("u4", seed=2)
    field = apply("bfe.u32 D, A, 5, 7;", "b32", a)
    assert field.tolist() == [x >> 5 & 127 for x in a.tolist()]
    signed = apply("bfe.s32 D, A, 24, 8;", "b32", a)
    assert signed.tolist() == [_signed(x >> 24, 8) % (1 << 32) for x in a.tolist()]
    turned = apply("prmt.b32 D, A, B, 0x0735;", "b32 b32", a, b)
    for x, y, z in zip(a.tolist(), b.tolist(), turned.tolist(), strict=True):
        both = (y << 32 | x).to_bytes(8, "little")
        assert z.to_bytes(4, "little") == bytes(both[n] for n in (5, 3, 7, 0))
    sign = apply("prmt.b32 D, A, 0, 0x000B;", "b32", a)
    assert [z & 255 for z in sign.tolist()] == [255 * (x >> 31) for x in a.tolist()]
    majority = apply("lop3.b32 D, A, B, 0x55555555, 0xE8;", "b32 b32", a, b)
    c = 0x55555555
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    assert majority.tolist() == [x & y | x & c | y & c for x, y in pairs]
    funnel = apply("shf.l.wrap.b32 D, A, B, 36;", "b32 b32", a, b)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    assert funnel.tolist() == [(y << 4 | x >> 28) % (1 << 32) for x, y in pairs]


def _floats(seed: int) -> torch.Tensor:
    values = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 3
    values[:8] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1, 1e-40, -1])
    return values.roll(seed)


def _same(found: np.ndarray, want: torch.Tensor) -> None:
    got = torch.from_numpy(found.view(np.float32).copy())
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_floats() -> None:
    a, b, c = (_floats(n) for n in (1, 2, 5))
    bits = [x.numpy().view("u4") for x in (a, b, c)]
    pair = "b32 b32"
    _same(apply("add.f32 D, A, B;", pair, *bits[:2]), a + b)
    _same(apply("mul.f32 D, A, B;", pair, *bits[:2]), a * b)
    exact = (a.double() * b.double() + c.double()).float()
    _same(apply("fma.rn.f32 D, A, B, C;", "b32 b32 b32", *bits), exact)
    _same(apply("max.f32 D, A, B;", pair, *bits[:2]), torch.fmax(a, b))
    _same(apply("max.NaN.f32 D, A, B;", pair, *bits[:2]), torch.maximum(a, b))
    _same(apply("min.f32 D, A, B;", pair, *bits[:2]), torch.fmin(a, b))
    flushed = apply("mul.ftz.f32 D, A, 0f3F800000;", "b32", bits[0])
    _same(flushed, torch.where(a.abs() < 2.0**-126, a * 0, a))
    two = apply("ex2.approx.ftz.f32 D, A;", "b32", bits[0]).view(np.float32)
    torch.testing.assert_close(
        torch.from_numpy(two.copy()), a.exp2(), rtol=1e-6, atol=0, equal_nan=True
    )


def test_products_of_float64_are_rounded_once() -> None:
    """Against Python's fractions; c nearly cancels the product."""
    random = np.random.default_rng(1)
    a, b, c = random.standard_normal((3, 64)) * np.exp2(random.integers(-30, 30, (3, 64)))
    c[:32] = -(a * b)[:32] * (1 + random.integers(-3, 4, 32) * 2.0**-52)
    bits = [x.view("u8") for x in (a, b, c)]
    found = apply("fma.rn.f64 D, A, B, C;", "b64 b64 b64", *bits, result="b64").view("f8")
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a, b, c, strict=True)]
    assert found.tolist() == [float(x) for x in exact]
    root = apply("sqrt.rn.f64 D, A;", "b64", np.abs(a).view("u8"), result="b64").view("f8")
    assert root.tolist() == np.sqrt(np.abs(a)).tolist()


def test_zeros_have_an_order() -> None:
    zeros = np.array([0.0, -0.0], np.float32).view("u4")
    assert apply("max.f32 D, A, B;", "b32 b32", zeros, zeros[::-1].copy()).tolist() == [0, 0]
    low = apply("min.f32 D, A, B;", "b32 b32", zeros, zeros[::-1].copy())
    assert low.tolist() == [1 << 31, 1 << 31]


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne", "neu", "ltu", "num", "nan"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_comparisons_of_floats(name: str, dtype: str) -> None:
    """Those with a u are true with a NaN, the others false."""
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    a, b = _floats(1).to(kind), _floats(2).to(kind)
    integer, bits = (torch.int32, 32) if dtype == "f32" else (torch.int16, 16)
    words = [x.view(integer).numpy().view(f"u{bits // 8}") for x in (a, b)]
    found = apply(f"setp.{name}.{dtype} D, A, B;", f"b{bits} b{bits}", *words, result="pred")
    nan = a.isnan() | b.isnan()
    plain = {
        "lt": a < b,
        "le": a <= b,
        "gt": a > b,
        "ge": a >= b,
        "eq": a == b,
        "ne": (a != b) & ~nan,
    }
    other = {"neu": (a != b) | nan, "ltu": (a < b) | nan, "num": ~nan, "nan": nan}
    assert found.astype(bool).tolist() == {**plain, **other}[name].tolist()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_pairs_of_halves(dtype: str) -> None:
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    a, b, c = (_floats(n).repeat(2).to(kind) for n in (1, 3, 6))
    bits = [x.view(torch.int32).numpy() for x in (a, b, c)]
    exact = (a.double() * b.double() + c.double()).to(kind)
    for line, want in (
        (f"mul.{dtype}x2 D, A, B;", a * b),
        (f"add.{dtype}x2 D, A, B;", a + b),
        (f"fma.rn.{dtype}x2 D, A, B, C;", exact),
    ):
        count = 3 if "C" in line.split("D")[1] else 2
        found = apply(line, " ".join(["b32"] * count), *bits[:count])
        got = torch.from_numpy(found.view(np.int32).copy()).view(kind)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_conversions() -> None:
    """In a pair the second operand is the lower half."""
    a, b = _floats(1), _floats(2)
    bits = a.numpy().view("u4"), b.numpy().view("u4")
    for name, kind in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        found = apply(f"cvt.rn.{name}x2.f32 D, A, B;", "b32 b32", *bits)
        got = torch.from_numpy(found.view(np.int32).copy()).view(kind).view(-1, 2)
        want = torch.stack([b, a], 1).to(kind)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    a, b = a.nan_to_num(0, 448, -448), b.nan_to_num(0, 448, -448)
    bits = a.numpy().view("u4"), b.numpy().view("u4")
    found = apply("cvt.rn.satfinite.e4m3x2.f32 D, A, B;", "b32 b32", *bits, result="b16")
    want = torch.stack([b, a], 1).to(torch.float8_e4m3fn).view(torch.uint8)
    assert found.view(np.uint8).tolist() == want.flatten().tolist()
    codes = np.arange(256, dtype=np.uint8).repeat(1)
    halves = apply("cvt.rn.f16x2.e4m3x2 D, A;", "b16", codes.view("u2"))
    want = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).half()
    got = torch.from_numpy(halves.view(np.float16).copy())
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    whole = apply("cvt.rzi.s32.f32 D, A;", "b32", (a * 1e9).numpy().view("u4"))
    assert whole.view(np.int32).tolist() == [
        max(-(1 << 31), min((1 << 31) - 1, int(x))) for x in (a * 1e9).tolist()
    ]


def test_what_triton_3_9_adds() -> None:
    codes = np.arange(256, dtype=np.uint8).view("u2")
    found = apply("cvt.rn.bf16x2.e4m3x2 D, A;", "b16", codes)
    want = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).bfloat16()
    got = torch.from_numpy(found.view(np.int32).copy()).view(torch.bfloat16)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    a, b = _floats(1).bfloat16(), _floats(2)
    bits = a.view(torch.int16).numpy(), b.numpy().view("u4")
    _same(apply("add.rn.f32.bf16 D, A, B;", "b16 b32", *bits), a.float() + b)
    c = _floats(5)
    words = [one.numpy().view("u4") for one in (a.float(), b, c)]
    most = apply("max.f32 D, A, B, C;", "b32 b32 b32", *words, target="sm_100a")
    _same(most, torch.fmax(torch.fmax(a.float(), b), c))
    with pytest.raises(UnknownInstruction, match="3 operands, 2 are expected"):
        apply("max.f32 D, A, B, C;", "b32 b32 b32", *words)
    x, y = anything("u4", seed=1), anything("u4", seed=2)
    both = (x.view("u2") + y.view("u2")).view("u4")
    assert apply("add.s16x2 D, A, B;", "b32 b32", x, y).tolist() == both.tolist()


def test_what_is_not_known_is_refused_by_name() -> None:
    out = torch.zeros(128, dtype=torch.int32)
    for line, told in (
        ("frobnicate.b32 %r2, %r0;", "unknown instruction line .*frobnicate.b32"),
        ("add.sat.s32 %r2, %r0, %r0;", "unknown instruction line .*add.sat.s32"),
        ("mul.sat.f32 %r2, %r0, %r0;", "unknown instruction line .*mul.sat.f32"),
        ("mov.u32 %r2, %smid;", "special register %smid"),
        ("shfl.sync.bfly.b32 %r2, %r0, 1, 31, 0xFF;", "a mask of some lanes, 255"),
        ("ld.param.b32 %r2, [body_param_0];", "32 bits of the parameter"),
    ):
        with pytest.raises(UnknownInstruction, match=told):
            launch([line], out)

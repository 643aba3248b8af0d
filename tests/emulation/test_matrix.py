# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions against torch's product, through the layouts of the ISA reference.

The layouts are written here a second time, element by element, as the reference's tables have
them: which lane and which element of a lane hold A[row, k], B[k, column] and D[row, column].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.emulation.machine import run, wave

from archkey.conformance.emulation.program import families

ELEMENTS = {
    "bf16": (16, torch.bfloat16), "f16": (16, torch.float16), "f32": (32, torch.float32),
    "xf32": (32, torch.float32), "i8": (8, torch.int8), "f8f6f4": (8, torch.float8_e4m3fn),
}  # fmt: skip
FP8 = {
    "gfx942": {"fp8": torch.float8_e4m3fnuz, "bf8": torch.float8_e5m2fnuz},
    "gfx950": {"fp8": torch.float8_e4m3fn, "bf8": torch.float8_e5m2},
}


class Row(NamedTuple):
    """An instruction without block scales; a and b: (bits, dtype) of an element."""

    target: str
    name: str
    m: int
    k: int
    a: tuple[int, torch.dtype]
    b: tuple[int, torch.dtype]


def rows() -> Iterator[Row]:
    """Every one that a target has, by its name: v_mfma_f32_MxNxK_A, or .._A_B."""
    for target, eights in FP8.items():
        known = {**ELEMENTS, **{name: (8, dtype) for name, dtype in eights.items()}}
        for name in families(target):
            match = re.match(r"v_mfma_[fi]32_(\d+)x\d+x(\d+)_(?!16b)(\w+?)(?:_1k)?$", name)
            if match:
                a, _, b = match[3].partition("_")
                yield Row(target, name, int(match[1]), int(match[2]), known[a], known[b or a])


def place(m: int, k: int, size: int, row: int, at: int) -> tuple[int, int]:
    """(lane, element) of A[row, at], and of B[at, row]."""
    share = m * k // 64
    if size == 8 and share == 32:  # two runs of 16, half of K apart
        run, inside = divmod(at, k // 2)
        return row + m * (inside // 16), 16 * run + inside % 16
    return row + m * (at // share), at % share


def spread(matrix: torch.Tensor, m: int, size: int) -> np.ndarray:
    """[rows, K] to registers [n, 64]."""
    k = matrix.shape[1]
    held = torch.zeros(64, m * k // 64, dtype=matrix.dtype)
    for row in range(m):
        for at in range(k):
            held[place(m, k, size, row, at)] = matrix[row, at]
    return held.view(torch.uint8).numpy().view(np.uint32).T.copy()


def gather(registers: np.ndarray, m: int) -> np.ndarray:
    """D [m, m] from registers [m * m / 64, 64]."""
    out = np.empty((m, m), registers.dtype)
    for lane in range(64):
        for number in range(m * m // 64):
            if m == 16:
                row = 4 * (lane // 16) + number
            else:
                row = 8 * (number // 4) + 4 * (lane // 32) + number % 4
            out[row, lane % m] = registers[number, lane]
    return out


def random(dtype: torch.dtype, count: int, k: int) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, (count, k), dtype=dtype)
    # Of float32 few bits: xf32 has 11, and nothing is rounded then.
    return torch.randn(count, k).to(torch.bfloat16).to(dtype)


@pytest.mark.parametrize("row", [*rows()], ids=lambda row: f"{row.target} {row.name}")
def test_products(row: Row) -> None:
    torch.manual_seed(1)
    m, k = row.m, row.k
    left, right = random(row.a[1], m, k), random(row.b[1], m, k)
    registers = {}
    for start, matrix, (size, _) in ((0, left, row.a), (16, right, row.b)):
        for n, held in enumerate(spread(matrix, m, size)):
            registers[f"v{start + n}"] = held
    count, words = m * m // 64, m * k // 64 * row.a[0] // 32
    dtype = np.int32 if left.dtype == torch.int8 else np.float32
    before = np.random.default_rng(1).integers(-9, 9, (count, 64)).astype(dtype)
    registers |= {f"a{n}": held for n, held in enumerate(before)}
    last = words - 1
    sources = f"v[0:{last}], v[16:{16 + last}]" if last else "v0, v16"
    on = run(
        wave(**registers),
        f"{row.name} a[0:{count - 1}], {sources}, a[0:{count - 1}]",
        target=row.target,
    )
    want = left.double().numpy() @ right.double().numpy().T + gather(before, m)
    found = gather(on.registers[256 : 256 + count].view(dtype), m)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-5)


def test_every_shape_is_there() -> None:
    """The rows come from the tables: this says how many those have."""
    found = [row.target for row in rows()]
    assert (found.count("gfx942"), found.count("gfx950")) == (20, 28)


BLOCKS = (("f32", 1, 32), ("f16", 4, 16), ("bf16", 4, 16), ("i8", 4, 8))


@pytest.mark.parametrize(("kind", "k", "size"), BLOCKS)
@pytest.mark.parametrize(("shared", "chosen"), [(0, 0), (2, 1), (4, 9)])
def test_products_in_blocks(kind: str, k: int, size: int, shared: int, chosen: int) -> None:
    """16 products of 4 x 4: lane 4 b + r has row r of block b, and D's row is the register."""
    torch.manual_seed(2)
    left, right = (random(ELEMENTS[kind][1], 64, k) for _ in range(2))
    registers = {}
    for start, matrix in ((0, left), (8, right)):
        raw = matrix.view(torch.uint8).numpy().view(np.uint32)
        registers |= {f"v{start + n}": raw[:, n].copy() for n in range(raw.shape[1])}
    words = k * size // 32
    sources = [f"v[{n}:{n + words - 1}]" if words > 1 else f"v{n}" for n in (0, 8)]
    result = "i32" if kind == "i8" else "f32"
    line = f"v_mfma_{result}_4x4x{k}_16b_{kind} a[0:3], {sources[0]}, {sources[1]}, 0"
    on = run(wave(**registers), f"{line} cbsz:{shared} abid:{chosen}")
    found = on.registers[256:260].view(np.int32 if kind == "i8" else np.float32)
    one, two = (matrix.double().numpy().reshape(16, 4, k) for matrix in (left, right))
    for block in range(16):
        whose = block // (1 << shared) * (1 << shared) + chosen if shared else block
        want = one[whose] @ two[block].T
        np.testing.assert_allclose(found[:, 4 * block : 4 * block + 4], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("m", "k"), [(16, 128), (32, 64)])
def test_block_scales(m: int, k: int) -> None:
    """The scale of row r and block b is in lane r + m b; op_sel:[1,0] op_sel_hi:[0,1] say bytes."""
    generator = np.random.default_rng(3)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = generator.integers(0, 16, (2, m, k))
    values = np.where(codes >> 3, -1, 1) * table[codes & 7]
    scales = generator.integers(120, 134, (2, m, k // 32))
    registers = {}
    for side, start in ((0, 0), (1, 16)):
        nibbles = np.zeros((64, 32), np.uint8)
        for row in range(m):
            for at in range(k):
                nibbles[row + m * (at // 32), at % 32] = codes[side, row, at]
        packed = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(np.uint32)
        registers |= {f"v{start + n}": packed[:, n].copy() for n in range(4)}
        lanes = scales[side].T.reshape(-1).astype(np.uint32)
        registers[f"v{30 + side}"] = lanes << (8, 16)[side] | 0x77000077
    count = m * m // 64
    line = (
        f"v_mfma_scale_f32_{m}x{m}x{k}_f8f6f4 a[0:{count - 1}], v[0:3], v[16:19], 0, v30, v31 "
        "op_sel:[1,0,0] op_sel_hi:[0,1,0] cbsz:4 blgp:4"
    )
    on = run(wave(**registers), line, target="gfx950")
    scaled = values * np.exp2(np.repeat(scales, 32, axis=2) - 127.0)
    found = gather(on.registers[256 : 256 + count].view(np.float32), m)
    np.testing.assert_allclose(found, scaled[0] @ scaled[1].T, rtol=1e-6, atol=1e-5)


SMALL = {2: (2, 3), 3: (3, 2), 4: (2, 1)}
"""FP6 and FP4 by cbsz and blgp: bits of the exponent and after the point."""
SIZES = {0: 8, 1: 8, 2: 6, 3: 6, 4: 4}


def codes_of(number: int, generator: np.random.Generator, m: int, k: int) -> tuple[Any, Any]:
    """Random codes [m, k] of a format, and what they mean, after OCP's definition."""
    if number < 2:
        dtype = (torch.float8_e4m3fn, torch.float8_e5m2)[number]
        values = torch.from_numpy(generator.standard_normal((m, k))).to(dtype)
        return values.view(torch.uint8).numpy().astype(np.int64), values.double().numpy()
    exponent, mantissa = SMALL[number]
    codes = generator.integers(0, 1 << SIZES[number], (m, k))
    fraction, power = codes & ((1 << mantissa) - 1), codes >> mantissa & ((1 << exponent) - 1)
    bias = (1 << (exponent - 1)) - 1
    whole = np.where(power > 0, fraction + (1 << mantissa), fraction)
    values = np.ldexp(whole.astype(float), np.maximum(power, 1) - bias - mantissa)
    return codes, np.where(codes >> (exponent + mantissa), -values, values)


def held_by_lanes(codes: Any, size: int, m: int, k: int) -> np.ndarray:
    """Codes [m, k] as registers [words, 64], one code after the other."""
    held = np.zeros((64, 32), np.int64)
    for row in range(m):
        for at in range(k):
            held[place(m, k, size, row, at)] = codes[row, at]
    bits = (held[..., None] >> np.arange(size) & 1).reshape(64, -1)
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32).T


@pytest.mark.parametrize(("m", "k"), [(16, 128), (32, 64)])
@pytest.mark.parametrize("b", SIZES)
@pytest.mark.parametrize("a", SIZES)
@pytest.mark.parametrize("scaled", [True, False])
def test_all_pairs_of_small_formats(scaled: bool, a: int, b: int, m: int, k: int) -> None:
    generator = np.random.default_rng(10 * a + b)
    registers: dict[str, Any] = {}
    sides, sources = [], []
    for side, number, start in ((0, a, 0), (1, b, 16)):
        codes, values = codes_of(number, generator, m, k)
        words = held_by_lanes(codes, SIZES[number], m, k)
        registers |= {f"v{start + n}": row.copy() for n, row in enumerate(words)}
        sources.append(f"v[{start}:{start + len(words) - 1}]")
        scales = (
            generator.integers(120, 134, (m, k // 32)) if scaled else np.full((m, k // 32), 127)
        )
        registers[f"v{30 + side}"] = scales.T.reshape(-1).astype(np.uint32)
        sides.append(values * np.exp2(np.repeat(scales, 32, axis=1) - 127.0))
    count = m * m // 64
    name = f"v_mfma_{'scale_' if scaled else ''}f32_{m}x{m}x{k}_f8f6f4"
    line = f"{name} a[0:{count - 1}], {', '.join(sources)}, 0"
    more = ", v30, v31 op_sel_hi:[0,0,0]" if scaled else ""
    on = run(wave(**registers), f"{line}{more} cbsz:{a} blgp:{b}", target="gfx950")
    found = gather(on.registers[256 : 256 + count].view(np.float32), m)
    np.testing.assert_allclose(found, sides[0] @ sides[1].T, rtol=1e-6, atol=1e-4)

# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions against torch's product, through the layouts of the ISA reference.

The layouts are written here a second time, element by element, as the reference's tables have
them: which lane and which element of a lane hold A[row, k], B[k, column] and D[row, column].
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.emulation.machine import run, wave

ELEMENTS = {
    "bf16": (16, torch.bfloat16), "f16": (16, torch.float16), "f32": (32, torch.float32),
    "i8": (8, torch.int8), "fnuz": (8, torch.float8_e4m3fnuz), "fn": (8, torch.float8_e4m3fn),
    "bnuz": (8, torch.float8_e5m2fnuz),
}  # fmt: skip

ROWS = [
    ("gfx942", "v_mfma_f32_16x16x4_f32", 16, 4, "f32", "f32"),
    ("gfx942", "v_mfma_f32_32x32x2_f32", 32, 2, "f32", "f32"),
    ("gfx942", "v_mfma_f32_16x16x16_bf16", 16, 16, "bf16", "bf16"),
    ("gfx942", "v_mfma_f32_32x32x8_bf16_1k", 32, 8, "bf16", "bf16"),
    ("gfx942", "v_mfma_f32_32x32x8_f16", 32, 8, "f16", "f16"),
    ("gfx942", "v_mfma_f32_16x16x32_fp8_bf8", 16, 32, "fnuz", "bnuz"),
    ("gfx942", "v_mfma_f32_32x32x16_fp8_fp8", 32, 16, "fnuz", "fnuz"),
    ("gfx942", "v_mfma_i32_16x16x32_i8", 16, 32, "i8", "i8"),
    ("gfx950", "v_mfma_f32_16x16x32_bf16", 16, 32, "bf16", "bf16"),
    ("gfx950", "v_mfma_f32_32x32x16_f16", 32, 16, "f16", "f16"),
    ("gfx950", "v_mfma_i32_32x32x32_i8", 32, 32, "i8", "i8"),
    ("gfx950", "v_mfma_f32_16x16x128_f8f6f4", 16, 128, "fn", "fn"),
    ("gfx950", "v_mfma_f32_32x32x64_f8f6f4", 32, 64, "fn", "fn"),
]


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


def random(kind: str, rows: int, k: int) -> torch.Tensor:
    dtype = ELEMENTS[kind][1]
    if kind == "i8":
        return torch.randint(-128, 128, (rows, k), dtype=dtype)
    return torch.randn(rows, k).to(dtype)


@pytest.mark.parametrize(("target", "name", "m", "k", "a", "b"), ROWS, ids=[r[1] for r in ROWS])
def test_products(target: str, name: str, m: int, k: int, a: str, b: str) -> None:
    torch.manual_seed(1)
    left, right = random(a, m, k), random(b, m, k)
    registers = {}
    for start, matrix, kind in ((0, left, a), (16, right, b)):
        for n, row in enumerate(spread(matrix, m, ELEMENTS[kind][0])):
            registers[f"v{start + n}"] = row
    count, words = m * m // 64, m * k // 64 * ELEMENTS[a][0] // 32
    dtype = np.int32 if a == "i8" else np.float32
    before = np.random.default_rng(1).integers(-9, 9, (count, 64)).astype(dtype)
    registers |= {f"a{n}": row for n, row in enumerate(before)}
    last = words - 1
    sources = f"v[0:{last}], v[16:{16 + last}]" if last else "v0, v16"
    on = run(
        wave(**registers),
        f"{name} a[0:{count - 1}], {sources}, a[0:{count - 1}]",
        target=target,
    )
    want = left.double().numpy() @ right.double().numpy().T + gather(before, m)
    found = gather(on.registers[256 : 256 + count].view(dtype), m)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-5)


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


@pytest.mark.parametrize(("number", "exponent", "mantissa"), [(2, 2, 3), (3, 3, 2)])
def test_six_bits(number: int, exponent: int, mantissa: int) -> None:
    """FP6 against FP8 that holds the same values: e2m3 and e3m2 are in e4m3's range."""
    m, k = 16, 128
    codes = np.random.default_rng(4).integers(0, 64, (m, k))
    fraction, power = codes & ((1 << mantissa) - 1), codes >> mantissa & ((1 << exponent) - 1)
    bias = (1 << (exponent - 1)) - 1
    whole = np.where(power > 0, fraction + (1 << mantissa), fraction)
    values = np.ldexp(whole.astype(float), np.maximum(power, 1) - bias - mantissa)
    values = np.where(codes >> 5, -values, values)
    held = np.zeros((64, 32), np.int64)
    for row in range(m):
        for at in range(k):
            held[row + m * (at // 32), at % 32] = codes[row, at]
    bits = (held[..., None] >> np.arange(6) & 1).reshape(64, -1)
    left = np.packbits(bits, axis=1, bitorder="little").view(np.uint32).T
    right = spread(torch.eye(m, k).to(torch.float8_e4m3fn), m, 8)
    registers = {f"v{n}": row.copy() for n, row in enumerate(left)}
    registers |= {f"v{16 + n}": row for n, row in enumerate(right)}
    line = f"v_mfma_f32_16x16x128_f8f6f4 a[0:3], v[0:5], v[16:23], 0 cbsz:{number}"
    on = run(wave(**registers), line, target="gfx950")
    found = gather(on.registers[256:260].view(np.float32), m)
    np.testing.assert_array_equal(found, values[:, :16])

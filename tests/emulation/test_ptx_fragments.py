# SPDX-License-Identifier: Apache-2.0
"""Products of a warp whose operands are spread by PTX's own figures, not by Triton's layouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.emulation.ptx_machine import launch

_LANE = np.arange(32)
_G, _C = _LANE // 4, _LANE % 4


def _run(line: str, width: int, *operands: np.ndarray, results: int) -> np.ndarray:
    """`line` with A, B and C for the registers of each operand [registers, 32], D for results."""
    register, load = {64: ("%rd", "b64"), 32: ("%r", "b32")}[width]
    size, body, tensors = width // 8, [], []
    line_of, at = line, 30
    for letter, rows in zip("ABC", operands, strict=True):
        names = [f"{register}{at + n}" for n in range(len(rows))]
        at += len(rows)
        tensors.append(torch.from_numpy(np.ascontiguousarray(rows).view(f"i{size}").copy()))
        body.append(f"mad.wide.u32 %rd8, %r0, {size}, %rd{len(tensors) - 1};")
        body += [f"ld.global.{load} {r}, [%rd8+{32 * size * n}];" for n, r in enumerate(names)]
        line_of = line_of.replace(letter, "{" + ", ".join(names) + "}")
    out = [f"{register}{at + n}" for n in range(results)]
    tensors.append(torch.zeros(results, 32, dtype=getattr(torch, f"int{width}")))
    body += [
        line_of.replace("D", "{" + ", ".join(out) + "}"),
        f"mad.wide.u32 %rd8, %r0, {size}, %rd3;",
    ]
    body += [f"st.global.{load} [%rd8+{32 * size * n}], {r};" for n, r in enumerate(out)]
    launch(body, *tensors, threads=32)
    return tensors[-1].numpy()


@pytest.mark.parametrize(("rows", "k"), [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_float64(rows: int, k: int) -> None:
    random = np.random.default_rng(k)
    a, b, c = (random.standard_normal(shape) for shape in ((rows, k), (k, 8), (rows, 8)))
    parts = range(rows // 8)
    left = [a[_G + 8 * h, _C + 4 * n] for n in range(k // 4) for h in parts]
    right = [b[_C + 4 * n, _G] for n in range(k // 4)]
    total = [c[_G + 8 * h, 2 * _C + e] for h in parts for e in (0, 1)]
    line = f"mma.sync.aligned.m{rows}n8k{k}.row.col.f64.f64.f64.f64 D, A, B, C;"
    found = _run(line, 64, *map(np.stack, (left, right, total)), results=2 * rows // 8)
    want = a @ b + c
    for n, (h, e) in enumerate((h, e) for h in parts for e in (0, 1)):
        exact = want[_G + 8 * h, 2 * _C + e]
        np.testing.assert_allclose(found[n].view(np.float64), exact, rtol=1e-14, atol=1e-14)


def _pairs(
    matrix: np.ndarray, row: Sequence[int], column: Sequence[int], turned: bool
) -> np.ndarray:
    """Two neighbours along K of float16 in each register."""
    low, high = (matrix[(row, column + n) if not turned else (column + n, row)] for n in (0, 1))
    return np.ascontiguousarray(np.stack([low, high], -1)).view(np.uint32)[..., 0]


def test_float16_into_float16() -> None:
    """Accumulators of float16 share registers by columns."""
    random = np.random.default_rng(3)
    a, b, c = (random.integers(-4, 5, s).astype(np.float16) for s in ((16, 16), (16, 8), (16, 8)))
    left = [_pairs(a, _G + 8 * h, 2 * _C + 8 * n, False) for n in (0, 1) for h in (0, 1)]
    right = [_pairs(b, _G, 2 * _C + 8 * n, True) for n in (0, 1)]
    total = [_pairs(c, _G + 8 * h, 2 * _C, False) for h in (0, 1)]
    line = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 D, A, B, C;"
    found = _run(line, 32, *map(np.stack, (left, right, total)), results=2)
    want = (a.astype(np.float64) @ b + c).astype(np.float16)
    for h in (0, 1):
        exact = _pairs(want, _G + 8 * h, 2 * _C, False)
        assert found[h].view(np.uint32).tolist() == exact.tolist()

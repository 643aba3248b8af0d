# SPDX-License-Identifier: Apache-2.0
"""Products of all kinds: accumulators, formats, scales that are copied into tensor memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
import triton.language as tl
from tests.emulation import ptx_gluon
from tests.emulation import small_kernels as small
from tests.emulation.ptx_programs import Found, Machine
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def product(
    a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr,
    TOTAL: tl.constexpr, PRECISION: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """TWICE: the left operand is computed, so it comes from registers or tensor memory."""
    i, j, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, STEP)
    total = tl.zeros([M, N], TOTAL)
    for at in range(0, K, STEP):
        left = tl.load(a + i * K + at + k[None, :])
        right = tl.load(b + (at + k[:, None]) * N + j)
        if TWICE:
            left = left + left
        total = tl.dot(left, right, total, out_dtype=TOTAL, input_precision=PRECISION)
    tl.store(c + i * N + j, total)


@triton.jit
def scaled(
    a, a_scale, b, b_scale, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """[M, N] of one program; scales packed as the hardware wants them, in five dimensions."""
    m: tl.constexpr = M // 128
    n: tl.constexpr = N // 128
    k: tl.constexpr = K // BLOCK // 4
    left, right = a.load([0, 0]), b.load([0, 0])
    p, q = a_scale.load([0, 0, 0, 0, 0]), b_scale.load([0, 0, 0, 0, 0])
    p = p.reshape(m, k, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(M, K // BLOCK)
    q = q.reshape(n, k, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(N, K // BLOCK)
    total = tl.dot_scaled(left, p, A, right.T, q, B)
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    tl.store(c + i * N + j, total)


_TOTALS = {torch.float16: tl.float16, torch.float32: tl.float32, torch.int32: tl.int32}
_TOTALS[torch.float64] = tl.float64


def dot(
    kind: torch.dtype, total: torch.dtype, allowed: float, size: int = 128,
    precision: str = "tf32", twice: bool = False,
) -> Callable[[Machine], Found]:  # fmt: skip
    def run(on: Machine) -> Found:
        if kind.is_floating_point:
            a, b = ((torch.randn(s) * 2).to(kind) for s in ((size, 128), (128, size)))
        else:
            a, b = (torch.randint(-100, 100, s).to(kind) for s in ((size, 128), (128, size)))
        c = torch.zeros(size, size, dtype=total)
        fixed = {"M": size, "N": size, "K": 128, "STEP": 32 if kind == torch.float64 else 64}
        more = {"TOTAL": _TOTALS[total], "PRECISION": precision, "TWICE": twice}
        on.launch(product, 1, a, b, c, **fixed, **more)
        return Found(c, a.double() @ b.double() * (1 + twice), allowed)

    return run


def _codes(rows: int, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of K = 256: as bytes, and as numbers."""
    if form == "e2m1":
        codes = torch.randint(0, 256, (rows, 128), dtype=torch.uint8)
        return codes, small.mxfp4_values(codes)
    kind = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[form]
    exact = torch.randn(rows, 256).to(kind)
    return exact, exact.double()


def packed(a_form: str, b_form: str, block: int) -> Callable[[Machine], Found]:
    """block: numbers of K that share a scale; of 16 the scales are E4M3."""

    def operand(rows: int, form: str) -> tuple[Any, Any, torch.Tensor]:
        codes, numbers = _codes(rows, form)
        if block == 16:
            scale = (torch.rand(rows, 256 // block) + 0.1).to(torch.float8_e4m3fn)
            factor = scale.double()
        else:
            scale = torch.randint(117, 137, (rows, 256 // block), dtype=torch.uint8)
            factor = torch.exp2(scale.double() - 127)
        # Row 128 i + 32 j + l and scale 4 k + s lie at [i, k, l, j, s].
        flat = scale.view(torch.uint8).view(rows // 128, 4, 32, -1, 4).permute(0, 3, 2, 1, 4)
        tiles = flat.reshape(1, rows // 128, 256 // block // 4, 2, 256).contiguous()
        tiles = tiles.view(scale.dtype)
        given = (codes, list(codes.shape)), (tiles, list(tiles.shape))
        described = [TensorDescriptor.from_tensor(tensor, box) for tensor, box in given]
        return *described, numbers * factor.repeat_interleave(block, 1)  # type: ignore[return-value]

    def run(on: Machine) -> Found:
        (a, a_scale, left), (b, b_scale, right) = operand(128, a_form), operand(256, b_form)
        c = torch.empty(128, 256)
        fixed = {"M": 128, "N": 256, "K": 256, "BLOCK": block, "A": a_form, "B": b_form}
        made = on.launch(scaled, 1, a, a_scale, b, b_scale, c, **fixed)
        assert "tcgen05.cp.cta_group::1." in made.kernel.asm["ptx"]
        return Found(c, left @ right.T, 1e-6)

    return run


_F16, _F32, _F64 = torch.float16, torch.float32, torch.float64
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PRODUCTS: dict[str, Callable[[Machine], Found]] = {
    "float16 into float16": dot(_F16, _F16, 3e-3),
    "float16 into float16, 64 x 64": dot(_F16, _F16, 3e-3, 64),
    "float16 into float16, computed": dot(_F16, _F16, 3e-3, twice=True),
    "e4m3 into float16": dot(_E4M3, _F16, 3e-3),
    "e5m2": dot(_E5M2, _F32, 1e-3),  # Hopper keeps 13 bits of such sums
    "tf32, computed": dot(_F32, _F32, 2e-3, twice=True),
    "tf32 thrice": dot(_F32, _F32, 1e-6, precision="tf32x3"),
    "bf16 thrice": dot(_F32, _F32, 1e-4, 64, precision="bf16x3"),
    "float32 exactly": dot(_F32, _F32, 2e-6, 64, precision="ieee"),
    "float64": dot(_F64, _F64, 1e-14, 32, precision="ieee"),
    "int8, 128 x 128": dot(torch.int8, torch.int32, 0.0),
}
PACKED: dict[str, Callable[[Machine], Found]] = {
    "e4m3 x e4m3, packed scales": packed("e4m3", "e4m3", 32),
    "e5m2 x e4m3, packed scales": packed("e5m2", "e4m3", 32),
    "e2m1 x e2m1, packed scales": packed("e2m1", "e2m1", 32),
    "e2m1 x e2m1, packed scales of 16": packed("e2m1", "e2m1", 16),
    **{f"tensor memory by {shape}": ptx_gluon.through(shape) for shape in ptx_gluon.SHAPES},
    "copy into tensor memory": ptx_gluon.copied_into_tensor_memory,
}
"""sm_90 has no such instruction."""

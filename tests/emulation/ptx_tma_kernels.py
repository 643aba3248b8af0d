# SPDX-License-Identifier: Apache-2.0
"""Kernels whose tensors come and go in boxes, by descriptors of the kernel and of the host.

All sizes are such that the last box of each dimension sticks out of its tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
import triton.language as tl
from tests.emulation import ptx_gluon
from tests.emulation.ptx_programs import Found, Machine
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def product(
    a, b, c, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SPECIALISED: tl.constexpr
):  # fmt: skip
    left = tl.make_tensor_descriptor(a, [m, k], [k, 1], [M, K])
    right = tl.make_tensor_descriptor(b, [n, k], [k, 1], [N, K])
    out = tl.make_tensor_descriptor(c, [m, n], [n, 1], [M, N])
    row, column = tl.program_id(0) * M, tl.program_id(1) * N
    total = tl.zeros([M, N], tl.float32)
    for at in tl.range(0, k, K, warp_specialize=SPECIALISED):
        total = tl.dot(left.load([row, at]), right.load([column, at]).T, total)
    out.store([row, column], total.to(out.dtype))


@triton.jit
def product_of_host(left, right, out, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column = tl.program_id(0) * M, tl.program_id(1) * N
    total = tl.zeros([M, N], tl.float32)
    for at in range(0, k, K):
        total = tl.dot(left.load([row, at]), right.load([at, column]), total)
    out.store([row, column], total.to(out.dtype))


@triton.jit
def next_of(x, y, A, B, C, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [A, B, C], [B * C, C, 1], [a, b, c])
    sink = tl.make_tensor_descriptor(y, [A, B, C], [B * C, C, 1], [a, b, c])
    i, j, k = tl.program_id(0) * a, tl.program_id(1) * b, tl.program_id(2) * c - 4
    sink.store([i, j, k], source.load([i, j, k]) + 1)


@triton.jit
def moved(source, sink, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr):
    i, j, k = tl.program_id(0) * b, tl.program_id(1) * c, tl.program_id(2) * d
    sink.store([0, i, j, k, 0], source.load([1, i, j, k, 0]))


@triton.jit
def gathered(x, rows, y, n, w, R: tl.constexpr, W: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [n, w], [w, 1], [1, W])
    sink = tl.make_tensor_descriptor(y, [n, w], [w, 1], [1, W])
    at = tl.load(rows + tl.arange(0, R))
    sink.scatter(source.gather(at, 0), at + 1, 0)


@triton.jit
def combined(x, y, n, w, R: tl.constexpr, W: tl.constexpr, NAME: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [n, w], [w, 1], [R, W])
    sink = tl.make_tensor_descriptor(y, [n, w], [w, 1], [R, W])
    value = source.load([0, 0])
    if NAME == "add":
        sink.atomic_add([0, 0], value)
    elif NAME == "min":
        sink.atomic_min([0, 0], value)
    else:
        sink.atomic_xor([0, 0], value)


@triton.jit
def padded(x, y, n, w, R: tl.constexpr, W: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [n, w], [w, 1], [R, W], padding_option="nan")
    at = tl.arange(0, R)[:, None] * W + tl.arange(0, W)[None, :]
    tl.store(y + at, source.load([0, 0]))


def _operands(kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = torch.randn(200, 160).to(kind), torch.randn(104, 160).to(kind)
    return a, b, a.double() @ b.double().T


def by_kernel(specialised: bool) -> Callable[[Machine], Found]:
    def run(on: Machine) -> Found:
        a, b, want = _operands(torch.bfloat16)
        c = torch.full((200, 104), float("nan"), dtype=torch.bfloat16)
        sizes = {"M": 128, "N": 64, "K": 64, "SPECIALISED": specialised}
        on.launch(product, (2, 2, 1), a, b, c, 200, 104, 160, even=("k",), **sizes)
        return Found(c, want, 4e-3)

    return run


def by_host(kind: torch.dtype, step: int, columns: int) -> Callable[[Machine], Found]:
    """columns: of a box, which decide the swizzle."""

    def run(on: Machine) -> Found:
        a, b, want = _operands(kind)
        c = torch.full((200, 104), float("nan"), dtype=torch.float16)
        boxes = ((a, [64, step]), (b.T.contiguous(), [step, columns]), (c, [64, columns]))
        given = [TensorDescriptor.from_tensor(tensor, box) for tensor, box in boxes]
        grid = (4, -(-104 // columns), 1)
        on.launch(product_of_host, grid, *given, 160, M=64, N=columns, K=step)
        return Found(c, want, 1e-3)

    return run


def three(kind: torch.dtype) -> Callable[[Machine], Found]:
    """Columns begin before the tensor, too."""

    def run(on: Machine) -> Found:
        x = torch.arange(5 * 10 * 48).reshape(5, 10, 48).to(kind)
        y = torch.zeros_like(x)
        on.launch(next_of, (3, 3, 2), x, y, 5, 10, 48, even=("C",), a=2, b=4, c=32)
        return Found(y, x + 1, 0.0)

    return run


def _five(on: Machine) -> Found:
    x = torch.randn(2, 5, 6, 7, 32)
    y, box = torch.zeros_like(x), [1, 2, 2, 4, 32]
    source, sink = (TensorDescriptor.from_tensor(tensor, box) for tensor in (x, y))
    on.launch(moved, (3, 3, 2), source, sink, b=2, c=2, d=4)
    return Found(y, torch.stack([x[1], torch.zeros_like(x[1])]), 0.0)


def _rows(on: Machine) -> Found:
    x, rows = torch.randn(100, 64).bfloat16(), torch.randperm(99)[:32].int()
    y, want = torch.zeros_like(x), torch.zeros_like(x)
    on.launch(gathered, 1, x, rows, y, 100, 64, even=("w",), R=32, W=64)
    want[rows.long() + 1] = x[rows.long()]
    return Found(y, want, 0.0)


def reduced(name: str, kind: torch.dtype) -> Callable[[Machine], Found]:
    apply = {"add": torch.add, "min": torch.minimum, "xor": torch.bitwise_xor}[name]

    def run(on: Machine) -> Found:
        x, y = torch.randint(-100, 100, (2, 20, 48)).to(kind).clone()
        want = apply(x, y)
        y = y.clone()
        on.launch(combined, 1, x.clone(), y, 20, 48, even=("w",), R=32, W=64, NAME=name)
        return Found(y, want, 0.0)

    return run


def _nan(on: Machine) -> Found:
    x, y = torch.randn(20, 48), torch.zeros(32, 64)
    on.launch(padded, 1, x, y, 20, 48, even=("w",), R=32, W=64)
    want = torch.full_like(y, 7.0)
    want[:20, :48] = x
    return Found(y.nan_to_num(7.0), want, 0.0)


TMA: dict[str, Callable[[Machine], Found]] = {
    "descriptors of the kernel": by_kernel(False),
    "descriptors, warps specialised": by_kernel(True),
    "descriptors of the host": by_host(torch.float16, 64, 64),
    "descriptors of the host, rows of 32 bytes": by_host(torch.float16, 32, 16),
    "boxes of float32 in three dimensions": three(torch.float32),
    "boxes of int8 in three dimensions": three(torch.int8),
    "boxes of int64 in three dimensions": three(torch.int64),
    "boxes in five dimensions": _five,
    "boxes added, float32": reduced("add", torch.float32),
    "boxes added, bfloat16": reduced("add", torch.bfloat16),
    "the least of boxes": reduced("min", torch.int32),
    "boxes by xor": reduced("xor", torch.int64),
    "NaN outside of a tensor": _nan,
    "Gluon, boxes in and out": ptx_gluon.copied,
    "Gluon, product": ptx_gluon.multiplied,
}
GATHER: dict[str, Callable[[Machine], Found]] = {"rows gathered and scattered": _rows}
"""sm_90 has no such instruction."""

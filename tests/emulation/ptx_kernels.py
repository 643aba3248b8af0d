# SPDX-License-Identifier: Apache-2.0
"""Small Triton kernels as PTX on the emulator: `python -m tests.emulation.ptx_kernels TARGET`.

Runs each kernel, or those that are named after the target, in three orders and prints a JSON line:
the largest error against torch, what is allowed, whether all orders gave the same bytes, or what
was raised. In a process of its own, since it compiles: see tests/conftest.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
import triton.language as tl
from tests.emulation import small_kernels as small
from tests.emulation.ptx_function_kernels import FUNCTIONS
from tests.emulation.ptx_product_kernels import PACKED, PRODUCTS
from tests.emulation.ptx_programs import ORDERS, Found, Machine
from tests.emulation.ptx_tma_kernels import GATHER, TMA

from archkey.conformance.emulation.ptx.launcher import ordered


@triton.jit
def attend(q, k, v, out, keys, ROWS: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr):
    """The second product has its left operand in registers, or in tensor memory."""
    row, column, step = tl.arange(0, ROWS)[:, None], tl.arange(0, DIM)[None, :], tl.arange(0, STEP)
    query = tl.load(q + row * DIM + column)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, keys, STEP):
        here = start + step < keys
        key = tl.load(k + (start + step[:, None]) * DIM + column, here[:, None], other=0.0)
        value = tl.load(v + (start + step[:, None]) * DIM + column, here[:, None], other=0.0)
        scores = tl.where(here[None, :], tl.dot(query, tl.trans(key)) * 0.125, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        part = tl.exp(scores - higher[:, None])
        less = tl.exp(highest - higher)
        weight = weight * less + tl.sum(part, 1)
        total = tl.dot(part.to(value.dtype), value, total * less[:, None])
        highest = higher
    tl.store(out + row * DIM + column, total / weight[:, None])


@triton.jit
def histogram(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < n, other=0)
    tl.atomic_add(out + value, 1, at < n)


def _softmax(on: Machine) -> Found:
    x, out = torch.randn(3, 1000) * 4, torch.empty(3, 1000)
    on.launch(small.softmax, 3, x, out, 1000, BLOCK=1024)
    return Found(out, x.double().softmax(-1), 1e-6)


def _integers(on: Machine) -> Found:
    x = torch.randint(0, 1 << 20, (512,), dtype=torch.int32)
    out = torch.empty_like(x)
    on.launch(small.integers, 1, x, out, BLOCK=512)
    wide = x.long() * 1000003 + torch.arange(512)
    mixed = (wide % 97).int() + x // 7 + (x >> 3) ^ (x << 2)
    return Found(out, mixed + x.max() - x.min() + x.sum().int(), 0.0)


def _scan(on: Machine) -> Found:
    x = torch.randint(-100, 100, (1024,), dtype=torch.int32)
    out = torch.empty_like(x)
    on.launch(small.scan, 1, x, out, BLOCK=1024)
    return Found(out, x.cumsum(0), 0.0)


def _transpose(on: Machine) -> Found:
    x = torch.randn(64, 32).half()
    out = torch.empty(32, 64, dtype=torch.half)
    on.launch(small.transpose, 1, x, out, ROWS=64, COLUMNS=32)
    return Found(out, x.T, 0.0)


def _fp8(on: Machine) -> Found:
    x = (torch.randn(1024) * torch.randn(1024).mul(3).exp2()).clamp(-240, 240)
    codes, out = torch.empty(1024, dtype=torch.int8), torch.empty(1024)
    on.launch(small.through_fp8, 1, x, codes, out, FP8=tl.float8e4nv, BLOCK=1024)
    return Found(out, x.to(torch.float8_e4m3fn).float(), 0.0)


def _histogram(on: Machine) -> Found:
    x = torch.randint(0, 16, (1000,), dtype=torch.int32)
    out = torch.zeros(16, dtype=torch.int32)
    on.launch(histogram, 4, x, out, 1000, BLOCK=256)
    return Found(out, torch.bincount(x, minlength=16), 0.0)


def product(kind: torch.dtype, turned: bool, m: int = 64, n: int = 64, warps: int = 4) -> Any:
    def run(on: Machine) -> Found:
        a, b = ((torch.randn(rows, 256) * 2).to(kind) for rows in (m, n))
        c = torch.empty(m, n)
        right = b if turned else b.T.contiguous()
        step = 32 if kind == torch.float32 else 64
        fixed = {"M": m, "N": n, "STEP": step, "TURNED": turned}
        on.launch(small.matmul, 1, a, right, c, 256, warps=warps, **fixed)
        # TF32 has few bits, and so have Hopper's sums of FP8.
        allowed = {torch.float32: 2e-3, torch.float8_e4m3fn: 1e-3}.get(kind, 1e-6)
        return Found(c, a.double() @ b.double().T, allowed)

    return run


def _int8(on: Machine) -> Found:
    a, b = torch.randint(-100, 100, (2, 64, 128), dtype=torch.int8)
    c = torch.empty(64, 64, dtype=torch.int32)
    on.launch(small.int_matmul, 1, a, b, c, 128, M=64, N=64, STEP=64)
    return Found(c, a.double() @ b.double().T, 0.0)


def attention(rows: int, dim: int, warps: int) -> Any:
    def run(on: Machine) -> Found:
        q, k, v = (torch.randn(size, dim).bfloat16() for size in (rows, 200, 200))
        out = torch.empty(rows, dim)
        fixed = {"ROWS": rows, "DIM": dim, "STEP": 64}
        on.launch(attend, 1, q, k, v, out, 200, warps=warps, **fixed)
        scores = q.double() @ k.double().T * 0.125
        return Found(out, scores.softmax(-1) @ v.double(), 5e-3)

    return run


def scaled(a_form: str, b_form: str) -> Any:
    def operand(rows: int, form: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = torch.randint(117, 137, (rows, 8), dtype=torch.uint8)
        factor = torch.exp2(scale.double() - 127).repeat_interleave(32, 1)
        if form == "e2m1":
            codes = torch.randint(0, 256, (rows, 128), dtype=torch.uint8)
            return codes, scale, small.mxfp4_values(codes) * factor
        exact = torch.randn(rows, 256).to(torch.float8_e4m3fn)
        return exact.view(torch.uint8), scale, exact.double() * factor

    def run(on: Machine) -> Found:
        (a, a_scale, left), (b, b_scale, right) = operand(128, a_form), operand(128, b_form)
        c = torch.empty(128, 128)
        fixed = {"M": 128, "N": 128, "K": 256, "A": a_form, "B": b_form}
        on.launch(small.scaled_matmul, 1, a, a_scale, b, b_scale, c, **fixed)
        return Found(c, left @ right.T, 1e-6)

    return run


_KINDS = {"bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float8_e4m3fn}


def _two_workgroups(on: Machine) -> Found:
    """Each has half of the rows; on Blackwell the product is one of both."""
    a, b = torch.randn(256, 256).bfloat16(), torch.randn(128, 256).bfloat16()
    c, fixed = torch.empty(256, 128), {"M": 256, "N": 128, "STEP": 64, "TURNED": True}
    options = {"num_ctas": 2}
    made = on.launch(small.matmul, 1, a, b, c, 256, options=options, even=("K",), **fixed)
    assert ".reqnctapercluster 2" in made.kernel.asm["ptx"]
    return Found(c, a.double() @ b.double().T, 1e-6)


KERNELS: dict[str, Callable[[Machine], Found]] = {
    **{"softmax": _softmax, "integers": _integers, "scan": _scan, "transpose": _transpose},
    **{"fp8": _fp8, "atomics": _histogram, "int8": _int8},
    **{f"{name}, b turned": product(kind, True) for name, kind in _KINDS.items()},
    **{f"{name}, b as it is": product(_KINDS[name], False) for name in ("bf16", "f16")},
    "float32": product(torch.float32, True),
    "bf16 128 x 128, 8 warps": product(torch.bfloat16, False, 128, 128, 8),
    "bf16 16 x 16, 1 warp": product(torch.bfloat16, True, 16, 16, 1),
    "two workgroups": _two_workgroups,
    "attention 64 x 64": attention(64, 64, 4),
    "attention 128 x 128, 8 warps": attention(128, 128, 8),
}
SCALED = {
    f"{a} x {b}": scaled(a, b) for a, b in (("e2m1", "e2m1"), ("e4m3", "e4m3"), ("e4m3", "e2m1"))
}
"""sm_90 has no such instruction: Triton widens the operands."""


def kernels_of(target: str) -> dict[str, Callable[[Machine], Found]]:
    more = {**SCALED, **GATHER, **PACKED} if target == "cuda_sm100" else {}
    return {**KERNELS, **TMA, **PRODUCTS, **FUNCTIONS, **more}


def _orders(on: Machine, name: str) -> dict[str, Any]:
    outputs = []
    for order in ORDERS:
        torch.manual_seed(0)
        with ordered(order):
            found = kernels_of(on.target)[name](on)
        outputs.append(found.out.clone())
    wide = found.out.double()
    error = float((wide - found.want.double()).abs().max() / found.want.double().abs().max())
    same = all(torch.equal(outputs[0].view(torch.uint8), o.view(torch.uint8)) for o in outputs)
    return {"error": error, "allowed": found.allowed, "same": same}


def orders(on: Machine, *names: str) -> None:
    for name in names or kernels_of(on.target):
        try:
            row = {"name": name, **_orders(on, name)}
        except Exception as failure:
            row = {"name": name, "raised": f"{type(failure).__name__}: {failure}"}
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    orders(Machine(sys.argv[1]), *sys.argv[2:])

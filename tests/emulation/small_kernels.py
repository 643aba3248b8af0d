# SPDX-License-Identifier: Apache-2.0
"""Small Triton kernels, compiled for a target and run on the emulator: `python -m ... TARGET`.

Prints a JSON line for each: its name, the largest error against torch and what is allowed, or
what was raised. Compiled bodies need a process of their own, see tests/conftest.py.
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

from archkey.conformance.emulation.device import emulated
from archkey.conformance.emulation.faults import Fault
from archkey.launch import Program, compile_for


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(out + at, tl.load(x + at, mask) + tl.load(y + at, mask), mask)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    row = tl.program_id(0) * columns
    value = tl.load(x + row + at, at < columns, other=float("-inf"))
    value = tl.exp(value - tl.max(value, 0))
    tl.store(out + row + at, value / tl.sum(value, 0), at < columns)


@triton.jit
def integers(x, out, BLOCK: tl.constexpr):
    """Divisions, shifts and reductions of integers, in 32 and 64 bits."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    wide = value.to(tl.int64) * 1000003 + at
    mixed = (wide % 97).to(tl.int32) + value // 7 + (value >> 3) ^ (value << 2)
    tl.store(out + at, mixed + tl.max(value, 0) - tl.min(value, 0) + tl.sum(value, 0))


@triton.jit
def scan(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.cumsum(tl.load(x + at), 0))


@triton.jit
def histogram(x, out, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts with atomics on LDS, and adds them up with atomics on global memory."""
    found = tl.histogram(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)), BINS)
    tl.atomic_add(out + tl.arange(0, BINS), found)


@triton.jit
def transpose(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tile = tl.load(x + row * COLUMNS + column)
    turned = tl.trans(tile)
    tl.store(out + tl.arange(0, COLUMNS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :], turned)


@triton.jit
def through_fp8(x, codes, out, FP8: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    small = tl.load(x + at).to(FP8)
    tl.store(codes + at, small.to(tl.int8, bitcast=True))
    tl.store(out + at, small.to(tl.float32))


@triton.jit
def matmul(a, b, c, K, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, TURNED: tl.constexpr):
    """TURNED: b lies as [N, K]."""
    row, column, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, STEP)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(a + row * K + start + k[None, :])
        if TURNED:
            right = tl.load(b + column * K + start + k[:, None])
        else:
            right = tl.load(b + (start + k[:, None]) * N + column)
        total = tl.dot(left, right, total)
    tl.store(c + row * N + column, total)


@triton.jit
def int_matmul(a, b, c, K, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    row, column, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, STEP)
    total = tl.zeros([M, N], tl.int32)
    for start in range(0, K, STEP):
        left = tl.load(a + row * K + start + k[None, :])
        right = tl.load(b + column * K + start + k[:, None])
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    tl.store(c + row * N + column, total)


@triton.jit
def scaled_matmul(
    a, a_scale, b, b_scale, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """a [M, K or K / 2] and b [N, ...] of the formats A and B, with scales of 32 along K."""
    row, column, block = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K // 32)
    a_bytes: tl.constexpr = K // 2 if A == "e2m1" else K
    b_bytes: tl.constexpr = K // 2 if B == "e2m1" else K
    ka, kb = tl.arange(0, a_bytes), tl.arange(0, b_bytes)
    left = tl.load(a + row[:, None] * a_bytes + ka[None, :])
    right = tl.load(b + column[None, :] * b_bytes + kb[:, None])
    left_scale = tl.load(a_scale + row[:, None] * (K // 32) + block[None, :])
    right_scale = tl.load(b_scale + column[:, None] * (K // 32) + block[None, :])
    total = tl.dot_scaled(left, left_scale, A, right, right_scale, B)
    tl.store(c + row[:, None] * N + column[None, :], total)


KINDS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int8: "*i8", torch.uint8: "*u8", torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e4m3fnuz: "*fp8e4b8", torch.float8_e5m2: "*fp8e5",
    torch.float8_e5m2fnuz: "*fp8e5b16",
}  # fmt: skip


class Machine:
    """Compiles for one target and launches on the emulator."""

    def __init__(self, target: str) -> None:
        self.target = target
        found = emulated(target)
        assert found is not None
        self.device = found

    def launch(
        self,
        body: Any,
        grid: int,
        *arguments: Any,
        warps: int = 4,
        options: Any = None,
        **fixed: Any,
    ) -> Any:
        """Run `body`; tensors are aligned to 16 bytes."""
        names = body.arg_names[: len(arguments)]
        signature = {
            name: KINDS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            for name, value in zip(names, arguments, strict=True)
        }
        aligned = frozenset(n for n, kind in signature.items() if kind[0] == "*")
        chosen = {"num_warps": warps, **(options or {})}
        program = Program(body, signature, fixed, aligned, chosen)
        compiled = compile_for(program, self.device)
        self.device.launcher(compiled)((grid, 1, 1), *arguments)
        return compiled

    @property
    def fp8(self) -> tuple[torch.dtype, Any]:
        """What this target's matrix units and conversions call FP8."""
        if self.target == "rocm_gfx942":
            return torch.float8_e4m3fnuz, tl.float8e4b8
        return torch.float8_e4m3fn, tl.float8e4nv


def error(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found.double() - want.double()).abs().max() / want.double().abs().max())


def check_add(on: Machine) -> tuple[float, float]:
    x, y, out = torch.randn(3, 1000)
    out[:] = torch.nan
    on.launch(add, 4, x, y, out, 997, BLOCK=256)
    assert out[997:].isnan().all()
    return error(out[:997], (x + y)[:997]), 0.0


def check_softmax(on: Machine) -> tuple[float, float]:
    x, out = torch.randn(3, 1000) * 4, torch.empty(3, 1000)
    on.launch(softmax, 3, x, out, 1000, BLOCK=1024)
    return error(out, x.double().softmax(-1)), 1e-6


def check_integers(on: Machine) -> tuple[float, float]:
    x = torch.randint(0, 1 << 20, (512,), dtype=torch.int32)
    out = torch.empty_like(x)
    on.launch(integers, 1, x, out, BLOCK=512)
    wide = x.long() * 1000003 + torch.arange(512)
    mixed = (wide % 97).int() + x // 7 + (x >> 3) ^ (x << 2)
    return error(out, mixed + x.max() - x.min() + x.sum().int()), 0.0


def check_scan(on: Machine) -> tuple[float, float]:
    x = torch.randint(-100, 100, (1024,), dtype=torch.int32)
    out = torch.empty_like(x)
    on.launch(scan, 1, x, out, BLOCK=1024)
    return error(out, x.cumsum(0)), 0.0


def check_histogram(on: Machine) -> tuple[float, float]:
    x = torch.randint(0, 60, (3072,), dtype=torch.int32)
    out = torch.zeros(64, dtype=torch.int32)
    compiled = on.launch(histogram, 3, x, out, BLOCK=1024, BINS=64)
    assert "ds_add_u32" in compiled.kernel.asm["amdgcn"]
    return error(out, x.bincount(minlength=64)), 0.0


def check_transpose(on: Machine) -> tuple[float, float]:
    x = torch.randn(64, 32).half()
    out = torch.empty(32, 64, dtype=torch.half)
    on.launch(transpose, 1, x, out, ROWS=64, COLUMNS=32)
    return error(out, x.T), 0.0


def check_fp8(on: Machine) -> tuple[float, float]:
    kind, name = on.fp8
    x = (torch.randn(1024) * torch.randn(1024).mul(3).exp2()).clamp(-240, 240)
    codes, out = torch.empty(1024, dtype=torch.int8), torch.empty(1024)
    on.launch(through_fp8, 1, x, codes, out, FP8=name, BLOCK=1024)
    want = x.to(kind)
    return max(error(codes, want.view(torch.int8)), error(out, want.float())), 0.0


def matrices(kind: str, size: int, turned: bool) -> Callable[..., Any]:
    def check(on: Machine) -> tuple[float, float]:
        dtype = on.fp8[0] if kind == "fp8" else getattr(torch, kind)
        a, b = ((torch.randn(64, 256) * 2).to(dtype) for _ in range(2))
        right = b if turned else b.T.contiguous()
        c = torch.empty(64, 64)
        options = {"matrix_instr_nonkdim": size}
        fixed = {"M": 64, "N": 64, "STEP": 128, "TURNED": turned}
        on.launch(matmul, 1, a, right, c, 256, options=options, **fixed)
        return error(c, a.double() @ b.double().T), 1e-6

    return check


def check_int8(on: Machine) -> tuple[float, float]:
    a, b = torch.randint(-100, 100, (2, 64, 128), dtype=torch.int8)
    c = torch.empty(64, 64, dtype=torch.int32)
    on.launch(int_matmul, 1, a, b, c, 128, M=64, N=64, STEP=64)
    return error(c, a.double() @ b.double().T), 0.0


@triton.jit
def small_matmul(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    left, right = tl.load(a + row * K + k[None, :]), tl.load(b + column * K + k[:, None])
    tl.store(c + row * N + column, tl.dot(left, right))


def check_small(on: Machine) -> tuple[float, float]:
    """Few rows: dot products of a lane, and matrix instructions of 4 x 4 in 16 blocks."""
    worst = 0.0
    for kind in (torch.bfloat16, torch.float16, torch.int8):
        for m, n in ((1, 16), (4, 64), (64, 4)):
            a, b = ((torch.randn(size, 64) * 3).to(kind) for size in (m, n))
            c = torch.empty(m, n, dtype=torch.int32 if kind == torch.int8 else torch.float32)
            on.launch(small_matmul, 1, a, b, c, M=m, N=n, K=64)
            worst = max(worst, error(c, a.double() @ b.double().T))
    return worst, 1e-6


def check_float32(on: Machine) -> tuple[float, float]:
    """gfx942 has xf32, of 10 bits after the point, and Triton uses it unless told not to."""
    a, b = torch.randn(2, 64, 128)
    c = torch.empty(64, 64)
    on.launch(matmul, 1, a, b, c, 128, M=64, N=64, STEP=64, TURNED=True)
    return error(c, a.double() @ b.double().T), 1e-6 if on.target == "rocm_gfx950" else 2e-3


def check_loads_into_lds(on: Machine) -> tuple[float, float]:
    """float32, whose words go to LDS one by one on either target."""
    a, b = torch.randn(2, 64, 256)
    c = torch.empty(64, 64)
    os.environ["TRITON_HIP_USE_ASYNC_COPY"] = "1"
    try:
        fixed = {"M": 64, "N": 64, "STEP": 64, "TURNED": True}
        compiled = on.launch(matmul, 1, a, b, c, 256, options={"num_stages": 2}, **fixed)
    finally:
        del os.environ["TRITON_HIP_USE_ASYNC_COPY"]
    assert "global_load_lds_dword" in compiled.kernel.asm["amdgcn"]
    return error(c, a.double() @ b.double().T), 1e-6 if on.target == "rocm_gfx950" else 2e-3


def scaled(a_form: str, b_form: str, size: int) -> Callable[..., Any]:
    """Random codes with random scales, of which each block has another."""
    m, n, k = 64, 64, 256

    def operand(rows: int, form: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = torch.randint(117, 137, (rows, k // 32), dtype=torch.uint8)
        factor = torch.exp2(scale.double() - 127).repeat_interleave(32, 1)
        if form == "e2m1":
            codes = torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8)
            values = mxfp4_values(codes)
        else:
            small = torch.randn(rows, k).to(torch.float8_e4m3fn)
            codes, values = small.view(torch.uint8), small.double()
        return codes, scale, values * factor

    def check(on: Machine) -> tuple[float, float]:
        a, a_scale, left = operand(m, a_form)
        b, b_scale, right = operand(n, b_form)
        c = torch.empty(m, n)
        on.launch(
            *(scaled_matmul, 1, a, a_scale, b, b_scale, c),
            **{"options": {"matrix_instr_nonkdim": size}, "M": m, "N": n, "K": k},
            **{"A": a_form, "B": b_form},
        )
        return error(c, left @ right.T), 1e-6

    return check


def mxfp4_values(codes: torch.Tensor) -> torch.Tensor:
    """Two E2M1 a byte, the lower half first, by the table of OCP MX."""
    sizes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
    table = torch.cat([sizes, -sizes])
    return torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], -1).flatten(-2)


def check_stray_row(on: Machine) -> tuple[float, float]:
    """A program too many reads past the tensors, and the emulator says so."""
    x, out = torch.randn(2, 3, 1000)
    # Storages of their own: the halves of one would be neighbours.
    x, out = x.clone(), out.clone()
    try:
        on.launch(softmax, 4, x, out, 1000, BLOCK=1024)
    except Fault as fault:
        assert "past the end of the storage of x (12000 bytes)" in str(fault), fault
        return 0.0, 0.0
    return 1.0, 0.0


CHECKS: dict[str, Callable[[Machine], tuple[float, float]]] = {
    **{"add": check_add, "softmax": check_softmax, "integers": check_integers},
    **{
        "histogram": check_histogram,
        "scan": check_scan,
        "transpose": check_transpose,
        "fp8": check_fp8,
    },
    **{"int8": check_int8, "float32": check_float32, "stray row": check_stray_row},
    **{"loads into LDS": check_loads_into_lds, "few rows": check_small},
    **{
        f"{kind} {size}x{size}, b {'turned' if turned else 'as it is'}": matrices(
            kind, size, turned
        )
        for kind in ("bfloat16", "float16", "fp8")
        for size in (16, 32)
        for turned in (True, False)
    },
}
SCALED = {
    f"{a} x {b} with scales, {size}x{size}": scaled(a, b, size)
    for a, b in (("e2m1", "e2m1"), ("e4m3", "e4m3"), ("e4m3", "e2m1"))
    for size in (16, 32)
}
"""gfx942 has no such instruction."""


def main(target: str) -> None:
    torch.set_num_threads(1)
    on = Machine(target)
    for name, check in {**CHECKS, **(SCALED if target == "rocm_gfx950" else {})}.items():
        torch.manual_seed(0)
        try:
            found, allowed = check(on)
            row = {"name": name, "error": found, "allowed": allowed}
        except Exception as failure:
            row = {"name": name, "raised": f"{type(failure).__name__}: {failure}"}
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

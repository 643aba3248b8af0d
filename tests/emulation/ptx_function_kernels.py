# SPDX-License-Identifier: Apache-2.0
"""Kernels that call functions: Triton's own that are not inlined, and those of libdevice."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
import triton.language as tl
from tests.emulation.ptx_programs import Found, Machine
from triton.language.extra import libdevice


@triton.jit(noinline=True)
def _stepped(a, b):
    if a > b:
        return a * 2
    return b * 3 + a


@triton.jit
def stepped(x, out, n):
    value = tl.load(x + tl.program_id(0))
    once = _stepped(value, n)
    tl.store(out + tl.program_id(0), _stepped(once, value * 5))


@triton.jit
def applied(x, out, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < n, other=1.0)
    if NAME == "sin":
        value = libdevice.sin(value)
    elif NAME == "pow":
        value = libdevice.pow(value, value * 0 + 1.5)
    elif NAME == "lgamma":
        value = libdevice.lgamma(value)
    elif NAME == "fmod":
        value = libdevice.fmod(value, 0.7)
    elif NAME == "exp":
        value = libdevice.exp(value)
    else:
        value = libdevice.log1p(value)
    tl.store(out + at, value, at < n)


@triton.jit
def summed(x, out, BLOCK: tl.constexpr):
    """Blocks of a few addresses, which many threads add to."""
    at = tl.arange(0, BLOCK)
    tl.atomic_add(out + at % 8, tl.load(x + at))


def _not_inlined(on: Machine) -> Found:
    x = torch.tensor([1, 50, 7, 200], dtype=torch.int32)
    out = torch.zeros_like(x)
    made = on.launch(stepped, 4, x, out, 30)
    assert "call.uni" in made.kernel.asm["ptx"]

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(a > b, a * 2, b * 3 + a)

    return Found(out, step(step(x, torch.full_like(x, 30)), x * 5), 0.0)


def libdevice_of(
    name: str, kind: torch.dtype, want: Callable[[torch.Tensor], torch.Tensor], allowed: float,
    has: str = "",
) -> Callable[[Machine], Found]:  # fmt: skip
    """has: what its text must hold"""

    def run(on: Machine) -> Found:
        x = torch.rand(300, dtype=kind) * 4 + 0.1
        x[::3] *= 1e5 if name == "sin" else 1
        out = torch.zeros_like(x)
        made = on.launch(applied, 3, x, out, 300, NAME=name, BLOCK=128)
        assert has in made.kernel.asm["ptx"]
        return Found(out, want(x.double()), allowed)

    return run


def added(kind: torch.dtype) -> Callable[[Machine], Found]:
    """Small whole numbers, whose sums are exact."""

    def run(on: Machine) -> Found:
        x, out = torch.randint(-3, 4, (1024,)).to(kind), torch.zeros(8, dtype=kind)
        on.launch(summed, 1, x, out, BLOCK=1024)
        return Found(out, x.double().view(-1, 8).sum(0), 0.0)

    return run


_F32, _F64 = torch.float32, torch.float64
FUNCTIONS: dict[str, Callable[[Machine], Found]] = {
    "a function that is not inlined": _not_inlined,
    "sin of float32": libdevice_of("sin", _F32, torch.sin, 3e-7, ".local"),
    "sin of float64": libdevice_of("sin", _F64, torch.sin, 1e-15, "call.uni"),
    "pow of float64": libdevice_of("pow", _F64, lambda x: x**1.5, 1e-15, "call.uni"),
    "lgamma of float64": libdevice_of("lgamma", _F64, torch.lgamma, 1e-15, "call.uni"),
    "fmod of float32": libdevice_of(
        "fmod", _F32, lambda x: x.float().fmod(torch.tensor(0.7)).double(), 0.0, ".rz"
    ),
    "exp of float32": libdevice_of("exp", _F32, torch.exp, 3e-7, ".rm"),
    "log1p of float32": libdevice_of("log1p", _F32, torch.log1p, 3e-7, ".rz"),
    "sums of float16 in memory": added(torch.float16),
    "sums of bfloat16 in memory": added(torch.bfloat16),
    "sums of float64 in memory": added(torch.float64),
}

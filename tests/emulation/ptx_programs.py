# SPDX-License-Identifier: Apache-2.0
"""Compiles small Triton and Gluon kernels for a target and launches them on the emulator of PTX."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
from tests.emulation import small_kernels as small

from archkey.conformance.emulation.ptx.machine import Order
from archkey.launch import Program, compile_for

ORDERS = (Order(), Order(eager=True), Order(warps=True, seed=1))

KINDS = {**small.KINDS, torch.int64: "*i64", torch.uint32: "*u32", torch.float64: "*fp64"}
KINDS |= {torch.bool: "*i1", torch.int16: "*i16"}


class Found(NamedTuple):
    """What a kernel wrote, what it should have, and the largest relative error."""

    out: torch.Tensor
    want: torch.Tensor
    allowed: float


def kind_of(value: Any) -> str:
    """Triton's type of an argument: a tensor, a tensor descriptor, an integer."""
    if isinstance(value, torch.Tensor):
        return KINDS[value.dtype]
    if not hasattr(value, "block_shape"):
        return "i32"
    layout = f",{value.layout!r}" if hasattr(value, "layout") else ""
    return f"tensordesc<{KINDS[value.base.dtype][1:]}{list(value.block_shape)}{layout}>"


class Machine(small.Machine):
    """Compiles each program once."""

    compiled: dict[Any, Any] = {}

    def launch(
        self,
        body: Any,
        grid: int | tuple[int, int, int],
        *arguments: Any,
        warps: int = 4,
        options: Any = None,
        even: tuple[str, ...] = (),
        **fixed: Any,
    ) -> Any:
        """even: integers that are multiples of 16, besides all addresses."""
        names = body.arg_names[: len(arguments)]
        signature = {name: kind_of(v) for name, v in zip(names, arguments, strict=True)}
        chosen = {"num_warps": warps, "num_stages": 3, **(options or {})}
        key = (body.__name__, str(signature), str(fixed), str(chosen), even, self.target)
        if key not in self.compiled:
            aligned = frozenset([*(n for n, kind in signature.items() if kind[0] == "*"), *even])
            made = Program(body, signature, fixed, aligned, chosen)
            self.compiled[key] = compile_for(made, self.device)
        places = (grid, 1, 1) if isinstance(grid, int) else grid
        self.device.launcher(self.compiled[key])(places, *arguments)
        return self.compiled[key]

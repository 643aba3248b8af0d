# SPDX-License-Identifier: Apache-2.0
"""Bind and run: from a chosen kernel to a callable.

A kernel's builder gets a problem and a `Build`, and returns `run(*inputs, *outputs)`. Triton
bodies go through `Build.compile`: everything that decides the machine code is in a `Program`,
which is compiled ahead of its first launch by one function for every target, here or elsewhere.
What was compiled is the very object that is launched, so what was prepared is what runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archkey.compilation import Compiled, Program, compile_for
from archkey.errors import ArchkeyError, Unsupported
from archkey.kernel import Kernel, Run
from archkey.selection import Decision

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities
    from archkey.ops import Operator
    from archkey.probe import Device

__all__ = [
    "Build",
    "Compiled",
    "Plan",
    "Program",
    "bind",
    "compile_for",
    "driver_launcher",
    "interpreting",
    "products_in_order",
]


Grid = tuple[int, int, int]
Launch = Callable[..., None]
"""`launch(grid, *run-time arguments)`."""


class Build:
    """What a builder may know and use while it binds a kernel to a problem.

    draft  only to see which programs it asks for: none is compiled, and its `run` is of no use
           unless there is no program
    """

    def __init__(
        self,
        device: Device,
        capabilities: Capabilities,
        operator: Operator,
        kernel: Kernel,
        versions: Mapping[str, str],
        draft: bool = False,
    ) -> None:
        self.device = device
        self.capabilities = capabilities
        self.operator = operator
        self.kernel = kernel
        self.versions = versions
        self.draft = draft
        self.programs: list[Program] = []
        self.compiled: list[Compiled] = []

    def tuning(self, problem: Any) -> Any:
        """The kernel's tuning values for `problem`."""
        if self.kernel.tuning is None:
            raise ArchkeyError(f"kernel {self.kernel.id} has no tuning table")
        return self.kernel.tuning.lookup(problem, self.versions).values

    def compile(self, program: Program) -> Launch:
        """Compile `program` for this device's target; returns `launch(grid, *arguments)`."""
        self.programs.append(program)
        if self.draft:
            return _undone
        if interpreting():
            return _interpreted(program)
        compiled = compile_for(program, self.device)
        self.compiled.append(compiled)
        if self.device.source == "pretend":  # its driver is not here either
            return _refuse_pretended(self.device)
        return self.device.launcher(compiled) or driver_launcher(compiled, self.device)


@dataclass(frozen=True)
class Plan:
    """A problem bound to a kernel. `plan.run(*inputs, *outputs)` is the kernel's own function:

    no check, no host synchronisation, no allocation but a workspace from torch; it can be captured
    in a CUDA or HIP graph. `programs` are the Triton bodies it launches, `compiled` the same as
    machine code, unless they are interpreted.
    """

    problem: Any
    decision: Decision
    run: Run
    programs: tuple[Program, ...] = ()
    compiled: tuple[Compiled, ...] = ()


def bind(problem: Any, decision: Decision, build: Build) -> Plan:
    """Build the chosen kernel for `problem`."""
    run = build.kernel.builder()(problem, build)
    if not callable(run):
        raise TypeError(f"{build.kernel.build} must return a function, found {run!r:.200}")
    if build.device.source == "pretend" and not interpreting():
        run = _refuse_pretended(build.device)
    return Plan(problem, decision, run, tuple(build.programs), tuple(build.compiled))


def interpreting() -> bool:
    """Whether Triton's interpreter stands in for the device (TRITON_INTERPRET, read by Triton

    when a body is defined: set it before kernels are imported).
    """
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@contextmanager
def products_in_order() -> Iterator[None]:
    """Within it, Triton's interpreter adds up all elements of a matrix product in one order.

    As matrix units do. The BLAS that it hands tiles to does not: there the bits of a row depend on
    where in the tile it lies.
    """
    import numpy
    from triton.runtime import interpreter

    class Ordered:
        """numpy with another matmul."""

        def __getattr__(self, name: str) -> Any:
            return getattr(numpy, name)

        def matmul(self, a: Any, b: Any, dtype: Any) -> Any:
            return numpy.einsum("...mk,...kn->...mn", a, b, dtype=dtype)

    interpreter.np = Ordered()
    try:
        yield
    finally:
        interpreter.np = numpy


@contextmanager
def rounded_to_nearest() -> Iterator[None]:
    """Within it, Triton's interpreter rounds float32 to bfloat16 to nearest even, as GPUs do.

    By itself it cuts the last 16 bits off, and all that it writes is too small.
    """
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    usual = interpreter._convert_float

    def convert(data: Any, source: Any, to: Any, mode: Any) -> Any:
        if source == tl.bfloat16 and to == tl.float32:  # exact either way; this way takes no time
            return data.view(numpy.uint16).astype(numpy.uint32) << 16
        if source != tl.float32 or to != tl.bfloat16:
            return usual(data, source, to, mode)
        values = numpy.ascontiguousarray(data).view(numpy.float32)
        bits = values.view(numpy.uint32)
        up = (bits >> 16) & 1
        rounded = (bits + (up + 0x7FFF)) >> 16
        special = ~numpy.isfinite(values)  # a NaN may have nothing but low bits
        kept = (bits >> 16) | numpy.where(numpy.isnan(values), 0x40, 0)
        return numpy.where(special, kept, rounded).astype(numpy.uint16).reshape(data.shape)

    interpreter._convert_float = convert
    try:
        yield
    finally:
        interpreter._convert_float = usual


def _interpreted(program: Program) -> Launch:
    """Raises Unsupported for Gluon: the next kernel of the operator is taken then."""
    if getattr(program.body, "is_gluon", bool)():
        raise Unsupported(f"{program.body.__name__} is Gluon, which Triton does not interpret")
    body, constants = program.body, dict(program.constants)

    def launch(grid: Grid, *arguments: Any) -> None:
        body[grid](*arguments, **constants)

    return launch


def _refuse_pretended(device: Device) -> Run:
    def run(*arguments: Any) -> None:
        raise Unsupported(
            f"{device.target} is pretended: kernels are compiled for it, not launched. "
            "Run on the device, or set TRITON_INTERPRET=1 before the start to interpret on the CPU."
        )

    return run


def _undone(grid: Grid, *arguments: Any) -> None:
    raise ArchkeyError("a draft launches nothing")


def driver_launcher(compiled: Compiled, device: Device) -> Launch:
    """Launches on `device`, into whose driver the machine code is loaded now.

    So the first launch neither compiles nor loads, and may be inside of a graph's capture. What
    the card has no room for raises Triton's OutOfResources here.
    """
    import torch
    from triton.runtime import driver

    index, stream_of = device.index, driver.active.get_current_stream
    # Triton wants the constants too, in the body's order; they come after the run-time ones.
    constants = tuple(compiled.program.constants.values())
    kernel = compiled.kernel
    torch.cuda.init()
    with torch.cuda.device(index):
        kernel._init_handles()

    def launch(grid: Grid, *arguments: Any) -> None:
        if torch.cuda.current_device() == index:
            kernel[grid](*arguments, *constants, stream=stream_of(index))
        else:
            with torch.cuda.device(index):
                kernel[grid](*arguments, *constants, stream=stream_of(index))

    return launch

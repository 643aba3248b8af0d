# SPDX-License-Identifier: Apache-2.0
"""The `cpu` plugin: the torch reference, served through the door that every vendor uses.

At home it is the kernel of every operator; on other targets it is the last resort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from archkey.capabilities import Capability
from archkey.hookspecs import hookimpl
from archkey.kernel import Kernel, Run, resolve
from archkey.launch import Build
from archkey.ops import Operator
from archkey.target import Target

ARCHKEY_API = (1, 1)

_TORCH = "torch on the CPU"


@hookimpl
def archkey_capabilities(target: Target) -> Iterable[Capability]:
    """A CPU has none of the units of a GPU; what torch converts in software is not a capability."""
    yield Capability("warp_size", 1, _TORCH, "one thread computes one row of a torch kernel")
    yield Capability("mxfp4", "emulated", _TORCH, "decoded to float32 before the product")
    yield Capability("nvfp4", "emulated", _TORCH, "decoded to float32 before the product")
    yield Capability("cuda_graph", False, _TORCH, "launches are function calls")


@hookimpl
def archkey_kernels(target: Target, operators: Mapping[str, Operator]) -> Iterable[Kernel]:
    """One kernel an operator: its reference."""
    for operator in operators.values():
        yield Kernel(
            operator=operator.name,
            name="torch",
            build="archkey.reference.plugin:build",
            summary=f"plain torch, as readable as the mathematics ({operator.reference})",
        )


def build(problem: Any, build: Build) -> Run:
    """Turn a reference, which returns unrounded results, into a kernel, which writes outputs."""
    operator = build.operator
    reference = resolve(operator.reference)
    inputs = operator.inputs

    def run(*arguments: Any) -> None:
        results = reference(**dict(zip(inputs, arguments, strict=False)))
        # Results are complete before the first write, so outputs may alias inputs.
        for result, out in zip(results, arguments[len(inputs) :], strict=True):
            if out is not None:
                out.copy_(result)

    return run

# SPDX-License-Identifier: Apache-2.0
"""A workload: one call of an operator at the sizes of a real model, and what it must cost at least.

Workloads are found through their operator: `Operator.workloads` names a module, a vendor's own
too. The module has `WORKLOADS`, a tuple of `Workload`, and `COSTS`, operator -> cost function.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from archkey.conformance.case import Maker
from archkey.errors import PluginError, describe

if TYPE_CHECKING:
    from archkey.ops import Operator

__all__ = ["Cost", "Supply", "Workload", "cost_of", "held_bytes", "workloads_of"]


@dataclass(frozen=True)
class Cost:
    """The least that any implementation does: the floor that a time is measured against.

    flops  operations of matrix products, multiply and add counted as two; 0 where there are none
    bytes  each input that is needed read once, each output written once
    rate   the matrix rate that bounds the operations: "bfloat16" (float16 too) or "float8"
    """

    flops: float
    bytes: float
    rate: str = "bfloat16"


@dataclass(frozen=True)
class Workload:
    """`inputs(maker)` gives the keyword arguments of the operator's public function.

    They are those of an engine's step: outputs that engines preallocate are left out, and
    whoever binds the call adds them.

    model  the model whose sizes these are; tp  the GPUs that share its heads
    sizes  batch and lengths, short: "b128 kv8k"
    about  what else there is to say: "page 64, fp8 cache"
    quick  belongs to the short run, whose results stand in the README
    """

    operator: str
    model: str
    tp: int
    sizes: str
    inputs: Callable[[Maker], Mapping[str, Any]]
    about: str = ""
    quick: bool = False

    @property
    def name(self) -> str:
        """Unique among the workloads of its operator, easy to type: "deepseek-v3-tp8-b128-kv8k"."""
        parts = (self.model, f"tp{self.tp}", self.sizes, self.about)
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")

    @property
    def title(self) -> str:
        """For people: "DeepSeek-V3 TP8, b128 kv8k, page 64"."""
        return ", ".join(filter(None, (f"{self.model} TP{self.tp}", self.sizes, self.about)))


class Supply(Maker):
    """Makes inputs where they are used, since those of a workload take gigabytes.

    Nothing is poisoned: what a peer does with NaN in unused memory is not the question here.
    """

    poisons = False

    def __init__(self, device: torch.device | str, seed: int, fp8: str = "e4m3fn") -> None:
        super().__init__(device, seed, fp8)
        self._generator = torch.Generator(self.device).manual_seed(seed)


def held_bytes(values: Iterable[Any]) -> int:
    """Bytes of the tensors among a call's arguments, each as often as it is passed."""
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def workloads_of(operator: Operator) -> tuple[Workload, ...]:
    """The workloads of `operator`; none if it names no module."""
    if not operator.workloads:
        return ()
    listed = _module(operator).WORKLOADS
    return tuple(workload for workload in listed if workload.operator == operator.name)


def cost_of(operator: Operator, inputs: Mapping[str, Any]) -> Cost:
    """The cost of a call of `operator` with these keyword arguments. Reads lengths: it waits."""
    cost: Callable[[Mapping[str, Any]], Cost] = _module(operator).COSTS[operator.name]
    return cost(inputs)


def _module(operator: Operator) -> Any:
    """The module of its workloads. PluginError if it cannot be imported or lacks something."""
    try:
        module = importlib.import_module(operator.workloads)
        tuple(module.WORKLOADS)
        dict(module.COSTS)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the workloads of {operator.name} ({operator.workloads}) cannot be loaded: "
            f"{describe(error)}"
        ) from error
    return module

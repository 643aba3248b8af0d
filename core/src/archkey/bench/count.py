# SPDX-License-Identifier: Apache-2.0
"""What kernels do at workloads of real models, counted on an emulator: no card, and no times.

Of each launch some workgroups are run, evenly spaced, and what they did is multiplied up to all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archkey.bench.workload import Supply, Workload, cost_of
from archkey.conformance.emulation.counters import counting
from archkey.conformance.emulation.device import TARGETS, emulated
from archkey.conformance.judge import maker_of
from archkey.errors import Unsupported
from archkey.kernel import resolve
from archkey.launch import interpreting
from archkey.session import Session
from archkey.settings import settings

__all__ = ["Counted", "counted"]


@dataclass(frozen=True)
class Counted:
    """One workload. counts: of `Counters.to_json`; the least: what any implementation does."""

    operator: str
    workload: str
    counts: dict[str, Any]
    least_bytes: float
    least_flops: float

    @property
    def bytes(self) -> int:
        """Read from and written to global memory by threads and copies."""
        return int(self.counts["loaded"] + self.counts["stored"] + self.counts["copied"])

    def to_json(self) -> dict[str, Any]:
        """All fields, and the two ratios; None where nothing of the kind is needed."""
        flops = self.counts["flops"] / self.least_flops if self.least_flops else None
        return {
            **vars(self),
            "bytes of the least": self.bytes / self.least_bytes if self.least_bytes else None,
            "flops of the least": flops,
        }


def counted(
    target: str, workloads: Sequence[Workload], sample: int, seed: int = 0
) -> Iterator[Counted]:
    """One after the other. sample: workgroups of a launch that are run.

    Raises Unsupported for a target that nobody counts for, and where Triton interprets.
    """
    device = emulated(target)
    if device is None:
        raise Unsupported(f"instructions are counted for {', '.join(TARGETS)}; found {target}")
    if interpreting():
        raise Unsupported("this process interprets: count in one without TRITON_INTERPRET=1")
    session = Session(device, settings())
    for workload in workloads:
        operator = session.operators[workload.operator]
        inputs = workload.inputs(maker_of(session, seed, Supply))
        function = resolve(operator.function).__wrapped__
        with counting(sample) as counters, torch.no_grad():
            function(session, **inputs)
        cost = cost_of(operator, inputs)
        yield Counted(workload.operator, workload.name, counters.to_json(), cost.bytes, cost.flops)

# SPDX-License-Identifier: Apache-2.0
"""What this very card reaches: the bounds that times are measured against in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from archkey.bench.clock import Clock
from archkey.bench.workload import Cost
from archkey.conformance.case import Maker
from archkey.conformance.judge import maker_of
from archkey.session import Session

__all__ = ["Ceiling", "bound", "measure"]


@dataclass(frozen=True)
class Ceiling:
    """A rate that was measured.

    name   "copy": bytes read and written by a large device-to-device copy; "bfloat16", "float8":
           a matrix product of 8192 x 8192 x 8192 on random numbers; "launch": a call that does
           next to nothing, the least that any time can be
    unit   "B/s", "FLOP/s"; "us" for the launch
    """

    name: str
    unit: str
    value: float


def measure(session: Session) -> Iterator[Ceiling]:
    """The ceilings of the session's device; takes some tenths of a second."""
    make: Maker = maker_of(session)
    device, on_card = make.device, make.device.type != "cpu"
    clock = Clock(device, samples=20)
    yield Ceiling("copy", "B/s", _copy(clock, 2 << 30 if on_card else 64 << 20))
    n = 8192 if on_card else 512
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    product = clock.time([lambda: a @ b])
    yield Ceiling("bfloat16", "FLOP/s", 2 * n**3 / product.us * 1e6)
    if on_card and (rate := _float8(clock, a, b, make.fp8)):
        yield Ceiling("float8", "FLOP/s", rate)
    one = torch.zeros(1, device=device)
    yield Ceiling("launch", "us", clock.time([one.zero_]).us)


def _copy(clock: Clock, size: int) -> float:
    """Bytes a second, read and written, of a kernel that copies `size` bytes.

    The sign is turned on the way: a plain copy in a graph is a copy engine's work, which on an H200
    reaches two thirds of what the multiprocessors do.
    """
    source = torch.ones(size // 4, device=clock.device)
    target = torch.empty_like(source).fill_(0)  # a page that was never touched is not there yet
    return 2 * size / clock.time([lambda: torch.neg(source, out=target)]).us * 1e6


def _float8(clock: Clock, a: torch.Tensor, b: torch.Tensor, kind: torch.dtype) -> float | None:
    """Operations a second of an FP8 product; None where torch has none on this card."""
    left, right = a.to(kind), b.to(kind).T.contiguous().T  # the second one column-major
    one = torch.ones((), device=a.device)

    def product() -> object:
        return torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16)

    try:
        time = clock.time([product])
    except (RuntimeError, NotImplementedError):
        return None
    return 2 * a.shape[0] ** 3 / time.us * 1e6


def bound(cost: Cost, ceilings: Mapping[str, float]) -> tuple[float, str]:
    """(microseconds that the machine needs at least, the name of the ceiling that says so).

    Both terms overlap in a good kernel, so the larger one is the bound.
    """
    rate = ceilings.get(cost.rate) or ceilings["bfloat16"]
    terms = {"copy": cost.bytes / ceilings["copy"], cost.rate: cost.flops / rate}
    name = max(terms, key=lambda key: terms[key])
    return terms[name] * 1e6, name

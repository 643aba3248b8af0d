# SPDX-License-Identifier: Apache-2.0
"""What adapters ask of a call before they bind it; each refusal is a NotServed.

Reading values waits for the device: an adapter does it while binding, never in its call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.bench.entrant import NotServed

__all__ = ["FLOATS", "FP8", "HALVES", "all_covered", "contiguous", "one_dtype", "require"]

HALVES = (torch.bfloat16, torch.float16)

FLOATS = (*HALVES, torch.float32)

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)


def require(served: object, reason: str) -> None:
    """NotServed with `reason` unless the library serves the call."""
    if not served:
        raise NotServed(reason)


def contiguous(inputs: Mapping[str, Any], *names: str) -> None:
    """Rows next to each other: the library would copy them first, or read the wrong ones."""
    for name in names:
        tensor = inputs.get(name)
        require(tensor is None or tensor.is_contiguous(), f"{name} has to be contiguous")


def one_dtype(
    inputs: Mapping[str, Any], first: str, *others: str, among: tuple[torch.dtype, ...] = HALVES
) -> None:
    """`first` is of a dtype `among` these, and `others`, where given, are of the same."""
    dtype = inputs[first].dtype
    require(dtype in among, f"{first} of {_name(dtype)}")
    for name in others:
        other = inputs.get(name)
        if other is not None:
            require(other.dtype == dtype, f"{name} of {_name(other.dtype)} beside {_name(dtype)}")


def all_covered(cu_seqlens: torch.Tensor | None, tokens: int) -> None:
    """Refuse rows that belong to no sequence: no library but ours writes zeros there."""
    if cu_seqlens is not None:
        require(int(cu_seqlens[-1]) == tokens, "rows past the last sequence are not written")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

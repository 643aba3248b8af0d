# SPDX-License-Identifier: Apache-2.0
"""What adapters ask of a call before they bind it; each refusal is a NotServed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archkey.bench.entrant import NotServed

__all__ = [
    "FP8",
    "HALVES",
    "LN2",
    "contiguous",
    "number",
    "one_dtype",
    "output_dtype",
    "scalar",
    "serve",
    "softmax_scale_of",
    "wants_lse",
]

LN2 = 0.6931471805599453
"""A logarithm to base 2 times this is the natural one."""

HALVES = (torch.bfloat16, torch.float16)

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)


def serve(condition: object, otherwise: str) -> None:
    """NotServed(otherwise) unless `condition` holds."""
    if not condition:
        raise NotServed(otherwise)


def contiguous(inputs: Mapping[str, Any], *names: str) -> None:
    """Rows next to each other: the library would copy them first, or read the wrong ones."""
    for name in names:
        tensor = inputs.get(name)
        serve(tensor is None or tensor.is_contiguous(), f"{name} has to be contiguous")


def one_dtype(
    inputs: Mapping[str, Any], first: str, *others: str, among: tuple[torch.dtype, ...] = HALVES
) -> None:
    """`first` is of a dtype `among` these, and `others`, where given, are of the same."""
    dtype = inputs[first].dtype
    serve(dtype in among, f"{first} of {_name(dtype)}")
    for name in others:
        given = inputs.get(name)
        if given is not None:
            serve(given.dtype == dtype, f"{name} of {_name(given.dtype)} beside {_name(dtype)}")


def output_dtype(inputs: Mapping[str, Any], default: torch.dtype, name: str = "out") -> torch.dtype:
    """That of the output which the caller passes, `default` without one.

    Adapters write to memory of their own, which has the layout that the library wants.
    """
    given = inputs.get(name)
    return default if given is None else given.dtype


def number(value: Any, name: str) -> float:
    """A factor as a number, read once while binding; None is 1."""
    if value is None:
        return 1.0
    if isinstance(value, torch.Tensor):
        serve(value.numel() == 1, f"{name} of shape {list(value.shape)}")
    return float(value)


def scalar(value: Any, name: str, device: torch.device) -> torch.Tensor:
    """A factor as a float32 tensor `[1]` on `device`; None is 1."""
    if isinstance(value, torch.Tensor):
        serve(value.numel() == 1, f"{name} of shape {list(value.shape)}")
        return value.reshape(1)
    return torch.full((1,), 1.0 if value is None else value, dtype=torch.float32, device=device)


def softmax_scale_of(inputs: Mapping[str, Any]) -> float:
    """`softmax_scale` by either of its names."""
    scale = inputs.get("softmax_scale")
    return float(inputs["sm_scale"] if scale is None else scale)


def wants_lse(inputs: Mapping[str, Any]) -> bool:
    """Whether the call asks for the logarithms."""
    return bool(inputs.get("return_lse")) or inputs.get("lse") is not None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

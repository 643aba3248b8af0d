# SPDX-License-Identifier: Apache-2.0
"""How the builders of KDA describe tensors to Triton: pointer types, and strides in units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archkey.kernels.rmsnorm import POINTERS as _NUMBERS

if TYPE_CHECKING:
    import torch

__all__ = ["POINTERS", "state_steps"]

# Any: a type of some tensor, which mypy cannot tell from that of one which may be None.
POINTERS: dict[str, Any] = {**_NUMBERS, "int32": "*i32", "int64": "*i64", "none": None}
"""Of a tensor by its dtype; "none" is an argument that is None."""


def state_steps(state: torch.Tensor | None, unit: int) -> tuple[int, ...]:
    """Strides of a state, a head and a row, in units of `unit` elements."""
    return (0, 0, 0) if state is None else tuple(step // unit for step in state.stride()[:3])

# SPDX-License-Identifier: Apache-2.0
"""One look at an operand.

Each fact of a tensor is read once and a tensor in order costs comparisons only; one that is not
in order goes to the checks that explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    check_dtype,
    check_last_contiguous,
    check_same_device,
    check_shape,
    check_tensor,
)

if TYPE_CHECKING:
    import torch

__all__ = ["aligned", "check_operand", "layouts"]

_NUMBERS = (float, int, bool)

_NAMES: dict[Any, str] = {}
"""torch dtype -> its name, of the dtypes met so far."""


def check_operand(
    op: str,
    name: str,
    x: Any,
    dtypes: Sequence[str],
    shape: Sequence[int | None] | int,
    like: torch.Tensor,
) -> str:
    """`x` is a tensor of one of `dtypes` where `like` lies, contiguous in its last dimension.

    shape  its shape, or only the number of its dimensions

    Returns the name of its dtype.
    """
    try:
        dtype = _NAMES[x.dtype]
        found = x.shape
        if (
            dtype in dtypes
            and (found == shape or len(found) == shape)
            and x.stride(-1) == 1
            and x.device == like.device
        ):
            return dtype
    except (AttributeError, KeyError, IndexError):
        pass
    check_tensor(op, name, x)
    dtype = check_dtype(op, name, x, dtypes)
    check_shape(op, name, x, (None,) * shape if isinstance(shape, int) else shape)
    if x.dim():
        check_last_contiguous(op, name, x)
    check_tensor(op, "the first argument", like)
    check_same_device(op, like, **{name: x})
    _NAMES[x.dtype] = dtype
    return dtype


def layouts(*operands: Any) -> tuple[Any, ...]:
    """dtype, shape, strides and device of each tensor, and the type of anything else.

    Goes into the key of a call beside `archkey.ops._memo.metadata`, for operands whose addresses
    decide nothing and for those that may be numbers.
    """
    facts: list[Any] = []
    for x in operands:
        if x is None:
            facts.append(None)
        elif type(x) in _NUMBERS:  # asking it for a dtype would cost an exception
            facts.append(type(x))
        else:
            try:
                facts += (x.dtype, x.shape, x.stride(), x.device)
            except AttributeError:
                facts.append(type(x))
    return tuple(facts)


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether all pointers and strides are multiples of 16 bytes, the last stride aside."""
    bits = 0
    for tensor in tensors:
        steps = 0
        for stride in tensor.stride()[:-1]:
            steps |= stride
        bits |= tensor.data_ptr() | steps * tensor.element_size()
    return bits & 15 == 0

# SPDX-License-Identifier: Apache-2.0
"""Checks of tensors that are rows: `[T, N]` or `[T, h, N]`, last stride 1, other strides free.

A check returns what a Problem is made of. `heads` is 1 where the rows are evenly spaced, since
`[T, h, N]` is then `[T * h, N]`, and h elsewhere. `bits` is the union of the pointer [bytes] and
the row strides [elements]: where the lowest four bits of all tensors are 0, rows can be read 16
bytes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archkey.ops._checks import (
    FLOATS,
    bad_value,
    check_apart,
    check_dtype,
    check_last_contiguous,
    check_shape,
    check_tensor,
    shape_text,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Rows",
    "check_out_rows",
    "check_rows",
    "check_rows_like",
    "check_vector",
    "heads_of",
]

Rows = tuple[str, Sequence[int], int, int]
"""dtype name, shape, heads, bits."""


def check_rows(op: str, name: str, tensor: torch.Tensor) -> Rows:
    """`tensor` is rows of a float dtype, at least one element wide."""
    check_tensor(op, name, tensor)
    dtype = check_dtype(op, name, tensor, FLOATS)
    shape, strides = tensor.shape, tensor.stride()
    if len(shape) not in (2, 3) or shape[-1] == 0:
        bad_value(op, name, "of shape [T, N] or [T, h, N] with N > 0", shape_text(tensor))
    check_last_contiguous(op, name, tensor)
    bits = tensor.data_ptr() | strides[0] | (strides[1] if len(shape) == 3 else 0)
    return dtype, shape, heads_of(tensor), bits


def check_rows_like(
    op: str, name: str, tensor: torch.Tensor, shape: Sequence[int], device: torch.device
) -> Rows:
    """`tensor` is rows of `shape` on `device`; its dtype and strides are its own."""
    rows = check_rows(op, name, tensor)
    if rows[1] != shape:
        bad_value(op, name, f"of shape {list(shape)}", shape_text(tensor))
    _check_device(op, name, tensor, device)
    return rows


def check_out_rows(
    op: str, name: str, tensor: torch.Tensor, shape: Sequence[int], device: torch.device
) -> Rows:
    """`tensor` is rows like the input's that do not lie over each other."""
    rows = check_rows_like(op, name, tensor, shape, device)
    check_apart(op, name, tensor)
    return rows


def heads_of(tensor: torch.Tensor) -> int:
    """1 where the rows are evenly spaced, or none, and h elsewhere."""
    if tensor.dim() == 2 or tensor.stride(0) == tensor.stride(1) * tensor.shape[1]:
        return 1
    if not tensor.shape[1]:
        return 1
    return int(tensor.shape[1])


def check_vector(
    op: str, name: str, tensor: torch.Tensor, width: int, device: torch.device
) -> tuple[str, int]:
    """`tensor` is `[width]`, contiguous, of a float dtype, on `device`; returns (dtype, bits)."""
    check_tensor(op, name, tensor)
    dtype = check_dtype(op, name, tensor, FLOATS)
    check_shape(op, name, tensor, (width,))
    check_last_contiguous(op, name, tensor)
    _check_device(op, name, tensor, device)
    return dtype, tensor.data_ptr()


def _check_device(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        bad_value(op, name, f"on {device} like the others", f"a tensor on {tensor.device}")

# SPDX-License-Identifier: Apache-2.0
"""Checks of tensors that are rows: `[T, N]` or `[T, h, N]`, last stride 1, other strides free.

On the path of every call, so each fact of a tensor is read once and a tensor in order costs
comparisons only; what is not in order goes to the checks that explain.

A check returns what a Problem is made of. `heads` is 1 where the rows are evenly spaced, since
`[T, h, N]` is then `[T * h, N]`, and h elsewhere. `bits` is the union of the pointer [bytes] and
the row strides [elements]: where the lowest four bits of all tensors are 0, rows can be read 16
bytes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    FLOATS,
    bad_value,
    check_dtype,
    check_last_contiguous,
    check_tensor,
    shape_text,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Rows", "check_rows", "check_rows_like", "check_vector"]

Rows = tuple[str, Sequence[int], int, int]
"""dtype name, shape, heads, bits."""

_FLOAT_NAMES: dict[Any, str] = {}
"""torch dtype -> name, of the float dtypes met so far: a hit says that the dtype is allowed."""


def check_rows(op: str, name: str, tensor: torch.Tensor) -> Rows:
    """`tensor` is rows of a float dtype, at least one element wide."""
    try:
        dtype = _FLOAT_NAMES[tensor.dtype]
    except (AttributeError, KeyError):
        dtype = _learn(op, name, tensor)
    shape, strides = tensor.shape, tensor.stride()
    if len(strides) not in (2, 3) or shape[-1] == 0:
        bad_value(op, name, "of shape [T, N] or [T, h, N] with N > 0", shape_text(tensor))
    if strides[-1] != 1:
        check_last_contiguous(op, name, tensor)
    bits = strides[0] | tensor.data_ptr()
    if len(strides) == 2:
        return dtype, shape, 1, bits
    even = strides[0] == strides[1] * shape[1]
    return dtype, shape, 1 if even else shape[1], bits | strides[1]


def check_rows_like(
    op: str, name: str, tensor: torch.Tensor, shape: Sequence[int], device: torch.device
) -> Rows:
    """`tensor` is rows of `shape` on `device`; its dtype and strides are its own."""
    rows = check_rows(op, name, tensor)
    if rows[1] != shape:
        bad_value(op, name, f"of shape {list(shape)}", shape_text(tensor))
    if tensor.device != device:
        bad_value(op, name, f"on {device} like the others", f"a tensor on {tensor.device}")
    return rows


def check_vector(
    op: str, name: str, tensor: torch.Tensor, width: int, device: torch.device
) -> tuple[str, int]:
    """`tensor` is `[width]`, contiguous, of a float dtype, on `device`; returns (dtype, bits)."""
    try:
        dtype = _FLOAT_NAMES[tensor.dtype]
    except (AttributeError, KeyError):
        dtype = _learn(op, name, tensor)
    if tensor.shape != (width,):
        bad_value(op, name, f"of shape [{width}]", shape_text(tensor))
    if not tensor.is_contiguous():
        check_last_contiguous(op, name, tensor)
    if tensor.device != device:
        bad_value(op, name, f"on {device} like the others", f"a tensor on {tensor.device}")
    return dtype, tensor.data_ptr()


def _learn(op: str, name: str, tensor: object) -> str:
    """Name of a dtype met for the first time; the error, if it is none of ours or no tensor."""
    check_tensor(op, name, tensor)
    dtype: str = check_dtype(op, name, tensor, FLOATS)  # type: ignore[arg-type]
    _FLOAT_NAMES[tensor.dtype] = dtype  # type: ignore[attr-defined]
    return dtype


def layout(*all_rows: Rows) -> tuple[int, int]:
    """(heads, stride bits) of tensors that go row by row.

    heads is 1 where the rows of every tensor are evenly spaced: `[T, h, N]` is then `[T * h, N]`.
    Stride bits are the union of all row strides [elements]; joined with the pointers, their
    lowest four tell whether rows can be read 16 bytes at a time.
    """
    heads, bits = 1, 0
    for _, shape, strides in all_rows:
        bits |= strides[0]
        if len(strides) == 3:
            bits |= strides[1]
            if strides[0] != strides[1] * shape[1]:
                heads = shape[1]
    return heads, bits

# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that the formats share; each comes before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_dtype,
    check_tensor,
    shape_text,
)

if TYPE_CHECKING:
    import torch

NUMBERS = (*FLOATS, "float64")


def check_numbers(op: str, name: str, values: torch.Tensor) -> None:
    """`values` is a tensor of numbers that can be encoded."""
    check_tensor(op, name, values)
    check_dtype(op, name, values, NUMBERS)


def check_rows(op: str, values: torch.Tensor, multiple: int = 1) -> int:
    """N of `values` `[..., N]`, numbers to quantise; N is a multiple of `multiple`."""
    check_numbers(op, "values", values)
    return check_columns(op, "values", values, multiple)


def check_columns(op: str, name: str, tensor: torch.Tensor, multiple: int = 1) -> int:
    """N of a tensor `[..., N]`, a multiple of `multiple`."""
    if not tensor.dim():
        bad_value(op, name, "of shape [..., N]", shape_text(tensor))
    width = int(tensor.shape[-1])
    if width % multiple:
        bad_value(op, name, f"of a multiple of {multiple} columns", width)
    return width


def check_codes(op: str, name: str, codes: torch.Tensor, dtypes: Sequence[str]) -> str:
    """`codes` is a tensor of one of `dtypes`; returns which."""
    check_tensor(op, name, codes)
    return check_dtype(op, name, codes, dtypes)


def check_scales(op: str, scale: torch.Tensor, dtypes: Sequence[str], shape: Sequence[int]) -> None:
    """`scale` is row-major scales of `shape`."""
    check_codes(op, "scale", scale, dtypes)
    if list(scale.shape) != list(shape):
        bad_value(op, "scale", f"of shape {list(shape)}", shape_text(scale))


def check_one(op: str, name: str, scale: torch.Tensor) -> None:
    """`scale` is one float32 element."""
    check_codes(op, name, scale, ("float32",))
    if scale.numel() != 1:
        bad_value(op, name, "of one element", shape_text(scale))


def check_bytes_2d(op: str, name: str, scale: torch.Tensor) -> tuple[int, int]:
    """(rows, columns) of `scale`, a matrix of one byte each."""
    check_tensor(op, name, scale)
    if scale.dtype.itemsize != 1:
        bad_type(op, name, "of one byte each", str(scale.dtype).removeprefix("torch."))
    if scale.dim() != 2:
        bad_value(op, name, "of two dimensions", shape_text(scale))
    rows, columns = scale.shape
    return rows, columns


def check_tiled(
    op: str, name: str, scale: torch.Tensor, tile: tuple[int, int], rows: int, columns: int
) -> tuple[int, int]:
    """Shape of padded `scale`: whole tiles, just enough for `rows` x `columns`."""
    found = check_bytes_2d(op, name, scale)
    expected = tuple(-(-n // t) * t for n, t in zip((rows, columns), tile, strict=True))
    if found != expected:
        hint = f"It holds {rows} x {columns} scales in whole tiles of {tile[0]} x {tile[1]}."
        bad_value(op, name, f"of shape {list(expected)}", shape_text(scale), hint)
    return found

# SPDX-License-Identifier: Apache-2.0
"""The tensors of mxfp4_linear: checked one by one, and seen as rows of floats or bytes.

A check returns what a Problem is made of. `bits` and `heads` are those of `archkey.ops._rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archkey.errors import nearest
from archkey.ops._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_apart,
    check_dtype,
    check_last_contiguous,
    check_same_device,
    check_shape,
    check_tensor,
    shape_text,
)
from archkey.ops._rmsnorm_quant_kinds import KINDS, scale_shape
from archkey.ops._rows import check_vector, heads_of

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

OP = "mxfp4_linear"

BLOCK, LAYOUTS = KINDS["mxfp4"].block, KINDS["mxfp4"].layouts
"""Columns that share a scale, and how rmsnorm_quant may have laid out the scales of x."""

_CODES = ("uint8", "float4_e2m1fn_x2")
_SCALES = ("uint8", "float8_e8m0fnu")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Codes or scales under torch's own names for them, as uint8."""
    return tensor if tensor.dtype == torch.uint8 else tensor.view(torch.uint8)


def as_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`[.., N]` as `[T, N]` or `[T, h, N]`, the same memory."""
    shape = tensor.shape
    if len(shape) in (2, 3):
        return tensor
    if len(shape) == 1:
        return tensor.view(1, *shape)
    try:
        return tensor.view(math.prod(shape[:-2]), *shape[-2:])
    except RuntimeError:
        found = f"shape {shape_text(tensor)} with strides {tensor.stride()}"
        hint = "Of more than three dimensions, all before the last two count as one."
        bad_value(OP, name, "evenly spaced in its first dimensions", found, hint)


def check_weight(
    weight: torch.Tensor, weight_scale: torch.Tensor, x: torch.Tensor
) -> tuple[int, int, int, int]:
    """(N, K, bits of the codes, bits of the scales) where x is, of any shape."""
    for name, tensor, dtypes in (
        ("weight", weight, _CODES),
        ("weight_scale", weight_scale, _SCALES),
    ):
        check_tensor(OP, name, tensor)
        check_dtype(OP, name, tensor, dtypes)
        check_same_device(OP, x, **{name: tensor})
    if weight.dim() != 2 or not weight.numel():
        bad_value(OP, "weight", "of shape [N, K / 2], not empty", shape_text(weight))
    n, k = weight.shape[0], 2 * weight.shape[1]
    check_shape(OP, "weight_scale", weight_scale, (n, -(-k // BLOCK)))
    check_last_contiguous(OP, "weight", weight)
    check_last_contiguous(OP, "weight_scale", weight_scale)
    return n, k, weight.data_ptr() | weight.stride(0), _scale_bits(weight_scale)


def check_x(x: torch.Tensor) -> str:
    """Its dtype, "uint8" if it is packed. The shape is compared when K is known."""
    check_tensor(OP, "x", x)
    dtype = check_dtype(OP, "x", x, (*FLOATS, *_CODES))
    if not x.dim():
        bad_value(OP, "x", "of shape [.., K]", shape_text(x))
    return dtype if dtype in FLOATS else "uint8"


def check_rows(name: str, x: torch.Tensor, shape: Sequence[int]) -> tuple[int, int]:
    """(heads, bits) of `x`, which has `shape`."""
    check_shape(OP, name, x, shape)
    check_last_contiguous(OP, name, x)
    x = as_rows(name, x)
    bits = x.data_ptr()
    for stride in x.stride()[:-1]:
        bits |= stride
    return heads_of(x), bits


def check_x_scale(
    x_scale: torch.Tensor | None, layout: str, x: torch.Tensor, packed: bool, k: int
) -> tuple[str, int, int]:
    """(layout, heads, bits); "none" where x is floats."""
    if layout not in LAYOUTS:
        known = f"{layout!r}; {nearest(str(layout), LAYOUTS)}"
        bad_value(OP, "x_scale_layout", "a layout that it knows", known)
    if not packed:
        if x_scale is not None:
            found = f"a {type(x_scale).__name__} beside x of {x.dtype}"
            bad_value(OP, "x_scale", "None unless x is packed", found)
        if layout != "row":
            bad_value(OP, "x_scale_layout", "left alone unless x is packed", repr(layout))
        return "none", 1, 0
    if x_scale is None:
        bad_value(OP, "x_scale", "given with packed x", None, "It is rmsnorm_quant's out_scale.")
    check_tensor(OP, "x_scale", x_scale)
    check_dtype(OP, "x_scale", x_scale, _SCALES)
    check_same_device(OP, x, x_scale=x_scale)
    if layout == "row":
        shape = (*x.shape[:-1], -(-k // BLOCK))
        return layout, check_rows("x_scale", x_scale, shape)[0], _scale_bits(x_scale)
    if x.dim() != 2:
        hint = f"The layout {layout} is two-dimensional; reshape x to [T, K / 2]."
        bad_value(OP, "x", "of shape [T, K / 2]", f"{x.dim()} dimensions", hint)
    check_shape(OP, "x_scale", x_scale, scale_shape((x.shape[0], k), BLOCK, layout))
    if not x_scale.is_contiguous():
        bad_value(OP, "x_scale", f"contiguous with {layout}", f"strides {x_scale.stride()}")
    return layout, 1, _scale_bits(x_scale)


def check_out(
    out: torch.Tensor | None, out_dtype: Any, x: torch.Tensor, dtype: str, n: int
) -> tuple[str, int, int]:
    """(dtype, heads, bits) of out, or of the contiguous one that will be made."""
    asked = str(out_dtype).removeprefix("torch.")
    if out_dtype is not None and asked not in FLOATS:
        bad_type(OP, "out_dtype", " or ".join(FLOATS), asked)
    if out is None:
        default = "bfloat16" if dtype == "uint8" else dtype
        return default if out_dtype is None else asked, 1, n
    check_tensor(OP, "out", out)
    found = check_dtype(OP, "out", out, FLOATS if out_dtype is None else (asked,))
    check_same_device(OP, x, out=out)
    heads, bits = check_rows("out", out, (*x.shape[:-1], n))
    check_apart(OP, "out", out)
    return found, heads, bits


def check_bias(bias: torch.Tensor | None, n: int, x: torch.Tensor) -> tuple[str, int]:
    """(dtype, bits); "none" without one."""
    return ("none", 0) if bias is None else check_vector(OP, "bias", bias, n, x.device)


def _scale_bits(scale: torch.Tensor) -> int:
    """0 in the lowest four where rows of scales can be read 4 bytes at a time."""
    bits = scale.data_ptr()
    for stride in scale.stride()[:-1]:
        bits |= stride * 4
    return bits

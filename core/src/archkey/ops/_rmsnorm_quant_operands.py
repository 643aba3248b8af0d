# SPDX-License-Identifier: Apache-2.0
"""The tensors of rmsnorm_quant: given ones are checked, missing ones are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.ops._checks import (
    FP8,
    bad_type,
    bad_value,
    check_apart,
    check_dtype,
    check_fp8,
    check_last_contiguous,
    check_same_device,
    check_shape,
    check_tensor,
    shape_text,
)
from archkey.ops._rmsnorm_quant_kinds import KINDS, OP, Kind, scale_shape
from archkey.ops._rows import (
    Rows,
    check_out_rows,
    check_rows,
    check_rows_like,
    check_vector,
    heads_of,
)

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch


_ABSENT: Rows = ("none", (), 1, 0)


def check_scale(quant: str, kind: Kind, scale: torch.Tensor | None, x: torch.Tensor) -> None:
    """`scale` is one float32 element where the kind wants it given, and None elsewhere."""
    if not kind.given:
        if scale is not None:
            hint = "Its scales are results: see out_scale."
            bad_value(OP, "scale", f"None with {quant}", type(scale).__name__, hint)
        return
    if scale is None:
        bad_value(OP, "scale", f"a float32 tensor of one element with {quant}", None)
    check_tensor(OP, "scale", scale)
    check_dtype(OP, "scale", scale, ("float32",))
    if scale.numel() != 1:
        bad_value(OP, "scale", "of one element", shape_text(scale))
    check_same_device(OP, x, scale=scale)


def check_beside(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    residual_out: torch.Tensor | None,
    unquantized_out: torch.Tensor | None,
) -> tuple[str, str, int, int]:
    """(dtype of the residual, of unquantized_out, heads, bits) of the rows that have x's shape."""
    shape, device = x.shape, x.device
    y = total = added = _ABSENT
    if unquantized_out is not None:
        y = check_out_rows(OP, "unquantized_out", unquantized_out, shape, device)
    if residual is not None:
        added = check_rows_like(OP, "residual", residual, shape, device)
    elif residual_out is not None:
        bad_value(OP, "residual_out", "None without residual", type(residual_out).__name__)
    if residual_out is not None:
        total = check_out_rows(OP, "residual_out", residual_out, shape, device)
        if total[0] != added[0]:
            bad_type(OP, "residual_out", f"{added[0]} like residual", total[0])
    return added[0], y[0], max(y[2], added[2], total[2]), y[3] | added[3] | total[3]


def check_codes(
    session: Session, kind: Kind, out: torch.Tensor | None, x: torch.Tensor
) -> tuple[str, int, int]:
    """(dtype, heads, bits) of out, or of the contiguous one that will be made."""
    shape = (*x.shape[:-1], x.shape[-1] // 2 if kind.packed else x.shape[-1])
    if out is None:
        flavour = session.fp8 if session.fp8 != "any" else "e4m3fn"
        return "uint8" if kind.packed else f"float8_{flavour}", 1, shape[-1]
    check_tensor(OP, "out", out)
    dtype = check_dtype(OP, "out", out, ("uint8",) if kind.packed else FP8)
    check_fp8(OP, "out", dtype, session.fp8)
    check_shape(OP, "out", out, shape)
    check_last_contiguous(OP, "out", out)
    check_same_device(OP, x, out=out)
    check_apart(OP, "out", out)
    bits = out.data_ptr() | out.stride(0) | (out.stride(1) if out.dim() == 3 else 0)
    return dtype, heads_of(out), bits


def check_out_scale(
    quant: str,
    kind: Kind,
    group: int,
    scale_layout: str,
    out_scale: torch.Tensor | None,
    x: torch.Tensor,
) -> int:
    """heads of out_scale, whose shape, dtype and strides are those of the layout."""
    if out_scale is None:
        return 1
    if kind.scale_dtype == "none":
        hint = "Its scale is the given one."
        bad_value(OP, "out_scale", f"None with {quant}", type(out_scale).__name__, hint)
    check_tensor(OP, "out_scale", out_scale)
    check_dtype(OP, "out_scale", out_scale, (kind.scale_dtype,))
    check_shape(OP, "out_scale", out_scale, scale_shape(x.shape, group, scale_layout))
    check_same_device(OP, x, out_scale=out_scale)
    check_apart(OP, "out_scale", out_scale)
    strides = f"strides {out_scale.stride()}"
    if scale_layout == "row":
        check_last_contiguous(OP, "out_scale", out_scale)
        return heads_of(out_scale)
    if scale_layout == "col":
        if not out_scale.select(-1, 0).is_contiguous():
            hint = "Make it as torch.empty(N // group_size, T).t(); the pitch of a column is free."
            bad_value(OP, "out_scale", "contiguous along the tokens with col", strides, hint)
    elif not out_scale.is_contiguous():
        bad_value(OP, "out_scale", f"contiguous with {scale_layout}", strides)
    return 1


def new_codes(dtype: str, x: torch.Tensor) -> torch.Tensor:
    """Room for the codes of x, contiguous."""
    width = x.shape[-1] // 2 if dtype == "uint8" else x.shape[-1]
    return torch.empty((*x.shape[:-1], width), dtype=getattr(torch, dtype), device=x.device)


def new_out_scale(
    quant: str, group: int, scale_layout: str, x: torch.Tensor
) -> torch.Tensor | None:
    """Room for the scales of x in the layout; None where no scale is written."""
    name = KINDS[quant].scale_dtype
    if name == "none":
        return None
    dtype, shape = getattr(torch, name), scale_shape(x.shape, group, scale_layout)
    if scale_layout == "col":
        by_column = torch.empty((shape[-1], *shape[:-1]), dtype=dtype, device=x.device)
        return by_column.movedim(0, -1)
    return torch.empty(shape, dtype=dtype, device=x.device)


def check_second(
    x: torch.Tensor,
    dtype: str,
    weight_dtype: str,
    x2: torch.Tensor | None,
    x2_weight: torch.Tensor | None,
    x2_out: torch.Tensor | None,
) -> tuple[int, str, int, int]:
    """(width, dtype of x2_out, heads, bits) of the second norm; width 0 without one."""
    if x2 is None:
        for name, given in (("x2_weight", x2_weight), ("x2_out", x2_out)):
            if given is not None:
                bad_value(OP, name, "None without x2", type(given).__name__)
        return 0, "none", 1, 0
    found, shape, heads, bits = check_rows(OP, "x2", x2)
    width = shape[-1]
    if found != dtype:
        bad_type(OP, "x2", f"{dtype} like x", found)
    if shape[0] != x.shape[0]:
        bad_value(OP, "x2", f"of x's {x.shape[0]} tokens", shape_text(x2))
    check_same_device(OP, x, x2=x2)
    if x2_weight is None:
        bad_value(OP, "x2_weight", "given with x2", None)
    found, weight_bits = check_vector(OP, "x2_weight", x2_weight, width, x.device)
    if found != weight_dtype:
        bad_type(OP, "x2_weight", f"{weight_dtype} like weight", found)
    if x2_out is None:
        return width, dtype, heads, bits | weight_bits | width
    out_dtype, _, out_heads, out_bits = check_out_rows(OP, "x2_out", x2_out, shape, x.device)
    return width, out_dtype, max(heads, out_heads), bits | weight_bits | out_bits


def check_different(
    residual_out: torch.Tensor | None,
    unquantized_out: torch.Tensor | None,
    x2_out: torch.Tensor | None,
) -> None:
    """Each of the outputs that could be one tensor is a tensor of its own."""
    if unquantized_out is not None and unquantized_out is residual_out:
        bad_value(OP, "unquantized_out", "another tensor than residual_out", "one for both")
    if x2_out is not None and (x2_out is residual_out or x2_out is unquantized_out):
        bad_value(OP, "x2_out", "another tensor than the other outputs", "one for both")


def check_eps(name: str, eps: float | None) -> None:
    """`eps` is positive; None and NaN are not."""
    if eps is None or not eps > 0:
        bad_value(OP, name, "> 0", eps, "A row of zeros would divide by zero.")

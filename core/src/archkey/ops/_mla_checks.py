# SPDX-License-Identifier: Apache-2.0
"""Checks that the MLA and sparse MLA families share.

The first half reads metadata only. The second half reads values, which synchronises with the
device; it runs under ARCHKEY_VALIDATE=1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    FP8,
    bad_type,
    bad_value,
    check_dtype,
    check_last_contiguous,
    check_shape,
    check_tensor,
    dtype_name,
    shape_text,
)

if TYPE_CHECKING:
    import torch

    from archkey.kernel import Run
    from archkey.session import Session
else:
    from archkey._torch import torch

OUT_DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (576, 512)

_NEVER_GUESSED = (
    "It is never guessed: the width of an absorbed query (576) is not the width that the model "
    "was trained with. DeepSeek and Kimi use (128 + 64) ** -0.5, GLM-5 (192 + 64) ** -0.5, times "
    "mscale ** 2 where YaRN is used."
)


def softmax_scale_of(op: str, softmax_scale: float | None, sm_scale: float | None) -> float:
    """The scale under either of its names; there is no default."""
    if sm_scale is not None:
        if softmax_scale is not None:
            bad_value(op, "sm_scale", "None when softmax_scale is given", sm_scale)
        softmax_scale = sm_scale
    if softmax_scale is None:
        bad_value(op, "softmax_scale", "given", "None", _NEVER_GUESSED)
    if not isinstance(softmax_scale, (float, int)):
        hint = "A tensor would have to be read on the host; take .item() once, outside the loop."
        bad_type(op, "softmax_scale", "a number", type(softmax_scale).__name__, hint)
    if not 0 < softmax_scale < float("inf"):
        bad_value(op, "softmax_scale", "positive and finite", softmax_scale)
    return float(softmax_scale)


def pages_of(op: str, name: str, cache: torch.Tensor) -> torch.Tensor:
    """A paged cache as `[num_blocks, page_size, row]`; a 4-D one loses its single KV head."""
    check_tensor(op, name, cache)
    shape = cache.shape
    if len(shape) == 4:
        if shape[1] == 1:
            cache = cache.squeeze(1)
        elif shape[2] == 1:
            cache = cache.squeeze(2)
        else:
            bad_value(op, name, "of one KV head (dim 1 or 2 of size 1)", shape_text(cache))
    elif len(shape) != 3:
        expected = "[num_blocks, page_size, row] or 4-D with a unit dim at 1 or 2"
        bad_value(op, name, f"of shape {expected}", shape_text(cache))
    check_last_contiguous(op, name, cache)
    return cache


def check_int32(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: Sequence[int | None],
    device: torch.device,
) -> None:
    """An int32 index tensor of `shape` (None: any size) on `device`, its last stride 1."""
    check_tensor(op, name, tensor)
    if tensor.dtype is not torch.int32:
        hint = "Index tensors are int32; convert once where they are made."
        bad_type(op, name, "int32", dtype_name(tensor), hint)
    check_shape(op, name, tensor, shape)
    check_last_contiguous(op, name, tensor)
    check_device(op, name, tensor, device)


def check_device(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """`tensor` lies on `device`, where the first argument lies."""
    if tensor.device != device:
        bad_value(op, name, f"on {device} like the first argument", f"on {tensor.device}")


def descale_of(op: str, name: str, descale: Any, device: torch.device) -> str:
    """Kind of a dequantisation factor: "none", "number", or "tensor" (one float32 element)."""
    if descale is None:
        return "none"
    if isinstance(descale, (float, int)):
        return "number"
    if not isinstance(descale, torch.Tensor):
        bad_type(op, name, "None, a number or a float32 tensor", type(descale).__name__)
    check_dtype(op, name, descale, ("float32",))
    if descale.numel() != 1:
        hint = "One factor serves the whole tensor; `real = stored * descale`."
        bad_value(op, name, "a tensor of one element", shape_text(descale), hint)
    check_device(op, name, descale, device)
    return "tensor"


def out_of(
    op: str,
    out: torch.Tensor | None,
    shape: tuple[int, ...],
    dtype: str,
    device: torch.device,
) -> tuple[torch.Tensor, str]:
    """The output of `shape`, given or new, and its dtype; `dtype` is that of the queries."""
    if out is None:
        out_dtype = "bfloat16" if dtype in FP8 else dtype
        return torch.empty(shape, dtype=getattr(torch, out_dtype), device=device), out_dtype
    check_tensor(op, "out", out)
    out_dtype = check_dtype(op, "out", out, OUT_DTYPES)
    if out.shape != shape:
        bad_value(op, "out", f"of shape {list(shape)}", shape_text(out))
    check_last_contiguous(op, "out", out)
    check_device(op, "out", out, device)
    return out, out_dtype


def row_stat_of(
    op: str,
    name: str,
    stat: torch.Tensor | None,
    wanted: bool,
    shape: tuple[int, int],
    device: torch.device,
) -> torch.Tensor | None:
    """A float32 `[tokens, heads]` output such as lse: given, new, or None if it is not wanted."""
    if stat is not None:
        check_row_stat(op, name, stat, shape, device)
    elif wanted:
        stat = torch.empty(shape, dtype=torch.float32, device=device)
    return stat


def check_row_stat(
    op: str, name: str, stat: torch.Tensor, shape: tuple[int, int], device: torch.device
) -> None:
    """A float32 `[tokens, heads]` tensor of any strides: `[heads, tokens].T` will do."""
    check_tensor(op, name, stat)
    check_dtype(op, name, stat, ("float32",))
    if stat.shape != shape:
        hint = "It is token-major; pass a head-major buffer as its .T view."
        bad_value(op, name, f"of shape {list(shape)}", shape_text(stat), hint)
    check_device(op, name, stat, device)


def check_head_dim_v(op: str, head_dim_v: int, head_dim: int) -> None:
    """V is the head of K's row, so it cannot be wider."""
    if not 0 < head_dim_v <= head_dim:
        bad_value(op, "head_dim_v", f"between 1 and the row's width {head_dim}", head_dim_v)


def is_aligned(*tensors: torch.Tensor) -> bool:
    """Whether all pointers and strides are multiples of 16 bytes, the last stride aside."""
    bits = 0
    for tensor in tensors:
        strides = tensor.stride()
        steps = strides[0]
        for step in strides[1:-1]:
            steps |= step
        bits |= tensor.data_ptr() | steps * tensor.itemsize
    return bits & 15 == 0


def runner(session: Session, op: str, problem: Any, plan: Any) -> Run:
    """The kernel bound to `problem`: from a plan made for it, or from the session."""
    if plan is None:
        return session.launcher(problem)
    if getattr(plan, "problem", None) != problem:
        hint = f"Make one with session.plan({problem})."
        bad_value(
            op, "plan", "a plan for this call's problem", getattr(plan, "problem", plan), hint
        )
    return plan.run  # type: ignore[no-any-return]


# ---- values: ARCHKEY_VALIDATE=1


def validate_cu_seqlens(op: str, name: str, cu: torch.Tensor, tokens: int, longest: int) -> None:
    """Starts at 0, never falls, ends within the tokens, and no sequence exceeds its maximum."""
    bounds = cu.tolist()
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    if bounds[0] != 0 or min(lengths, default=0) < 0 or bounds[-1] > tokens:
        expected = f"a rising sequence from 0 to at most {tokens}"
        bad_value(op, name, expected, bounds)
    if max(lengths, default=0) > longest:
        bad_value(op, f"max_seqlen of {name}", f"at least {max(lengths)}", longest)


def validate_range(op: str, name: str, values: torch.Tensor, low: int, high: int) -> None:
    """Every value is in [low, high]."""
    if values.numel():
        found = int(values.min()), int(values.max())
        if found[0] < low or found[1] > high:
            expected = f"between {low} and {high}"
            bad_value(op, name, expected, f"values from {found[0]} to {found[1]}")


def validate_pages(
    op: str,
    block_table: torch.Tensor,
    first: torch.Tensor,
    stop: torch.Tensor,
    num_blocks: int,
    page_size: int,
) -> None:
    """Pages of the positions [first, stop) `[B]` exist; the table's other entries are free."""
    page = torch.arange(block_table.shape[1], device=block_table.device)
    used = (page >= (first // page_size)[:, None]) & (page * page_size < stop[:, None])
    validate_range(op, "block_table's used entries", block_table[used], 0, num_blocks - 1)

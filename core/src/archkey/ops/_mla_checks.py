# SPDX-License-Identifier: Apache-2.0
"""Checks that the MLA and sparse MLA families share.

The first half reads metadata only. The second half reads values, which synchronises with the
device; it runs under ARCHKEY_VALIDATE=1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archkey.ops._checks import (
    FP8,
    bad_type,
    bad_value,
    check_apart,
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
    if type(softmax_scale) is float and sm_scale is None and 0 < softmax_scale < math.inf:
        return softmax_scale  # every call comes here; the rest explains and converts
    if sm_scale is not None:
        if softmax_scale is not None:
            bad_value(op, "sm_scale", "None when softmax_scale is given", sm_scale)
        softmax_scale = sm_scale
    if softmax_scale is None:
        bad_value(op, "softmax_scale", "given", "None", _NEVER_GUESSED)
    if not isinstance(softmax_scale, (float, int)):
        hint = "A tensor would have to be read on the host; take .item() once, outside the loop."
        bad_type(op, "softmax_scale", "a number", type(softmax_scale).__name__, hint)
    if not 0 < softmax_scale < math.inf:
        bad_value(op, "softmax_scale", "positive and finite", softmax_scale)
    return float(softmax_scale)


def check_pages(op: str, name: str, cache: torch.Tensor) -> torch.Tensor:
    """Check the form of a paged cache; returns it as `pages_of` does."""
    check_tensor(op, name, cache)
    shape = cache.shape
    if len(shape) == 4:
        if 1 not in shape[1:3]:
            bad_value(op, name, "of one KV head (dim 1 or 2 of size 1)", shape_text(cache))
    elif len(shape) != 3:
        expected = "[num_blocks, page_size, row] or 4-D with a unit dim at 1 or 2"
        bad_value(op, name, f"of shape {expected}", shape_text(cache))
    check_last_contiguous(op, name, cache)
    return pages_of(cache)


def pages_of(cache: torch.Tensor) -> torch.Tensor:
    """A paged cache as `[num_blocks, page_size, row]`; a 4-D one loses its single KV head."""
    if cache.dim() == 3:
        return cache
    return cache.squeeze(1 if cache.shape[1] == 1 else 2)


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


def check_cu_seqlens(
    op: str, name: str, cu: torch.Tensor, shape: Sequence[int | None], device: torch.device
) -> None:
    """Bounds of ragged sequences: int32 `[B + 1]`."""
    check_int32(op, name, cu, shape, device)
    if cu.shape[0] == 0:
        bad_value(op, name, "of shape [B + 1]", "[0]")


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


def out_dtype_of(
    op: str,
    out: torch.Tensor | None,
    shape: tuple[int, ...],
    dtype: str,
    device: torch.device,
) -> str:
    """The dtype of the output: a given one of `shape`, or a new one for queries of `dtype`."""
    if out is None:
        return "bfloat16" if dtype in FP8 else dtype
    check_tensor(op, "out", out)
    out_dtype = check_dtype(op, "out", out, OUT_DTYPES)
    if out.shape != shape:
        bad_value(op, "out", f"of shape {list(shape)}", shape_text(out))
    check_last_contiguous(op, "out", out)
    check_device(op, "out", out, device)
    check_apart(op, "out", out)
    return out_dtype


def new_out(problem: Any, q: torch.Tensor) -> torch.Tensor:
    """The output for the queries `[..., d]`: `[..., head_dim_v]`, contiguous."""
    shape = (*q.shape[:-1], problem.head_dim_v)
    return torch.empty(shape, dtype=getattr(torch, problem.out_dtype), device=q.device)


def new_row_stat(q: torch.Tensor) -> torch.Tensor:
    """A float32 `[tokens, heads]` output, such as lse, for the queries `[..., H, d]`."""
    *lead, heads, _ = q.shape
    return torch.empty((math.prod(lead), heads), dtype=torch.float32, device=q.device)


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


def check_out_stat(
    op: str, name: str, stat: torch.Tensor | None, shape: tuple[int, int], device: torch.device
) -> None:
    """The same as an output, if it is given."""
    if stat is not None:
        check_row_stat(op, name, stat, shape, device)
        check_apart(op, name, stat)


def check_head_dim_v(op: str, head_dim_v: int, head_dim: int) -> None:
    """V is the head of K's row, so it cannot be wider."""
    if not 0 < head_dim_v <= head_dim:
        bad_value(op, "head_dim_v", f"between 1 and the row's width {head_dim}", head_dim_v)


def is_aligned(row_bytes: int, *tensors: torch.Tensor | None) -> bool:
    """Whether all pointers and strides are multiples of 16 bytes, the last stride aside.

    `row_bytes` is the width of the output's rows: a new output, None here, has it as a stride.
    """
    bits = row_bytes
    for tensor in tensors:
        if tensor is not None:
            steps = 0
            for step in tensor.stride()[:-1]:
                steps |= step
            bits |= tensor.data_ptr() | steps * tensor.itemsize
    return bits & 15 == 0


def planned(op: str, plan: Any, problem: Any) -> Run:
    """The kernel that a plan bound, which must be to `problem`."""
    found = getattr(plan, "problem", plan)
    if found != problem:
        hint = f"Make one with session.plan({problem})."
        bad_value(op, "plan", "a plan for this call's problem", found, hint)
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

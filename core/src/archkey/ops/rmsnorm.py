# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, alone and fused with its neighbours.

    y = x * rsqrt(mean(x^2) + eps) * (weight + weight_bias)        over the last dimension

All in float32 with one rounding, on the store. `weight_bias=1` is the Gemma and Qwen3.5 form.
`cast_before_weight=True` rounds the normalised value to the dtype of x before the product with
the weight, as Hugging Face's Llama does; the two differ by one unit in the last place.

Rows may lie apart: x is `[T, N]` or `[T, h, N]`, its last stride is 1 and the others are free, so
a slice of a wider projection (kv_a of a `[T, 512 + 64]` row) is read in place, never copied.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from archkey.ops._checks import (
    FLOATS,
    bad_value,
    check_dtype,
    check_last_contiguous,
    check_no_grad,
    check_same_device,
    check_tensor,
    dtype_name,
    shape_text,
)
from archkey.ops._contract import Operator, public

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm"]


class RmsNormProblem(NamedTuple):
    """Root-mean-square norm of each row.

    aligned: every pointer is a multiple of 16 bytes and every row stride one of 16 elements, so
    that rows can be read 16 bytes at a time.
    """

    dtype: str
    weight_dtype: str
    out_dtype: str
    width: int
    heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "rmsnorm"


class FusedAddRmsNormProblem(NamedTuple):
    """Residual add, then root-mean-square norm of the sum."""

    dtype: str
    residual_dtype: str
    weight_dtype: str
    out_dtype: str
    width: int
    heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "fused_add_rmsnorm"


class FusedQkRmsNormProblem(NamedTuple):
    """Two independent norms of different widths in one launch; q_width 0 means k alone."""

    dtype: str
    weight_dtype: str
    out_dtype: str
    q_width: int
    k_width: int
    q_heads: int = 1
    k_heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "fused_qk_rmsnorm"


@public
def rmsnorm(
    session: Session,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    out: torch.Tensor | None = None,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    enable_pdl: bool | None = None,
) -> torch.Tensor:
    """`out = x * rsqrt(mean(x^2) + eps) * (weight + weight_bias)` for each row.

    x       `[T, N]` or `[T, h, N]`; bfloat16, float16 or float32; last stride 1, others free
    weight  `[N]`, any of these dtypes
    out     x's shape, any of these dtypes; x itself is allowed; default: new, contiguous, x's dtype
    enable_pdl  None: wherever the device has it; a device without it ignores True

    Returns out. Raises ArgumentValueError or ArgumentTypeError before anything is written.
    """
    op = "rmsnorm"
    check_tensor(op, "x", x)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dtype, width = _operand(op, "x", x)
    out_dtype = _like(op, "out", out, x)
    weight_dtype = _weight(op, "weight", weight, x, width, eps)
    check_no_grad(op, x, weight)
    heads, bits = _layout(x, out)
    problem = RmsNormProblem(
        dtype,
        weight_dtype,
        out_dtype,
        width,
        heads,
        cast_before_weight,
        (bits | weight.data_ptr()) & 15 == 0,
        enable_pdl is not False and session.pdl,
    )
    session.launcher(problem)(x, weight, eps, weight_bias, cast_before_weight, out)
    return out


@public
def fused_add_rmsnorm(
    session: Session,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    enable_pdl: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual_out = x + residual`, `out = rmsnorm(x + residual)`; in place by default.

    As in FlashInfer, vLLM and SGLang, x becomes out and residual becomes the sum. out comes from
    the float32 sum; residual_out is that sum rounded once, on the store.

    x, residual  `[T, N]` or `[T, h, N]`; bfloat16, float16 or float32; strides free but the last
    out, residual_out  x's shape; default x and residual themselves

    Returns (out, residual_out).
    """
    op = "fused_add_rmsnorm"
    check_tensor(op, "x", x)
    out = x if out is None else out
    residual_out = residual if residual_out is None else residual_out
    dtype, width = _operand(op, "x", x)
    residual_dtype = _like(op, "residual", residual, x)
    out_dtype = _like(op, "out", out, x)
    if residual_out is not residual and _like(op, "residual_out", residual_out, x) != residual_dtype:
        bad_value(op, "residual_out", f"{residual_dtype} like residual", dtype_name(residual_out))
    weight_dtype = _weight(op, "weight", weight, x, width, eps)
    check_no_grad(op, x, residual, weight)
    heads, bits = _layout(x, residual, out, residual_out)
    problem = FusedAddRmsNormProblem(
        dtype,
        residual_dtype,
        weight_dtype,
        out_dtype,
        width,
        heads,
        cast_before_weight,
        (bits | weight.data_ptr()) & 15 == 0,
        enable_pdl is not False and session.pdl,
    )
    session.launcher(problem)(
        x, residual, weight, eps, weight_bias, cast_before_weight, out, residual_out
    )
    return out, residual_out


@public
def fused_qk_rmsnorm(
    session: Session,
    q: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    q_eps: float | None,
    k: torch.Tensor,
    k_weight: torch.Tensor,
    k_eps: float,
    *,
    q_out: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    enable_pdl: bool | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Two independent norms in one launch: MLA's q_a `[T, q_lora]` and kv_a `[T, 512]`.

    q, k      `[T, Nq]`, `[T, Nk]` or `[T, h, N]` each; one dtype; strides free but the last, so
              both may be slices of one projection row
    q None    k alone (a model without q_a, such as Kimi-Linear); q_weight and q_eps are then None
    q_out, k_out  default: new and contiguous

    Returns (q_out, k_out).
    """
    op = "fused_qk_rmsnorm"
    check_tensor(op, "k", k)
    if k_out is None:
        k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    dtype, k_width = _operand(op, "k", k)
    out_dtype = _like(op, "k_out", k_out, k)
    weight_dtype = _weight(op, "k_weight", k_weight, k, k_width, k_eps, "k_eps")
    k_heads, bits = _layout(k, k_out)
    bits |= k_weight.data_ptr()
    q_heads, q_width = 1, 0
    if q is None:
        for name, given in (("q_weight", q_weight), ("q_eps", q_eps), ("q_out", q_out)):
            if given is not None:
                bad_value(op, name, "None when q is None", type(given).__name__)
    else:
        q_out, q_width, q_heads, q_bits = _q_half(op, q, q_weight, q_eps, q_out, k, k_weight, k_out)
        bits |= q_bits
    check_no_grad(op, q, q_weight, k, k_weight)
    problem = FusedQkRmsNormProblem(
        dtype,
        weight_dtype,
        out_dtype,
        q_width,
        k_width,
        q_heads,
        k_heads,
        cast_before_weight,
        bits & 15 == 0,
        enable_pdl is not False and session.pdl,
    )
    session.launcher(problem)(
        q, q_weight, q_eps, k, k_weight, k_eps, weight_bias, cast_before_weight, q_out, k_out
    )
    return q_out, k_out


def _q_half(
    op: str,
    q: torch.Tensor,
    q_weight: torch.Tensor | None,
    q_eps: float | None,
    q_out: torch.Tensor | None,
    k: torch.Tensor,
    k_weight: torch.Tensor,
    k_out: torch.Tensor,
) -> tuple[torch.Tensor, int, int, int]:
    """Check the q half against the k half; returns (q_out, width, heads, address bits)."""
    check_tensor(op, "q", q)
    if q_weight is None or q_eps is None:
        bad_value(op, "q_weight and q_eps", "given with q", f"{q_weight!r:.20} and {q_eps}")
    if q_out is None:
        q_out = torch.empty(q.shape, dtype=k_out.dtype, device=q.device)
    dtype, width = _operand(op, "q", q)
    if q.dtype != k.dtype:
        bad_value(op, "q", f"{dtype_name(k)} like k", dtype)
    if q.shape[0] != k.shape[0]:
        bad_value(op, "q", f"of k's {k.shape[0]} tokens", shape_text(q))
    check_same_device(op, k, q=q)
    if _like(op, "q_out", q_out, q) != dtype_name(k_out):
        bad_value(op, "q_out", f"{dtype_name(k_out)} like k_out", dtype_name(q_out))
    if _weight(op, "q_weight", q_weight, q, width, q_eps, "q_eps") != dtype_name(k_weight):
        bad_value(op, "q_weight", f"{dtype_name(k_weight)} like k_weight", dtype_name(q_weight))
    heads, bits = _layout(q, q_out)
    return q_out, width, heads, bits | q_weight.data_ptr()


def _operand(op: str, name: str, x: torch.Tensor) -> tuple[str, int]:
    """dtype and width of a tensor of rows."""
    dtype = check_dtype(op, name, x, FLOATS)
    if x.dim() not in (2, 3) or x.shape[-1] == 0:
        bad_value(op, name, "of shape [T, N] or [T, h, N] with N > 0", shape_text(x))
    check_last_contiguous(op, name, x)
    return dtype, x.shape[-1]


def _like(op: str, name: str, tensor: torch.Tensor, x: torch.Tensor) -> str:
    """dtype of a tensor that goes row by row with x."""
    if tensor is x:
        return dtype_name(x)
    check_tensor(op, name, tensor)
    dtype = check_dtype(op, name, tensor, FLOATS)
    if tensor.shape != x.shape:
        bad_value(op, name, f"of shape {shape_text(x)}", shape_text(tensor))
    check_last_contiguous(op, name, tensor)
    if tensor.device != x.device:
        check_same_device(op, x, **{name: tensor})
    return dtype


def _weight(
    op: str,
    name: str,
    weight: torch.Tensor,
    x: torch.Tensor,
    width: int,
    eps: float,
    eps_name: str = "eps",
) -> str:
    """dtype of a weight `[N]`; checks its eps too."""
    check_tensor(op, name, weight)
    dtype = check_dtype(op, name, weight, FLOATS)
    if weight.dim() != 1 or weight.shape[0] != width:
        bad_value(op, name, f"of shape [{width}]", shape_text(weight))
    check_last_contiguous(op, name, weight)
    if weight.device != x.device:
        check_same_device(op, x, **{name: weight})
    if not eps > 0:
        bad_value(op, eps_name, "> 0", eps, "A row of zeros would divide by zero.")
    return dtype


def _layout(*tensors: torch.Tensor) -> tuple[int, int]:
    """(heads, address bits) of tensors that go row by row.

    heads is 1 where all rows of every tensor are evenly spaced: `[T, h, N]` is then `[T * h, N]`.
    Address bits are the union of all pointers [bytes] and row strides [elements]; their lowest
    four tell whether rows can be read 16 bytes at a time.
    """
    bits = 0
    heads = 1
    for tensor in tensors:
        strides = tensor.stride()
        bits |= tensor.data_ptr() | strides[0]
        if len(strides) == 3:
            bits |= strides[1]
            if strides[0] != strides[1] * tensor.shape[1]:
                heads = tensor.shape[1]
    return heads, bits


_BF16 = ("bfloat16", "bfloat16", "bfloat16")

OPERATORS = (
    Operator(
        name="rmsnorm",
        family="rmsnorm",
        problem=RmsNormProblem,
        inputs=("x", "weight", "eps", "weight_bias", "cast_before_weight"),
        outputs=("out",),
        reference="archkey.reference.rmsnorm:rmsnorm",
        function="archkey.ops.rmsnorm:rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 hidden": RmsNormProblem(*_BF16, 7168),
                "GLM-5 hidden": RmsNormProblem(*_BF16, 6144),
                "Kimi-Linear hidden": RmsNormProblem(*_BF16, 2304),
                "Qwen3.5 hidden": RmsNormProblem(*_BF16, 4096),
                "Qwen3.5 q heads": RmsNormProblem(*_BF16, 256, heads=32),
                "DeepSeek-V3 kv_a": RmsNormProblem(*_BF16, 512),
            }
        ),
    ),
    Operator(
        name="fused_add_rmsnorm",
        family="rmsnorm",
        problem=FusedAddRmsNormProblem,
        inputs=("x", "residual", "weight", "eps", "weight_bias", "cast_before_weight"),
        outputs=("out", "residual_out"),
        reference="archkey.reference.rmsnorm:fused_add_rmsnorm",
        function="archkey.ops.rmsnorm:fused_add_rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3": FusedAddRmsNormProblem("bfloat16", *_BF16, 7168),
                "GLM-5": FusedAddRmsNormProblem("bfloat16", *_BF16, 6144),
                "Kimi-Linear": FusedAddRmsNormProblem("bfloat16", *_BF16, 2304),
                "Qwen3.5": FusedAddRmsNormProblem("bfloat16", *_BF16, 4096),
            }
        ),
    ),
    Operator(
        name="fused_qk_rmsnorm",
        family="rmsnorm",
        problem=FusedQkRmsNormProblem,
        inputs=(
            "q",
            "q_weight",
            "q_eps",
            "k",
            "k_weight",
            "k_eps",
            "weight_bias",
            "cast_before_weight",
        ),
        outputs=("q_out", "k_out"),
        reference="archkey.reference.rmsnorm:fused_qk_rmsnorm",
        function="archkey.ops.rmsnorm:fused_qk_rmsnorm",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 q_a, kv_a": FusedQkRmsNormProblem(*_BF16, 1536, 512),
                "GLM-5 q_a, kv_a": FusedQkRmsNormProblem(*_BF16, 2048, 512),
                "Kimi-Linear kv_a": FusedQkRmsNormProblem(*_BF16, 0, 512),
            }
        ),
    ),
)

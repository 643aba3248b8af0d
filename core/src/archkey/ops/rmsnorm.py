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

from typing import TYPE_CHECKING, NoReturn

from archkey.ops._checks import (
    bad_type,
    bad_value,
    check_no_grad,
    check_tensor,
    shape_text,
)
from archkey.ops._contract import public
from archkey.ops._memo import metadata, remember
from archkey.ops._rmsnorm_contract import (
    OPERATORS,
    FusedAddRmsNormProblem,
    FusedQkRmsNormProblem,
    RmsNormProblem,
)
from archkey.ops._rows import check_out_rows, check_rows, check_rows_like, check_vector

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = [
    "OPERATORS",
    "FusedAddRmsNormProblem",
    "FusedQkRmsNormProblem",
    "RmsNormProblem",
    "fused_add_rmsnorm",
    "fused_qk_rmsnorm",
    "rmsnorm",
]


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
    pdl = enable_pdl is not False and session.pdl
    key = ("rmsnorm", metadata(x, weight, out), cast_before_weight, pdl)
    if out is None:
        out = _new_rows("rmsnorm", "x", x)
    problem = session.problems.get(key)
    if problem is None:
        problem = _rmsnorm_problem(x, weight, out, cast_before_weight, pdl)
        remember(session.problems, key, problem)
    if not eps > 0:  # NaN is not either
        _bad_eps("rmsnorm", "eps", eps)
    if torch.is_grad_enabled():
        check_no_grad("rmsnorm", x, weight)
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
    pdl = enable_pdl is not False and session.pdl
    key = (op, metadata(x, residual, weight, out, residual_out), cast_before_weight, pdl)
    out = x if out is None else out
    residual_out = residual if residual_out is None else residual_out
    problem = session.problems.get(key)
    if problem is None:
        tensors = x, residual, weight, out, residual_out
        problem = _fused_add_problem(*tensors, cast_before_weight, pdl)
        remember(session.problems, key, problem)
    if out is residual_out or (out is not x and out.data_ptr() == residual_out.data_ptr() != 0):
        bad_value(op, "out", "other memory than residual_out's", "the same for both")
    if not eps > 0:
        _bad_eps(op, "eps", eps)
    if torch.is_grad_enabled():
        check_no_grad(op, x, residual, weight)
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
    q_out, k_out  one dtype; default: new, contiguous, of the other's dtype or their input's

    Returns (q_out, k_out).
    """
    op = "fused_qk_rmsnorm"
    pdl = enable_pdl is not False and session.pdl
    facts = metadata(q, q_weight, k, k_weight, q_out, k_out)
    key = (op, facts, cast_before_weight, pdl)
    if k_out is None:
        k_out = _new_rows(op, "k", k, q_out)
    if q_out is None and q is not None:
        q_out = _new_rows(op, "q", q, k_out)
    if q_out is k_out:
        bad_value(op, "q_out", "another tensor than k_out", "one for both")
    problem = session.problems.get(key)
    if problem is None:
        tensors = q, q_weight, k, k_weight, q_out, k_out
        problem = _fused_qk_problem(*tensors, cast_before_weight, pdl)
        remember(session.problems, key, problem)
    if not k_eps > 0:
        _bad_eps(op, "k_eps", k_eps)
    if (q is None) != (q_eps is None):
        bad_value(op, "q_eps", "None when q is None, and given with it", q_eps)
    if q_eps is not None and not q_eps > 0:
        _bad_eps(op, "q_eps", q_eps)
    if torch.is_grad_enabled():
        check_no_grad(op, q, q_weight, k, k_weight)
    session.launcher(problem)(
        q, q_weight, q_eps, k, k_weight, k_eps, weight_bias, cast_before_weight, q_out, k_out
    )
    return q_out, k_out


def _rmsnorm_problem(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, cast_before_weight: bool, pdl: bool
) -> RmsNormProblem:
    """Check the metadata of a call and make its key."""
    op = "rmsnorm"
    dtype, shape, heads, bits = check_rows(op, "x", x)
    out_dtype, _, out_heads, out_bits = check_out_rows(op, "out", out, shape, x.device)
    weight_dtype, weight_bits = check_vector(op, "weight", weight, shape[-1], x.device)
    return RmsNormProblem(
        dtype,
        weight_dtype,
        out_dtype,
        shape[-1],
        max(heads, out_heads),
        cast_before_weight,
        (bits | out_bits | weight_bits) & 15 == 0,
        pdl,
    )


def _fused_add_problem(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual_out: torch.Tensor,
    cast_before_weight: bool,
    pdl: bool,
) -> FusedAddRmsNormProblem:
    op = "fused_add_rmsnorm"
    rows = check_rows(op, "x", x)
    dtype, shape, _, _ = rows
    residual_rows = check_rows_like(op, "residual", residual, shape, x.device)
    out_rows = check_out_rows(op, "out", out, shape, x.device)
    sum_rows = check_out_rows(op, "residual_out", residual_out, shape, x.device)
    if sum_rows[0] != residual_rows[0]:
        bad_type(op, "residual_out", f"{residual_rows[0]} like residual", sum_rows[0])
    weight_dtype, bits = check_vector(op, "weight", weight, shape[-1], x.device)
    every = rows, residual_rows, out_rows, sum_rows
    return FusedAddRmsNormProblem(
        dtype,
        residual_rows[0],
        weight_dtype,
        out_rows[0],
        shape[-1],
        max(heads for _, _, heads, _ in every),
        cast_before_weight,
        all((more | bits) & 15 == 0 for _, _, _, more in every),
        pdl,
    )


def _fused_qk_problem(
    q: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k: torch.Tensor,
    k_weight: torch.Tensor,
    q_out: torch.Tensor | None,
    k_out: torch.Tensor,
    cast_before_weight: bool,
    pdl: bool,
) -> FusedQkRmsNormProblem:
    op, device = "fused_qk_rmsnorm", k.device
    dtype, shape, heads, bits = check_rows(op, "k", k)
    out_dtype, _, out_heads, out_bits = check_out_rows(op, "k_out", k_out, shape, device)
    weight_dtype, weight_bits = check_vector(op, "k_weight", k_weight, shape[-1], device)
    bits |= out_bits | weight_bits
    q_width, q_heads = 0, 1
    if q is None:
        for name, given in (("q_weight", q_weight), ("q_out", q_out)):
            if given is not None:
                bad_value(op, name, "None when q is None", type(given).__name__)
    elif q_weight is None or q_out is None:
        bad_value(op, "q_weight", "given with q", None)
    else:
        q_dtype, q_shape, q_heads, q_bits = check_rows(op, "q", q)
        q_rows = check_out_rows(op, "q_out", q_out, q_shape, device)
        q_width, q_heads = q_shape[-1], max(q_heads, q_rows[2])
        q_weight_dtype, q_weight_bits = check_vector(op, "q_weight", q_weight, q_width, device)
        if q_shape[0] != shape[0] or q.device != device:
            expected = f"of k's {shape[0]} tokens, on {device}"
            bad_value(op, "q", expected, f"{shape_text(q)} on {q.device}")
        if (q_dtype, q_rows[0], q_weight_dtype) != (dtype, out_dtype, weight_dtype):
            expected = f"of k's dtypes, {dtype}, {out_dtype}, {weight_dtype}"
            found = f"{q_dtype}, {q_rows[0]}, {q_weight_dtype}"
            bad_type(op, "q, q_out, q_weight", expected, found)
        bits |= q_bits | q_rows[3] | q_weight_bits
    return FusedQkRmsNormProblem(
        dtype,
        weight_dtype,
        out_dtype,
        q_width,
        shape[-1],
        q_heads,
        max(heads, out_heads),
        cast_before_weight,
        bits & 15 == 0,
        pdl,
    )


def _new_rows(
    op: str, name: str, x: torch.Tensor, like: torch.Tensor | None = None
) -> torch.Tensor:
    """A contiguous tensor of x's shape, and of the dtype of `like` where that is given."""
    check_tensor(op, name, x)
    dtype = x.dtype if like is None else like.dtype
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _bad_eps(op: str, name: str, eps: float) -> NoReturn:
    bad_value(op, name, "> 0", eps, "A row of zeros would divide by zero.")

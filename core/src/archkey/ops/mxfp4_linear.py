# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weights, and activations if the caller has packed them, are MXFP4.

    out = dequant(x) @ dequant(weight)^T + bias

Weights are as Quark's checkpoints have them, OCP MX 1.0: two e2m1 codes to a byte, the even column
in the low nibble, and an e8m0 scale for 32 columns of a row (`archkey.formats.mxfp4`). Products are
summed in float32, the bias is added to the sum, and the result is rounded once.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from archkey.ops import _mxfp4_linear_operands as operands
from archkey.ops._checks import bad_value, check_no_grad
from archkey.ops._contract import Operator, public
from archkey.ops._memo import metadata, remember

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "Mxfp4LinearProblem", "mxfp4_linear"]


class Mxfp4LinearProblem(NamedTuple):
    """Linear layer with MXFP4 weights: x @ weight^T + bias, for float x and for MXFP4 x.

    dtype         of x; "uint8" is packed MXFP4
    in_features   K; out_features: N
    x_scale_layout   "none" with float x
    bias_dtype    "none" without bias
    heads         1 where rows are evenly spaced, h of `[T, h, K]` elsewhere
    aligned       every pointer but those of scales is a multiple of 16 bytes and every row stride
                  one of 16 elements
    scales_aligned   pointers of scales are multiples of 16 bytes and their row strides of 4
    """

    dtype: str
    out_dtype: str
    in_features: int
    out_features: int
    x_scale_layout: str = "none"
    bias_dtype: str = "none"
    heads: int = 1
    aligned: bool = True
    scales_aligned: bool = True
    pdl: bool = False
    operator: str = "mxfp4_linear"


@public
def mxfp4_linear(
    session: Session,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    x_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_scale_layout: str = "row",
    enable_pdl: bool | None = None,
) -> torch.Tensor:
    """`out = dequant(x) @ dequant(weight)^T + bias`, in one launch, or two where K is split.

    x             `[.., K]`, K even; bfloat16, float16 or float32; last stride 1, others free (of
                  more than three dimensions, all before the last two must be evenly spaced). Or
                  `[.., K / 2]` of packed e2m1, uint8, with x_scale
    weight        `[N, K / 2]` packed e2m1, uint8; last stride 1
    weight_scale  `[N, ceil(K / 32)]` e8m0, uint8; last stride 1. A byte of 255 is NaN
    x_scale       `[.., ceil(K / 32)]` e8m0, uint8, last stride 1; or as x_scale_layout says:
                  shuffled_gfx950 `[ceil256(T), ceil8(K / 32)]`, contiguous, for x of two
                  dimensions: what rmsnorm_quant writes
    bias          `[N]`, any of the float dtypes
    out           `[.., N]`, any of the float dtypes, its own memory; default new, contiguous, of
                  out_dtype, which by default is x's dtype, bfloat16 for packed x
    enable_pdl    None: wherever the device has it; a device without it ignores True

    torch.float4_e2m1fn_x2 and torch.float8_e8m0fnu are taken for uint8. x may have no rows.

    Raises ArgumentValueError or ArgumentTypeError before anything is written.
    """
    facts = metadata(x, weight, bias, out), metadata(weight_scale, x_scale)
    key = (operands.OP, *facts, out_dtype, x_scale_layout, enable_pdl)
    if out is not None and out is x:
        bad_value(operands.OP, "out", "another tensor than x", "one for both")
    problem = session.problems.get(key)
    if problem is None:
        pdl = enable_pdl is not False and session.pdl
        problem = _problem(
            session, x, weight, weight_scale, x_scale, bias, out, out_dtype, x_scale_layout, pdl
        )
        remember(session.problems, key, problem)
    if torch.is_grad_enabled():
        check_no_grad(operands.OP, x, bias)
    if out is None:
        shape = (*x.shape[:-1], problem.out_features)
        out = torch.empty(shape, dtype=getattr(torch, problem.out_dtype), device=x.device)
    rows = operands.as_rows("x", x)
    if x_scale is not None:
        rows, x_scale = operands.as_bytes(rows), operands.as_bytes(x_scale)
        x_scale = operands.as_rows("x_scale", x_scale)
    session.launcher(problem)(
        rows,
        operands.as_bytes(weight),
        operands.as_bytes(weight_scale),
        x_scale,
        bias,
        x_scale_layout,
        operands.as_rows("out", out),
    )
    return out


def _problem(
    session: Session,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    x_scale_layout: str,
    pdl: bool,
) -> Mxfp4LinearProblem:
    """Check the metadata of a call and make its key."""
    dtype = operands.check_x(x)
    packed = dtype == "uint8"
    n, k, weight_bits, scale_bits = operands.check_weight(weight, weight_scale, x)
    heads, bits = operands.check_rows("x", x, (*x.shape[:-1], k // 2 if packed else k))
    layout, scale_heads, x_scale_bits = operands.check_x_scale(
        x_scale, x_scale_layout, x, packed, k
    )
    bias_dtype, bias_bits = operands.check_bias(bias, n, x)
    found_dtype, out_heads, out_bits = operands.check_out(out, out_dtype, x, dtype, n)
    return Mxfp4LinearProblem(
        dtype,
        found_dtype,
        k,
        n,
        layout,
        bias_dtype,
        max(heads, scale_heads, out_heads),
        (bits | weight_bits | bias_bits | out_bits) & 15 == 0,
        (scale_bits | x_scale_bits) & 15 == 0,
        pdl,
    )


_W4A16 = ("bfloat16", "bfloat16")
_W4A4 = ("uint8", "bfloat16")


def _example(
    dtypes: tuple[str, str], k: int, n: int, layout: str = "none", bias: str = "none"
) -> Mxfp4LinearProblem:
    """Contiguous tensors: rows of scales are aligned where they are whole words."""
    aligned = -(-k // 32) % 4 == 0
    return Mxfp4LinearProblem(*dtypes, k, n, layout, bias, scales_aligned=aligned)


OPERATORS = (
    Operator(
        name="mxfp4_linear",
        family="linear",
        problem=Mxfp4LinearProblem,
        inputs=("x", "weight", "weight_scale", "x_scale", "bias", "x_scale_layout"),
        outputs=("out",),
        reference="archkey.reference.linear:mxfp4_linear",
        function="archkey.ops.mxfp4_linear:mxfp4_linear",
        cases="archkey.conformance.cases.mxfp4_linear",
        workloads="archkey.bench.workloads.mxfp4_linear",
        examples=MappingProxyType(
            {
                "DeepSeek-R1 q_b, W4A16": _example(_W4A16, 1536, 24576),
                "DeepSeek-R1 q_b TP8, W4A4 after gfx950's rmsnorm_quant": _example(
                    _W4A4, 1536, 3072, "shuffled_gfx950"
                ),
                "DeepSeek-R1 o, W4A16": _example(_W4A16, 16384, 7168),
                "DeepSeek-R1 gate and up TP8, W4A4": _example(_W4A4, 7168, 4608, "row"),
                "Qwen3.5-397B q and gate, W4A16": _example(_W4A16, 4096, 16384),
                "GPT-OSS-120B gate and up, W4A16": _example(_W4A16, 2880, 5760, bias="bfloat16"),
                "GPT-OSS-120B down, W4A4": _example(_W4A4, 2880, 2880, "row", "bfloat16"),
            }
        ),
    ),
)

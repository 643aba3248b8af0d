# SPDX-License-Identifier: Apache-2.0
"""RMSNorm whose result is quantised on the store, with the work that engines fuse to it.

    s = x + residual,  y = s * rsqrt(mean(s^2) + eps) * (weight + weight_bias),  out ~ y / scale

y is the float32 result: it is not rounded to x's dtype before it is quantised, unless
cast_before_weight asks for it. Every scale dequantises, `y ~ out * scale`; FP8 codes are rounded to
nearest even and saturate.

| quant      | out               | scale | out_scale                  | scale_layout         |
|------------|-------------------|-------|----------------------------|----------------------|
| fp8_tensor | `[.., N]` FP8     | given | None                       | row                  |
| fp8_token  | `[.., N]` FP8     | None  | `[.., 1]` float32          | row                  |
| fp8_group  | `[.., N]` FP8     | None  | `[.., N / group]` float32  | row, col             |
| mxfp4      | `[.., N/2]` uint8 | None  | `[.., ceil(N / 32)]` uint8 | row, shuffled_gfx950 |
| nvfp4      | `[.., N/2]` uint8 | given | `[.., N / 16]` e4m3fn      | row, swizzled_128x4  |

mxfp4 is OCP MX 1.0: e2m1 codes, the even column in the low nibble, and e8m0 scales. nvfp4 has
`y ~ code * out_scale * scale`. The encodings in full are `archkey.formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from archkey.ops import _rmsnorm_quant_kinds as kinds
from archkey.ops import _rmsnorm_quant_operands as operands
from archkey.ops._checks import bad_value, check_no_grad
from archkey.ops._contract import Operator, public
from archkey.ops._memo import metadata, remember
from archkey.ops._rows import check_rows, check_vector

if TYPE_CHECKING:
    import torch

    from archkey.session import Session
else:
    from archkey._torch import torch

__all__ = ["OPERATORS", "QuantResult", "RmsNormQuantProblem", "rmsnorm_quant"]


class RmsNormQuantProblem(NamedTuple):
    """Root-mean-square norm of each row, quantised; with residual add and a second norm beside it.

    group_size   columns that share a written scale; 0 where none is written
    scale_mode   "none" where the kind has one rule
    residual_dtype, unquantized_dtype   of residual and unquantized_out, or "none"
    x2_width     width of the second norm, 0 without one; x2 has x's dtype and weight's dtype
    aligned      every pointer but those of scales is a multiple of 16 bytes and every row stride
                 one of 16 elements, so that rows can be read 16 bytes at a time
    """

    quant: str
    dtype: str
    weight_dtype: str
    out_dtype: str
    width: int
    group_size: int = 0
    scale_mode: str = "none"
    scale_layout: str = "row"
    residual_dtype: str = "none"
    unquantized_dtype: str = "none"
    x2_width: int = 0
    x2_out_dtype: str = "none"
    heads: int = 1
    x2_heads: int = 1
    cast_before_weight: bool = False
    aligned: bool = True
    pdl: bool = False
    operator: str = "rmsnorm_quant"


class QuantResult(NamedTuple):
    """What rmsnorm_quant returns; None for what was not asked for.

    scale  out_scale; with fp8_tensor, which writes none, the given scale: `y ~ out * scale`
    """

    out: torch.Tensor
    scale: torch.Tensor | None
    unquantized_out: torch.Tensor | None
    residual_out: torch.Tensor | None
    x2_out: torch.Tensor | None


@public
def rmsnorm_quant(
    session: Session,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    quant: str,
    scale: torch.Tensor | None = None,
    group_size: int = 128,
    residual: torch.Tensor | None = None,
    scale_mode: str | None = None,
    scale_layout: str = "row",
    out: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    unquantized_out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    x2: torch.Tensor | None = None,
    x2_weight: torch.Tensor | None = None,
    x2_eps: float | None = None,
    x2_out: torch.Tensor | None = None,
    weight_bias: float = 0.0,
    cast_before_weight: bool = False,
    enable_pdl: bool | None = None,
) -> QuantResult:
    """`out, out_scale = quantise(rmsnorm(x + residual))`, and x2's norm, in one launch.

    x         `[T, N]` or `[T, h, N]`; bfloat16, float16 or float32; last stride 1, others free.
              N is even for mxfp4, a multiple of 16 for nvfp4 and of group_size for fp8_group
    weight    `[N]`, any of these dtypes
    quant     fp8_tensor, fp8_token, fp8_group, mxfp4 or nvfp4: the table of this module
    scale     float32, one element, positive: fp8_tensor divides by it, nvfp4 has it for all blocks
    residual  x's shape, any float dtype; residual_out gets the sum, by default in place
    scale_mode  fp8_token, fp8_group: "fp32" (default), or "pow2", powers of two (ue8m0 values);
              mxfp4: "rceil", "even", "floor" or "ceil"; the default is "even" on AMD's targets,
              what Quark's checkpoints expect, and "rceil" elsewhere
    scale_layout  "col": tokens next to each other in memory, the pitch of a column is free. The
              padded ones are contiguous, for 2-D x: shuffled_gfx950 `[ceil256(T), ceil8(N / 32)]`,
              swizzled_128x4 `[ceil128(T), ceil4(N / 16)]`; their padding is written too, as 0
    out       the device's FP8 dtype (either on the CPU, e4m3fn by default), or uint8
    unquantized_out  x's shape, any float dtype: gets y, if given
    x2        `[T, N2]` or `[T, h, N2]` of x's dtype, normed with x2_weight `[N2]` (weight's dtype)
              and x2_eps, not quantised: MLA's kv_a beside its q_a. weight_bias is for both.
              x2_out: x2's shape, any float dtype; default new, contiguous, x2's dtype
    cast_before_weight  round s * rsqrt(...) to x's dtype before the product with the weight, and
              that product before it is quantised: what a norm as Hugging Face's Llama has it and a
              quantisation give one after the other, and vLLM's fused operators
    enable_pdl  None: wherever the device has it; a device without it ignores True

    Raises ArgumentValueError or ArgumentTypeError before anything is written, Unsupported for a
    quant that the device lacks.
    """
    rows = metadata(x, weight, residual, out, unquantized_out, residual_out, x2, x2_weight, x2_out)
    # Scales apart: their pointers have no part in `aligned`.
    facts = rows, metadata(scale, out_scale), quant, group_size, scale_mode, scale_layout
    key = (kinds.OP, *facts, cast_before_weight, enable_pdl)
    residual_out = residual if residual_out is None else residual_out
    operands.check_different(residual_out, unquantized_out, x2_out)
    problem = session.problems.get(key)
    if problem is None:
        problem = _problem(
            session, x, weight, quant, scale, group_size, residual, scale_mode, scale_layout,
            out, out_scale, unquantized_out, residual_out, x2, x2_weight, x2_out,
            cast_before_weight, enable_pdl is not False and session.pdl,
        )  # fmt: skip
        remember(session.problems, key, problem)
    operands.check_eps("eps", eps)
    if x2 is not None:
        operands.check_eps("x2_eps", x2_eps)
    elif x2_eps is not None:
        bad_value(kinds.OP, "x2_eps", "None without x2", x2_eps)
    if torch.is_grad_enabled():
        check_no_grad(kinds.OP, x, weight, scale, residual, x2, x2_weight)
    if out is None:
        out = operands.new_codes(problem.out_dtype, x)
    if out_scale is None:
        out_scale = operands.new_out_scale(quant, problem.group_size, scale_layout, x)
    if x2 is not None and x2_out is None:
        x2_out = torch.empty(x2.shape, dtype=x2.dtype, device=x2.device)
    session.launcher(problem)(
        x, weight, eps, quant, scale if scale is None else scale.reshape(1), group_size, residual,
        None if problem.out_dtype == "uint8" else problem.out_dtype,
        None if problem.scale_mode == "none" else problem.scale_mode, scale_layout,
        x2, x2_weight, x2_eps, weight_bias, cast_before_weight,
        out, out_scale, unquantized_out, residual_out, x2_out,
    )  # fmt: skip
    given = scale if out_scale is None else out_scale
    return QuantResult(out, given, unquantized_out, residual_out, x2_out)


def _problem(
    session: Session,
    x: torch.Tensor,
    weight: torch.Tensor,
    quant: str,
    scale: torch.Tensor | None,
    group_size: int,
    residual: torch.Tensor | None,
    scale_mode: str | None,
    scale_layout: str,
    out: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    unquantized_out: torch.Tensor | None,
    residual_out: torch.Tensor | None,
    x2: torch.Tensor | None,
    x2_weight: torch.Tensor | None,
    x2_out: torch.Tensor | None,
    cast_before_weight: bool,
    pdl: bool,
) -> RmsNormQuantProblem:
    """Check the metadata of a call and make its key."""
    op = kinds.OP
    dtype, shape, heads, bits = check_rows(op, "x", x)
    kind = kinds.kind_of(session, quant, scale_layout, len(shape))
    mode = kinds.mode_of(session, quant, kind, scale_mode)
    group = kinds.group_of(quant, kind, group_size, shape[-1])
    weight_dtype, weight_bits = check_vector(op, "weight", weight, shape[-1], x.device)
    operands.check_scale(quant, kind, scale, x)
    residual_dtype, y_dtype, its_heads, its_bits = operands.check_beside(
        x, residual, residual_out, unquantized_out
    )
    out_dtype, out_heads, out_bits = operands.check_codes(session, kind, out, x)
    scale_heads = operands.check_out_scale(quant, kind, group, scale_layout, out_scale, x)
    x2_width, x2_out_dtype, x2_heads, x2_bits = operands.check_second(
        x, dtype, weight_dtype, x2, x2_weight, x2_out
    )
    return RmsNormQuantProblem(
        quant,
        dtype,
        weight_dtype,
        out_dtype,
        shape[-1],
        group,
        mode,
        scale_layout,
        residual_dtype,
        y_dtype,
        x2_width,
        x2_out_dtype,
        max(heads, its_heads, out_heads, scale_heads),
        x2_heads,
        bool(cast_before_weight),
        (bits | weight_bits | its_bits | out_bits | x2_bits) & 15 == 0,
        pdl,
    )


_BF16 = ("bfloat16", "bfloat16")
_FP8 = (*_BF16, "float8_e4m3fn")
_FP4 = (*_BF16, "uint8")
_KV_A: Mapping[str, Any] = MappingProxyType({"x2_width": 512, "x2_out_dtype": "bfloat16"})

OPERATORS = (
    Operator(
        name="rmsnorm_quant",
        family="rmsnorm",
        problem=RmsNormQuantProblem,
        inputs=(
            "x",
            "weight",
            "eps",
            "quant",
            "scale",
            "group_size",
            "residual",
            "fp8_dtype",  # that of the codes; None for 4-bit ones
            "scale_mode",  # None where the kind has one rule
            "scale_layout",
            "x2",
            "x2_weight",
            "x2_eps",
            "weight_bias",
            "cast_before_weight",
        ),
        outputs=("out", "out_scale", "unquantized_out", "residual_out", "x2_out"),
        reference="archkey.reference.rmsnorm:rmsnorm_quant",
        function="archkey.ops.rmsnorm_quant:rmsnorm_quant",
        cases="archkey.conformance.cases.rmsnorm_quant",
        workloads="archkey.bench.workloads.rmsnorm_quant",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 hidden, FP8 blocks": RmsNormQuantProblem(
                    "fp8_group", *_FP8, 7168, 128, "fp32", "col", residual_dtype="bfloat16"
                ),
                "DeepSeek-V3 q_a, FP8 blocks, and kv_a": RmsNormQuantProblem(
                    "fp8_group", *_FP8, 1536, 128, "fp32", "col", **_KV_A
                ),
                "DeepSeek-R1 hidden, MXFP4": RmsNormQuantProblem(
                    "mxfp4", *_FP4, 7168, 32, "even", residual_dtype="bfloat16"
                ),
                "DeepSeek-R1 q_a, MXFP4, and kv_a": RmsNormQuantProblem(
                    "mxfp4", *_FP4, 1536, 32, "even", **_KV_A
                ),
                "DeepSeek-R1 hidden, NVFP4": RmsNormQuantProblem(
                    "nvfp4",
                    *_FP4,
                    7168,
                    16,
                    scale_layout="swizzled_128x4",
                    residual_dtype="bfloat16",
                ),
                "GLM-5 q_a, FP8 blocks, and kv_a": RmsNormQuantProblem(
                    "fp8_group", *_FP8, 2048, 128, "fp32", "col", **_KV_A
                ),
                "Qwen3.5 hidden, FP8 per token": RmsNormQuantProblem(
                    "fp8_token", *_FP8, 4096, 4096, "fp32", residual_dtype="bfloat16"
                ),
                "Kimi-Linear hidden, FP8 per tensor": RmsNormQuantProblem(
                    "fp8_tensor", *_FP8, 2304, residual_dtype="bfloat16"
                ),
            }
        ),
    ),
)

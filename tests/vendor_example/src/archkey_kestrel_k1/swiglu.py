# SPDX-License-Identifier: Apache-2.0
"""kestrel_swiglu, an operator that archkey does not have.

    out = g * sigmoid(g) * u        g = min(x[:, :N], limit), u = clamp(x[:, N:], -limit, limit)

The activation of a gated MLP on the packed output of one projection; without a limit nothing is
clamped. All in float32 with one rounding, on the store. gpt-oss clamps at 7.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.ops import Operator, public

if TYPE_CHECKING:
    import torch

    from archkey import Session

__all__ = ["OPERATORS", "KestrelSwigluProblem", "kestrel_swiglu"]

_DTYPES = ("bfloat16", "float16", "float32")


class KestrelSwigluProblem(NamedTuple):
    """SwiGLU of packed rows, with both halves clamped or neither."""

    dtype: str
    width: int
    clamped: bool = False
    operator: str = "kestrel_swiglu"


@public
def kestrel_swiglu(
    session: Session,
    x: torch.Tensor,
    *,
    limit: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """SwiGLU of each row of x.

    x      `[T, 2 N]` in host memory: bfloat16, float16 or float32; last stride 1
    limit  > 0; None clamps nothing
    out    `[T, N]`, x's dtype, last stride 1, rows that do not overlap; default: new

    Returns out. Raises ArgumentValueError or ArgumentTypeError before anything is written.
    """
    dtype = _check_rows("x", x)
    if x.shape[1] == 0 or x.shape[1] % 2:
        _bad("x", "of shape [T, 2 N] with N > 0", list(x.shape))
    width = x.shape[1] // 2
    if limit is not None and not limit > 0:  # NaN is not either
        _bad("limit", "None or > 0", limit)
    if out is None:
        out = x.new_empty(x.shape[0], width)
    elif _check_rows("out", out) != dtype:
        _bad("out", f"{dtype} like x", out.dtype, ArgumentTypeError)
    elif list(out.shape) != [x.shape[0], width]:
        _bad("out", f"of shape {[x.shape[0], width]}", list(out.shape))
    elif out.shape[0] > 1 and out.stride(0) < width:
        _bad("out", "rows that do not overlap", f"strides {out.stride()}")
    session.launcher(KestrelSwigluProblem(dtype, width, limit is not None))(x, limit, out)
    return out


def _check_rows(name: str, tensor: Any) -> str:
    """`tensor` is `[T, any]` in host memory with last stride 1; returns the name of its dtype."""
    if not hasattr(tensor, "untyped_storage"):
        _bad(name, "a tensor", type(tensor).__name__, ArgumentTypeError)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        _bad(name, " or ".join(_DTYPES), dtype, ArgumentTypeError)
    if tensor.device.type != "cpu":
        _bad(name, "in host memory", f"a tensor on {tensor.device}")
    if tensor.dim() != 2 or (tensor.stride(1) != 1 and tensor.numel()):
        _bad(name, "of shape [T, any], last stride 1", f"{list(tensor.shape)}, {tensor.stride()}")
    return dtype


def _bad(
    name: str, expected: str, found: object, kind: type[Exception] = ArgumentValueError
) -> NoReturn:
    raise kind(f"kestrel_swiglu: {name} must be {expected}, found {found}")


OPERATORS = (
    Operator(
        name="kestrel_swiglu",
        family="kestrel",
        problem=KestrelSwigluProblem,
        inputs=("x", "limit"),
        outputs=("out",),
        reference="archkey_kestrel_k1.swiglu_reference:kestrel_swiglu",
        function="archkey_kestrel_k1.swiglu:kestrel_swiglu",
        cases="archkey_kestrel_k1.swiglu_cases",
        workloads="archkey_kestrel_k1.swiglu_workloads",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 expert": KestrelSwigluProblem("bfloat16", 2048),
                "gpt-oss-120b expert": KestrelSwigluProblem("bfloat16", 2880, clamped=True),
            }
        ),
    ),
)

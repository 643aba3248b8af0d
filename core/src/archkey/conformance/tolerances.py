# SPDX-License-Identifier: Apache-2.0
"""How far an output may lie from the float64 reference, with the reason for every number.

The error of a float output is ||out - ref|| / ||ref|| over its finite elements, or half of that
of its worst row if that is more: one wrong row among thousands must not drown. (A row is along the
last dimension; one that is far smaller than the others is measured as if it were a hundredth of
their size. Few numbers are no average: rows of less than 64 are taken together, up to 1024 numbers
at once.) A logarithm is near 0 where its argument is near 1, so its error is the largest
|out - ref| / max(1, |ref|). Infinities and NaN must stand in the same places, or the error is
infinite. The error of an integer output, and of codes, is the share of elements that differ, or a
twentieth of that share in the worst row.

Where a state goes from token to token an error may grow with them, and a late drift drowns in the
whole: so such an output is measured over every WINDOW tokens too, see `windows`, by the same bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from archkey.conformance.cases.distributions import WINDOW
from archkey.ops._sparse_kv import PACKED

__all__ = [
    "ANY",
    "SEQUENTIAL",
    "TABLE",
    "Bound",
    "bound",
    "distance",
    "source_of",
    "windows",
]

ANY = "*"


class Bound(NamedTuple):
    """The largest error that passes, for outputs that match; `ANY` matches all.

    operator, output  names
    format            the output's dtype as torch writes it; after that of what it is computed from,
                      see `source_of`, where that matters: "fp8 float32", "bfloat16 float16"
    level             the exam's level at which it holds
    """

    operator: str
    output: str
    format: str
    level: str
    value: float
    reason: str


LOGARITHMS = ("lse", "max_logits")
"""Outputs by that name are measured as logarithms, those of a vendor's operator too."""

SEQUENTIAL = MappingProxyType({"chunk_kda": "o", "fused_recurrent_kda": "o"})
"""Operators whose output of that name, `[B, T, ..]`, comes of a state that each token changes."""

_SPARSE = ("sparse_mla_prefill", "sparse_mla_decode")
_ATTENTION = ("unified_attention", "mla_decode", "mla_prefill", *_SPARSE)
_UNPACKED = "keys of packed rows are rounded to bfloat16 before they are multiplied"
_CHUNKS = "operands of a chunk's products, the state among them, are rounded to 8 bits"
_WEIGHTS = "weights are rounded to the dtype of the values that they multiply"

# One rounding of a value spread evenly over a binade costs 2^-(p+1)/sqrt(3) of its size on
# average: 0.0016 for bfloat16 (p = 8), 0.0002 for float16 (p = 11). Twice that is allowed.
TABLE = (
    # Codes against codes: a float32 sum in another order falls on the other side of a tie. One FP8
    # code in 200 next to the right one is 0.006. y rounded to bfloat16 first is 0.008 to 0.013.
    Bound("rmsnorm_quant", "out", "float8_e4m3fn", ANY, 6e-3, "one code in 200 may be a neighbour"),
    Bound(
        "rmsnorm_quant", "out", "float8_e4m3fnuz", ANY, 6e-3, "one code in 200 may be a neighbour"
    ),
    *(
        Bound("chunk_kda", ANY, f"{source} {dtype}", level, error, reason)
        for source in ("bfloat16", "float32")
        for dtype in ("bfloat16", "float16", "float32")
        for level, error, reason in (
            ("interpreted", 1.5e-2, f"{_CHUNKS}; the interpreter cuts them off"),
            (ANY, 5e-3, f"{_CHUNKS}: what flash-linear-attention's tests allow"),
        )
    ),
    *(
        Bound("chunk_kda", ANY, f"float16 {dtype}", ANY, 1e-3, f"{_CHUNKS}, here to 11 bits")
        for dtype in ("float16", "float32")
    ),
    Bound(
        *(ANY, ANY, "bfloat16", "interpreted", 8e-3),
        "Triton's interpreter cuts a bfloat16 off instead of rounding it: 0.0032 on average",
    ),
    *(
        Bound(
            *(operator, "lse", "fp8 float32", ANY, error),
            f"Hopper adds products of FP8 with 14 bits (DeepSeek-V3, 3.3.2), up to {width} of them",
        )
        for operator, width, error in (
            ("unified_attention", 256, 1e-3),
            ("mla_decode", 576, 2e-3),
            ("mla_prefill", 256, 1e-3),
        )
    ),
    # A key's numbers are off by 0.0011 on average then, each on its own: a score by as much of the
    # root of its summed squared products, which is 1 to 3 where lse is. The largest score has that
    # to itself, an lse the mean over its keys; where one key has most of the weight, so has out.
    *(
        Bound(operator, output, f"fp8 {dtype}", ANY, error, _UNPACKED)
        for operator in _SPARSE
        for output, dtype, error in (
            ("max_logits", "float32", 1e-2),
            ("lse", "float32", 5e-3),
            ("out", "bfloat16", 8e-3),
            ("out", "float16", 8e-3),
        )
    ),
    *(
        Bound(operator, "out", f"{source} {dtype}", ANY, 4e-3, _WEIGHTS)
        for operator in _ATTENTION
        for source in (("bfloat16",) if operator in _SPARSE else ("fp8", "bfloat16"))
        for dtype in ("float16", "float32")
    ),
    Bound("unified_attention", "out", "float16 float32", ANY, 5e-4, _WEIGHTS),
    *(
        Bound(ANY, name, "float32", ANY, 1.2e-4, "FlashMLA's tests allow its lse 8.01/65536")
        for name in LOGARITHMS
    ),
    Bound(ANY, ANY, "float64", ANY, 1e-6, "computed in float32 and widened"),
    Bound(ANY, ANY, "float32", ANY, 1e-5, "float32 sums of some thousand terms, stored unrounded"),
    Bound(ANY, ANY, "float16", ANY, 5e-4, "one rounding to 11 bits: 0.0002 on average"),
    Bound(ANY, ANY, "bfloat16", ANY, 4e-3, "one rounding to 8 bits: 0.0016 on average"),
    Bound(ANY, ANY, "float8_e4m3fn", ANY, 4e-2, "one rounding to 4 bits: 0.026 on average"),
    Bound(ANY, ANY, "float8_e4m3fnuz", ANY, 4e-2, "one rounding to 4 bits: 0.026 on average"),
    Bound(
        *("quantize_sparse_kv", "out", ANY, ANY, 0.0),
        "bytes are defined in float32, where a quotient and its rounding have one answer",
    ),
    Bound(
        *(ANY, ANY, "uint8", ANY, 5e-3),
        "codes: float32 against float64 may fall on the other side of a tie",
    ),
    Bound(ANY, ANY, ANY, ANY, 0.0, "integers are exact"),
)
"""Special rows first; the first that matches holds."""


def source_of(inputs: Iterable[Any]) -> str:
    """What outputs are computed from: "fp8" if an input is or names a packed format of it.

    Otherwise the dtype of the first tensor.
    """
    inputs = list(inputs)
    if any(isinstance(x, str) and x in PACKED for x in inputs):
        return "fp8"
    dtypes = [str(x.dtype).removeprefix("torch.") for x in inputs if isinstance(x, torch.Tensor)]
    return "fp8" if any("float8" in dtype for dtype in dtypes) else next(iter(dtypes), "")


def bound(operator: str, output: str, dtype: torch.dtype, level: str, source: str = "") -> Bound:
    """The row for one output of an operator; `source` is what `source_of` says of its inputs."""
    name = str(dtype).removeprefix("torch.")
    formats = (ANY, name, f"{source} {name}")
    return next(
        row
        for row in TABLE
        if row.operator in (ANY, operator)
        and row.output in (ANY, output)
        and row.format in formats
        and row.level in (ANY, level)
    )


def distance(out: torch.Tensor, reference: torch.Tensor, name: str = "") -> float:
    """Error of the output called `name` against `reference`, as the module says."""
    if out.shape != reference.shape:
        return float("inf")
    if not out.numel():
        return 0.0
    if not out.dtype.is_floating_point or not reference.dtype.is_floating_point:
        differ = (out != reference).double()
        return max(float(differ.mean()), float(differ.mean(-1).max()) / 20)
    got, want = out.double(), reference.double()
    finite = want.isfinite()
    same = torch.where(finite, got.isfinite(), (got == want) | (got.isnan() & want.isnan()))
    if not bool(same.all()):
        return float("inf")
    off = torch.where(finite, got - want, 0.0)
    want = torch.where(finite, want, 0.0)
    if name in LOGARITHMS:
        return float((off.abs() / want.abs().clamp_min(1.0)).max())
    whole = _ratio(float(off.norm()), float(want.norm()))
    if off.ndim < 2:
        return whole
    errors, sizes = (_together(x).norm(dim=-1) for x in (off, want))
    usual = float(want.norm()) / sizes.numel() ** 0.5
    rows = errors / sizes.clamp_min(0.01 * usual) if usual > 0 else errors
    return max(whole, float(rows.max()) / 2)


def windows(out: torch.Tensor, reference: torch.Tensor) -> float:
    """The worst ||out - ref|| / ||ref|| over any WINDOW tokens of one batch entry of `[B, T, ..]`.

    Windows begin at multiples of WINDOW, and the last one ends with the last token. 0 where there
    are fewer tokens, or where the shapes are not the same.
    """
    length = reference.shape[1] if reference.dim() > 1 else 0
    if length < WINDOW or out.shape != reference.shape:
        return 0.0
    sums = []
    for x in (out.double() - reference.double(), reference.double()):
        tokens = x.flatten(2).square().sum(-1)
        whole = tokens[:, : length // WINDOW * WINDOW].unflatten(1, (-1, WINDOW))
        sums.append(torch.cat([whole, tokens[:, None, -WINDOW:]], 1).sum(-1).sqrt())
    errors, sizes = sums
    return float(torch.where(sizes > 0, errors / sizes, errors).nan_to_num(torch.inf).max())


def _together(x: torch.Tensor) -> torch.Tensor:
    """Rows that are wide enough; narrow ones next to each other, the last ones with zeros."""
    width = x.shape[-1]
    if width >= 64:
        return x
    rows = x.reshape(-1, width)
    many = 1024 // width
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % many)).reshape(-1, many * width)


def _ratio(error: float, size: float) -> float:
    return error / size if size > 0 else error

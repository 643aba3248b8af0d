# SPDX-License-Identifier: Apache-2.0
"""What the counts of level accuracy may be, with the reason for every number.

The counts are those of `archkey.conformance.accuracy`; all are what comes on top of one rounding of
the exact result to the output's dtype. A limit lies between what sound arithmetic does and losses
that were seen in the field or are as likely. By how much, on the distributions of
`archkey.conformance.cases.distributions`, at 64 and 128 heads, 2 to 4 query rows (with more of them
a sound kernel's biases of windows are smaller still) and 300 to 2048 keys: the share of its limit
that the worst count takes, where it is nearest to 1.

| what computes                                     | share       | told by                        |
|---------------------------------------------------|-------------|--------------------------------|
| float32 throughout                                | 0.04        |                                |
| sound: keys and weights rounded once to bfloat16  | 0.6 at most |                                |
| one of 576 columns, of the rope key, left out     | 2.3         | noise of a window              |
| weights rounded to FP8, but between near ties     | 2.4         | noise of a window              |
| all results 0.3 % too small                       | 2.5         | bias of a window               |
| a tile of every 64th key in the other FP8         | 2.8         | bias, noise of columns         |
| float32 scales cut off to bfloat16                | 2.8         | bias of a window               |
| float32 scales to the nearest power of two        | 19          | bias of a window               |
| float32 scales up to a power of two (sglang#22723)| 435         | bias of a window               |
| lse to base 2                                     | 900         | bias of lse                    |

Between near ties weights in FP8 are even: there is no loss to see.

KDA has limits of its own: errors of a state are in all tokens that come after. On the distributions
of `archkey.conformance.cases.kda.accuracy`, up to 8192 tokens:

| what computes                                     | share       | told by                        |
|---------------------------------------------------|-------------|--------------------------------|
| chunks whose products have bfloat16 operands      | 0.7 at most |                                |
| a state rounded to bfloat16 after each chunk      | 1.9 or more | noise of final_state, "long .."|
| betas cut off to bfloat16                         | 2.3         | bias of o over a window        |
| all results 0.3 % too small                       | 2.6         | bias of o over a window        |
| sums of gates in bfloat16                         | 5 to 15     | noise of final_state           |
| a state's decay over a chunk in bfloat16          | 28          | bias of both, "long memory"    |
| a state's decay over a chunk without ln 2         | 71          | bias of both, "long memory"    |
| gates to base 2 as if to base e                   | 20 to 90    | bias of both                   |
| e^G and e^-G of a chunk apart                     | infinite    | any, "forgetting at once"      |
| float32, token by token                           | 0.02        |                                |
| gates cut off to bfloat16, token by token         | 7.4         | bias of final_state, forgetting|
| a state rounded to bfloat16 after each token      | 2.2 to 340  | bias of both, "long memory"    |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from archkey.conformance.tolerances import ANY

__all__ = ["LOG_BIAS", "OVER", "TABLE", "Limit", "limit", "storage_of"]


class Limit(NamedTuple):
    """The most of each count over a window; over other things, that times what OVER says.

    operator, output  names
    storage           see `storage_of`
    noise, bias       shares of the result
    error             of a logarithm, natural units
    rows              what the limits of a row are multiplied by besides: a row of one or two heads
                      may be small by chance, where there is no softmax to make it an average
    """

    operator: str
    output: str
    storage: str
    noise: float
    bias: float
    error: float
    reason: str
    rows: float = 1.0


OVER: Mapping[str, tuple[float, float]] = {
    "row": (1.5, 2.5),
    "window": (1.0, 1.0),
    "head": (4.0, 0.0),
    "columns": (2.0, 2.0),
}
"""What a limit of noise and of bias is multiplied by: the fewer numbers, the more of it is chance.

A head's bias has no limit: where two keys share the attention, rounding the weight of one of them
to bfloat16 is a bias of up to 0.002, which is of another sign in the next head.
"""

LOG_BIAS = 0.2
"""The mean error of a window's logarithms, next to the root mean square that a row may have."""

_ROUNDED = "codes times a scale are rounded to 8 bits, and weights next to 1: half an ulp is 0.002"
_EXACT = "codes and their scale fit into 8 bits; weights next to 1 are rounded to them"

_CHUNKS = "operands of a chunk's products, a state among them, are rounded to 8 bits"

TABLE = (
    Limit("quantize_sparse_kv", ANY, ANY, 6e-3, 2e-4, 0.0, "codes of float32: one in 200 differs"),
    Limit("dequantize_sparse_kv", ANY, ANY, 1e-3, 2e-4, 0.0, "a product of code and scale, exact"),
    *(
        Limit(operator, ANY, ANY, 1e-3, 2e-4, 0.0, "float32 sums of some thousand squares")
        for operator in ("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm")
    ),
    Limit("chunk_kda", "o", ANY, 1.2e-2, 1.2e-3, 0.0, _CHUNKS, 10.0),
    Limit("chunk_kda", ANY, ANY, 6e-3, 1.5e-3, 0.0, _CHUNKS),
    Limit("fused_recurrent_kda", ANY, ANY, 1e-3, 2e-4, 0.0, "float32, token by token", 10.0),
    *(
        Limit(ANY, ANY, storage, 4e-3, 5e-4, 2e-3, _EXACT)
        for storage in ("fp8_model1", "bfloat16", "float16")
    ),
    Limit(ANY, ANY, ANY, 1e-2, 1e-3, 1.5e-2, _ROUNDED),
)
"""Special rows first; the first that matches holds."""


def storage_of(inputs: Mapping[str, Any]) -> str:
    """How what is read is stored: a packed format, "fp8", or the dtype of the first tensor.

    inputs  of a kernel, by name; a packed cache is told by `kv_format` or `format`
    """
    name = str(inputs.get("kv_format") or inputs.get("format") or "").removesuffix("_fnuz")
    if name.startswith("fp8"):
        return name
    dtypes = [str(x.dtype).removeprefix("torch.") for x in inputs.values() if _is_float(x)]
    return "fp8" if any("float8" in dtype for dtype in dtypes) else next(iter(dtypes), "")


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def limit(operator: str, output: str, storage: str) -> Limit:
    """The row for one output of an operator that reads what is stored as `storage`."""
    return next(
        row
        for row in TABLE
        if row.operator in (ANY, operator)
        and row.output in (ANY, output)
        and row.storage in (ANY, storage)
    )

# SPDX-License-Identifier: Apache-2.0
"""The K1's kernels, described without importing them."""

from __future__ import annotations

import archkey
from archkey.conditions import Condition, at_least, at_most
from archkey_kestrel_k1.tuning import by_width

__all__ = ["KERNELS"]

_MODULE = "archkey_kestrel_k1.kernels"
_SCRATCHPAD = (at_least("kestrel:scratchpad_bytes", 65536, "a K1 has that much"),)


def _fits(field: str, most: int) -> Condition:
    return at_most(field, most, "a row and what is read beside it fit the scratchpad")


def _kernel(
    operator: str, module: str, widths: tuple[str, ...], most: int = 8192
) -> archkey.Kernel:
    return archkey.Kernel(
        operator=operator,
        name="tiles",
        build=f"{_MODULE}.{module}:build_{operator}",
        accepts=tuple(_fits(width, most) for width in widths),
        needs=_SCRATCHPAD,
        tuning=by_width(*widths),
        summary="tiles of rows through the scratchpad",
    )


KERNELS = (
    _kernel("rmsnorm", "rmsnorm", ("width",)),
    _kernel("fused_add_rmsnorm", "rmsnorm", ("width",)),
    _kernel("fused_qk_rmsnorm", "rmsnorm", ("q_width", "k_width")),
    _kernel("merge_attn_states", "merge", ("head_dim_v",), most=256),
    _kernel("kestrel_swiglu", "swiglu", ("width",)),
)

# SPDX-License-Identifier: Apache-2.0
"""The shared bodies as `Kernel` entries: what every plugin that uses them lists alike.

A plugin passes its own numbers and gets the entries of a family:

    @archkey.hookimpl
    def archkey_kernels(target):
        yield from rmsnorm_kernels(RMSNORM, QK_RMSNORM, RMSNORM_QUANT)

Metadata only; the builders that are named here import triton when a kernel is first built.
"""

from __future__ import annotations

from archkey.conditions import Condition, at_most
from archkey.kernel import Kernel
from archkey.kernels import spaces
from archkey.requirements import Requirement
from archkey.tuning import Table

__all__ = ["TRITON", "rmsnorm_kernels"]

TRITON = Requirement("triton", ">=3.6", why="the oldest release that these bodies ran with")


_ROW = at_most("width", 16384, "a row is held in registers")


def rmsnorm_kernels(tuning: Table, qk_tuning: Table, quant_tuning: Table) -> tuple[Kernel, ...]:
    """Kernels of the RMSNorm family.

    tuning        rows of `RmsNormTuning`, with conditions on `width`: rmsnorm, fused_add_rmsnorm
    qk_tuning     the same, with conditions on `q_width` and `k_width`: fused_qk_rmsnorm
    quant_tuning  the same, with conditions on `width` and `quant`: rmsnorm_quant
    """
    shared = "shared Triton body: a tile of rows in registers, read once, one launch"
    listed: dict[str, tuple[str, Table, tuple[Condition, ...]]] = {
        "rmsnorm": ("rmsnorm", tuning, ()),
        "fused_add_rmsnorm": ("rmsnorm", tuning, ()),
        "fused_qk_rmsnorm": ("rmsnorm", qk_tuning, ()),
        "rmsnorm_quant": ("rmsnorm_quant", quant_tuning, (_ROW,)),
    }
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.{module}:build_{operator}",
            accepts=accepts,
            requires=(TRITON,),
            tuning=table,
            summary=shared,
            space=spaces.RMSNORM,
        )
        for operator, (module, table, accepts) in listed.items()
    )

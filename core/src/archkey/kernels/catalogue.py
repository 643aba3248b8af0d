# SPDX-License-Identifier: Apache-2.0
"""The shared bodies as `Kernel` entries: what every plugin that uses them lists alike.

A plugin passes its own numbers and gets the entries of a family:

    @archkey.hookimpl
    def archkey_kernels(target):
        yield from rmsnorm_kernels(RMSNORM, QK_RMSNORM)

Metadata only; the builders that are named here import triton when a kernel is first built.
"""

from __future__ import annotations

from archkey.kernel import Kernel
from archkey.kernels import spaces
from archkey.requirements import Requirement
from archkey.tuning import Table

__all__ = ["TRITON", "rmsnorm_kernels"]

TRITON = Requirement("triton", ">=3.6", why="the oldest release that these bodies ran with")


def rmsnorm_kernels(tuning: Table, qk_tuning: Table) -> tuple[Kernel, ...]:
    """Kernels of the RMSNorm family.

    tuning     rows of `RmsNormTuning`, with conditions on `width`: rmsnorm, fused_add_rmsnorm
    qk_tuning  the same, with conditions on `q_width` and `k_width`: fused_qk_rmsnorm
    """
    tables = {
        "rmsnorm": tuning,
        "fused_add_rmsnorm": tuning,
        "fused_qk_rmsnorm": qk_tuning,
    }
    return tuple(
        Kernel(
            operator=operator,
            name="triton",
            build=f"archkey.kernels.rmsnorm:build_{operator}",
            requires=(TRITON,),
            tuning=table,
            summary="shared Triton body: a tile of rows in registers, read once, one launch",
            space=spaces.RMSNORM,
        )
        for operator, table in tables.items()
    )

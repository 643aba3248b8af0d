# SPDX-License-Identifier: Apache-2.0
"""The hooks of `cuda_sm90.kestrel`: one kernel, and no facts - those are the base plugin's."""

from __future__ import annotations

from collections.abc import Iterable

import archkey
from archkey.conditions import at_most, is_
from archkey.kernels.catalogue import TRITON

ARCHKEY_API = (1, 1)


@archkey.hookimpl
def archkey_kernels(target: archkey.Target) -> Iterable[archkey.Kernel]:
    """RMSNorm of short rows."""
    yield archkey.Kernel(
        operator="rmsnorm",
        name="warp-row",
        build="archkey_cuda_sm90_kestrel.kernel:build_rmsnorm",
        accepts=(
            at_most("width", 1024, "a warp holds a row; longer ones go to the base plugin"),
            is_("heads", 1, "rows are evenly spaced"),
            is_("cast_before_weight", False, "one rounding, on the store"),
        ),
        requires=(TRITON,),
        summary="four rows a program, each held by one warp",
    )

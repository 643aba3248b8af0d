# SPDX-License-Identifier: Apache-2.0
"""The hooks of `rocm_gfx950`: AMD CDNA4, Instinct MI350X, MI355X."""

from __future__ import annotations

from collections.abc import Iterable

import archkey
from archkey.kernels.catalogue import rmsnorm_kernels
from archkey_rocm_gfx950.facts import FACTS
from archkey_rocm_gfx950.tuning import QK_RMSNORM, RMSNORM

ARCHKEY_API = (1, 1)


@archkey.hookimpl
def archkey_capabilities(target: archkey.Target) -> Iterable[archkey.Capability]:
    """The table of facts; what differs from card to card is left to the probe."""
    return FACTS


@archkey.hookimpl
def archkey_kernels(target: archkey.Target) -> Iterable[archkey.Kernel]:
    """The shared bodies with this architecture's numbers."""
    yield from rmsnorm_kernels(RMSNORM, QK_RMSNORM)

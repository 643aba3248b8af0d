# SPDX-License-Identifier: Apache-2.0
"""The hooks of `kestrel_k1`."""

from __future__ import annotations

from collections.abc import Iterable

import archkey
from archkey.ops import Operator
from archkey_kestrel_k1.facts import FACTS
from archkey_kestrel_k1.kernels import KERNELS
from archkey_kestrel_k1.swiglu import OPERATORS

ARCHKEY_API = (1, 1)


@archkey.hookimpl
def archkey_capabilities(target: archkey.Target) -> Iterable[archkey.Capability]:
    """The table of facts; what differs from card to card is left to the probe."""
    return FACTS


@archkey.hookimpl
def archkey_operators() -> Iterable[Operator]:
    """What archkey does not have."""
    return OPERATORS


@archkey.hookimpl
def archkey_kernels(target: archkey.Target) -> Iterable[archkey.Kernel]:
    """The K1's own, all of them."""
    return KERNELS

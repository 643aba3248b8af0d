# SPDX-License-Identifier: Apache-2.0
"""The whole door: what a plugin is.

A plugin is a module (or object) behind an entry point of the group `archkey.plugins`, named
`TARGET` or `TARGET.VARIANT`, e.g. `cuda_sm90` or `cuda_sm90.acme`. The target is known from the
name, so a plugin for other hardware is never imported. It carries

    ARCHKEY_API = (1, 1)      # lowest and highest version of this door that it supports

and implements any of the hooks below with `@archkey.hookimpl`. The four plugins of this project
and the torch reference come in through the same door. Hooks return metadata only: no kernel is
imported, no device is touched. All that a plugin registers is checked first and taken as a
whole, or refused as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from archkey.capabilities import Capability
from archkey.kernel import Kernel
from archkey.ops import Operator
from archkey.target import Target

API_VERSION = 1
GROUP = "archkey.plugins"

hookspec = pluggy.HookspecMarker("archkey")
hookimpl = pluggy.HookimplMarker("archkey")


@hookspec
def archkey_capabilities(target: Target) -> Iterable[Capability]:  # type: ignore[empty-body]
    """What `target` can do, by the names of `archkey.capabilities.VOCABULARY` or `vendor:name`."""


@hookspec
def archkey_kernels(  # type: ignore[empty-body]
    target: Target, operators: Mapping[str, Operator]
) -> Iterable[Kernel]:
    """Kernels for `target`, best first within an operator. `operators`: all that are known.

    A hook may leave out parameters that it does not use.
    """


@hookspec
def archkey_operators() -> Iterable[Operator]:  # type: ignore[empty-body]
    """Operators that the core does not have. Their names are `vendor_name`-like and must be new."""

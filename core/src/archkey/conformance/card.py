# SPDX-License-Identifier: Apache-2.0
"""What a plugin claims for all cards of its target, beside what the driver says of this one."""

from __future__ import annotations

from typing import Any

import torch

from archkey.probe import Device

__all__ = ["STATED", "compare"]

# Names of torch's properties of a CUDA or ROCm device, the first that it has.
_PROPERTIES = {
    "shared_memory_bytes": ("shared_memory_per_block_optin", "shared_memory_per_block"),
    "warp_size": ("warp_size",),
}

STATED = frozenset(_PROPERTIES)
"""Capabilities that a driver states."""


def compare(name: str, claimed: Any, device: Device) -> tuple[bool | None, str]:
    """(agrees, what was found); None where nobody says."""
    found = getattr(device, name, None)
    source = f"the probe ({device.source})"
    if found is None and device.torch_kind == "cuda":
        facts = torch.cuda.get_device_properties(device.index)
        listed = [getattr(facts, word, None) for word in _PROPERTIES[name]]
        found = next((value for value in listed if value), None)
        source = "torch"
    if found is None:
        return None, f"nobody says {name} of {device.name}"
    return found == claimed, f"{source} says {name} = {found}; {claimed} is claimed"

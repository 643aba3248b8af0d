# SPDX-License-Identifier: Apache-2.0
"""From what a user names - a target, a torch device, nothing - to a Device."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from archkey.errors import ArgumentValueError, UnknownName
from archkey.plugins import discover
from archkey.probe import Device, probe
from archkey.settings import settings
from archkey.target import KNOWN, Target

__all__ = ["devices", "find_device"]


def devices() -> tuple[Device, ...]:
    """The devices of this machine in torch's order, the CPU last. Needs neither torch nor a GPU."""
    return probe(pretend=settings().target).devices


def find_device(device: Any) -> Device:
    """The device that `archkey.open(device)` means. Raises for what names none."""
    if isinstance(device, Device):
        return device
    found = devices()
    if device is None:
        return found[0]
    if hasattr(device, "type") and hasattr(device, "index"):  # torch.device
        return _device_of_torch(device.type, device.index, found)
    types = {"cpu", "cuda", *(d.torch_kind for d in found)}
    if isinstance(device, str) and device.partition(":")[0] in types:
        kind, _, index = device.partition(":")
        if kind == "cpu" or index.isdigit() or not index:
            return _device_of_torch(kind, int(index or 0), found)
    target = Target.parse(device)
    if target.key not in KNOWN and not any(d.target.key == target.key for d in found):
        _refuse_unknown(target)
    for candidate in found:
        if candidate.target.is_exact(target):
            return candidate
    return Device(target, index=0, name="", source="pretend")


def _device_of_torch(kind: str, index: int | None, found: tuple[Device, ...]) -> Device:
    """The probed device behind a torch device.

    A tensor in host memory is the CPU's, also where an accelerator works there: that one is opened
    by its target.
    """
    real = [d for d in found if d.source != "pretend" and d.torch_kind == kind]
    if kind == "cpu":
        real = [d for d in real if d.target.platform == "cpu"]
    uuid = _torch_uuid(index or 0) if kind == "cuda" and len(real) > 1 else ""
    # By default CUDA sorts different GPUs by speed and the driver by bus: the uuid decides.
    same = [d for d in real if uuid and uuid in (d.uuid or "")]
    for candidate in same or real:
        if same or kind == "cpu" or candidate.index == (index or 0):
            return replace(candidate, index=index or 0)  # from here on torch's count is meant
    raise ArgumentValueError(
        f"device {kind}:{index or 0} is not among the probed devices: "
        + ", ".join(f"{d.target.key}[{d.index}]" for d in real or found)
        + ". `archkey probe` shows what was tried"
    )


def _torch_uuid(index: int) -> str:
    """torch's uuid of a GPU, if torch has a GPU context already; "" otherwise."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))


def _refuse_unknown(target: Target) -> None:
    served = {f.name.partition(".")[0] for f in discover()}
    if target.key not in served:
        raise UnknownName("target", target.key, {*KNOWN, *served}, "`archkey plugins` lists more.")

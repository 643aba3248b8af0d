# SPDX-License-Identifier: Apache-2.0
"""Which devices are here: the only room that touches drivers.

It never creates a GPU context, needs no torch, and does not raise for a missing or broken driver:
whoever was asked and did not answer leaves a `Note`.

    nvml.py     NVIDIA, through the driver's management library
    kfd.py      AMD, through sysfs
    vendors.py  everybody else, through the entry-point group `archkey.probes`
    host.py     the cpu
    visible.py  CUDA_VISIBLE_DEVICES and its kin
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archkey.probe import host, kfd, nvml, vendors
from archkey.probe.device import Device, Note, Probe
from archkey.target import Target

__all__ = ["Device", "Note", "Probe", "probe"]


def probe(
    environ: Mapping[str, str] | None = None,
    *,
    pretend: str | Target | None = None,
    root: str | Path = "/",
    nvml_api: Any = None,
) -> Probe:
    """The devices that a process with `environ` (default: this one's) can use, the cpu last.

    `pretend` (default: ARCHKEY_TARGET) names a target to report instead of the hardware: one
    device with no other fact, then the cpu. TargetError if it names none.
    `root` and `nvml_api` replace the file system and pynvml, to replay a recorded machine.
    """
    environ = os.environ if environ is None else environ
    cpu = host.cpu(Path(root))
    pretend = pretend or environ.get("ARCHKEY_TARGET")
    if pretend:
        return _pretended(Target.parse(pretend), cpu)
    nvidia, nvidia_remarks = nvml.find(environ, nvml_api)
    amd, amd_remarks = kfd.find(environ, Path(root))
    others, notes = vendors.find()
    remarks = [Note("nvml", text) for text in nvidia_remarks]
    remarks += [Note("kfd", text) for text in amd_remarks]
    return Probe((*nvidia, *amd, *others, cpu), (*remarks, *notes))


def _pretended(target: Target, cpu: Device) -> Probe:
    note = Note("pretend", f"this machine is said to be {target}; its hardware was not asked")
    device = Device(target, index=0, name=str(target), source="pretend")
    return Probe((cpu,) if target == cpu.target else (device, cpu), (note,))

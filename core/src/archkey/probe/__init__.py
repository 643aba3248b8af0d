# SPDX-License-Identifier: Apache-2.0
"""Which devices are here: the only room that touches drivers.

It never creates a GPU context, needs no torch, and does not raise for a missing or broken driver:
whoever was asked and did not answer leaves a `Note`.

    nvml.py     NVIDIA, through the driver's management library
    kfd.py      AMD, through sysfs
    amdsmi.py   what sysfs leaves open, through AMD's management library where it is installed
    vendors.py  everybody else, through the entry-point group `archkey.probes`
    host.py     the cpu
    visible.py  CUDA_VISIBLE_DEVICES and its kin
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archkey.probe import amdsmi, host, kfd, nvml, vendors
from archkey.probe.device import Device, Note, Probe
from archkey.target import Target

__all__ = ["Device", "Note", "Probe", "probe"]


def probe(
    environ: Mapping[str, str] | None = None,
    *,
    pretend: str | Target | None = None,
    root: str | Path = "/",
    nvml_api: Any = None,
    amdsmi_api: Any = None,
) -> Probe:
    """The devices that a process with `environ` (default: this one's) can use, the cpu last.

    `pretend` (default: ARCHKEY_TARGET) names a target to report instead of the hardware: one
    device with no other fact, then the cpu. TargetError if it names none.
    `root`, `nvml_api` and `amdsmi_api` replace the file system, pynvml and amdsmi, to replay a
    recorded machine. The amdsmi of this machine is never asked about the files of another.
    """
    environ = os.environ if environ is None else environ
    cpu = host.cpu(Path(root))
    pretend = pretend or environ.get("ARCHKEY_TARGET")
    if pretend:
        return _pretended(Target.parse(pretend), cpu)
    nvidia, nvidia_remarks = nvml.find(environ, nvml_api)
    amd, amd_notes = _amd(environ, Path(root), amdsmi_api)
    others, notes = vendors.find()
    nvidia_notes = [Note("nvml", text) for text in nvidia_remarks]
    return Probe((*nvidia, *amd, *others, cpu), (*nvidia_notes, *amd_notes, *notes))


def _amd(environ: Mapping[str, str], root: Path, api: Any) -> tuple[list[Device], list[Note]]:
    """The visible GPUs of sysfs. amdsmi comes last: by its facts no runtime chooses a device."""
    everything, remarks = kfd.find(root)
    if not everything:
        return [], [Note("kfd", text) for text in remarks]
    gpus, hidden = kfd.visible(environ, everything)
    notes = [Note("kfd", text) for text in (*remarks, *hidden)]
    if api is None and root != Path("/"):
        return [gpu.device for gpu in gpus], notes
    devices, remarks = amdsmi.complete(gpus, [gpu.address for gpu in everything], api)
    return devices, [*notes, *(Note("amdsmi", text) for text in remarks)]


def _pretended(target: Target, cpu: Device) -> Probe:
    note = Note("pretend", f"this machine is said to be {target}; its hardware was not asked")
    device = Device(target, index=0, name=str(target), source="pretend")
    return Probe((cpu,) if target == cpu.target else (device, cpu), (note,))

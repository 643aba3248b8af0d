# SPDX-License-Identifier: Apache-2.0
"""AMD GPUs through the topology that the kernel driver (KFD) writes into sysfs.

Files under `/sys/class/kfd/kfd/topology/nodes/N`: `properties` (one "name value" per line),
`mem_banks/M/properties`, `caches/C/properties`. Partition modes and the product's name are beside
the PCI device. Field meanings: Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c and kfd_crat.h.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from archkey.probe.device import Device
from archkey.probe.visible import choose
from archkey.target import Target

__all__ = ["FILES", "UNNAMED", "Gpu", "find", "visible"]

_NODES = "sys/class/kfd/kfd/topology/nodes"
FILES = (
    f"{_NODES}/*/properties",
    f"{_NODES}/*/mem_banks/*/properties",
    f"{_NODES}/*/caches/*/properties",
    "sys/bus/pci/devices/*/current_*_partition",
    "sys/bus/pci/devices/*/product_name",
    "sys/module/amdgpu/version",
    "dev/kfd",
)
"""What is read, below the root; a recording of a machine holds these files."""

_FRAME_BUFFER = (1, 2)
"""heap_type of a memory bank in video memory: visible to the host, and not visible."""

_PRODUCTS = {
    0x740C: "AMD Instinct MI250X",
    0x740F: "AMD Instinct MI210",
    0x74A0: "AMD Instinct MI300A",
    0x74A1: "AMD Instinct MI300X",
    0x74A2: "AMD Instinct MI308X",
    0x74A5: "AMD Instinct MI325X",
    0x74B5: "AMD Instinct MI300X VF",
    0x74B9: "AMD Instinct MI325X VF",
    0x75A0: "AMD Instinct MI350X",
    0x75A3: "AMD Instinct MI355X",
}
"""Product by PCI device id, as rocminfo prints it (libdrm, data/amdgpu.ids)."""


UNNAMED = "AMD GPU 0x"
"""How the name of a product begins that sysfs does not state; its PCI device id follows."""


class Gpu(NamedTuple):
    """A GPU of the topology."""

    device: Device
    address: str
    """Its PCI address, "0000:c1:00.0"; the partitions of a card may share one."""


def find(root: Path) -> tuple[list[Gpu], list[str]]:
    """The GPUs in the order of the topology, and remarks. `root` is the file system's."""
    nodes = root / _NODES
    if not nodes.is_dir():
        return [], ["no /sys/class/kfd: the amdgpu driver is not loaded"]
    gpus: list[Gpu] = []
    notes: list[str] = []
    for node in _numbered(nodes):
        try:
            gpu = _read(root, node, len(gpus))
        except (OSError, ValueError, KeyError) as error:
            # A container sees the node of a GPU that it was not given, but may not read it.
            notes.append(f"node {node.name} is left out: {type(error).__name__}: {error}")
            continue
        gpus += [gpu] if gpu else []
    if not gpus:
        return [], [*notes, "the topology lists no readable GPU"]
    if not (root / "dev/kfd").exists():
        return [], [*notes, f"{len(gpus)} GPUs, but no /dev/kfd: give it to the container"]
    return gpus, notes


def visible(environ: Mapping[str, str], gpus: list[Gpu]) -> tuple[list[Gpu], list[str]]:
    """The GPUs that `environ` leaves to a process, numbered anew, and remarks.

    ROCr applies its variable first; HIP counts in what is left. HIP reads an empty variable as
    unset, then CUDA_VISIBLE_DEVICES in its place (clr, rocdevice).
    """
    notes: list[str] = []
    hip = "HIP_VISIBLE_DEVICES" if environ.get("HIP_VISIBLE_DEVICES") else "CUDA_VISIBLE_DEVICES"
    settings = {
        "ROCR_VISIBLE_DEVICES": environ.get("ROCR_VISIBLE_DEVICES"),
        hip: environ.get(hip) or None,
    }
    for variable, value in settings.items():
        chosen, remark = choose(variable, value, [gpu.device.uuid or "" for gpu in gpus])
        notes = [*notes, remark] if remark else notes
        gpus = [gpus[position] for position in chosen]
    ordinal = environ.get("GPU_DEVICE_ORDINAL")
    if ordinal:
        advice = "set HIP_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES instead"
        notes.append(f"GPU_DEVICE_ORDINAL={ordinal!r} is not honoured here: {advice}")
    numbered = enumerate(gpus)
    return [Gpu(replace(gpu.device, index=i), gpu.address) for i, gpu in numbered], notes


def _read(root: Path, node: Path, index: int) -> Gpu | None:
    """The GPU at a topology node; None if the node is a CPU."""
    facts = _properties(node / "properties")
    version = facts.get("gfx_target_version", 0)
    if not version:
        return None
    # Decimal pairs: 90402 is 9.4.2. In the name, minor and stepping are hexadecimal: 90010, gfx90a.
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    address = _pci_address(facts)
    card = root / "sys/bus/pci/devices" / address
    product = _PRODUCTS.get(facts["device_id"]) or _text(card / "product_name")
    units, simds = facts.get("simd_per_cu"), facts.get("simd_count")
    lds, unique = facts.get("lds_size_in_kb"), facts.get("unique_id")
    modes = [_text(card / f"current_{kind}_partition") for kind in ("compute", "memory")]
    device = Device(
        target=Target("rocm", f"gfx{major}{minor:x}{step:x}"),
        index=index,
        name=product or f"{UNNAMED}{facts['device_id']:04x}",
        source="kfd",
        compute_units=simds // units if simds and units else None,
        shared_memory_bytes=lds * 1024 if lds else None,
        l2_bytes=_l2_bytes(node),
        memory_bytes=_memory_bytes(node),
        partition="/".join(mode for mode in modes if mode),
        uuid=f"GPU-{unique:016x}" if unique else None,
        driver=_text(root / "sys/module/amdgpu/version"),
    )
    return Gpu(device, address)


def _pci_address(facts: Mapping[str, int]) -> str:
    """Bus, device and function of the node; bits 28 to 31 of location_id number the partition."""
    where = facts["location_id"]
    bus, slot, function = where >> 8 & 0xFF, where >> 3 & 0x1F, where & 7
    return f"{facts.get('domain', 0):04x}:{bus:02x}:{slot:02x}.{function}"


def _l2_bytes(node: Path) -> int | None:
    """One level-2 cache. The topology lists hundreds of L1 caches first, so search backwards."""
    for cache in reversed(_numbered(node / "caches")):
        facts = _properties(cache / "properties")
        if facts.get("level") == 2:
            return facts["size"] * 1024
    return None


def _memory_bytes(node: Path) -> int | None:
    """Sum of the banks in video memory."""
    banks = [_properties(bank / "properties") for bank in _numbered(node / "mem_banks")]
    sizes = [bank["size_in_bytes"] for bank in banks if bank["heap_type"] in _FRAME_BUFFER]
    return sum(sizes) or None


def _numbered(folder: Path) -> list[Path]:
    """The entries of `folder` that are numbers, in numeric order; none if it is not there."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in sorted(filter(str.isdecimal, names), key=int)]


def _properties(path: Path) -> dict[str, int]:
    """The lines of a properties file that hold one number each."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(path: Path) -> str | None:
    """A one-line file, stripped; None if it is absent, unreadable or empty."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None

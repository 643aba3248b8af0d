# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs through NVML, which answers without creating a GPU context.

`nvml` is the module pynvml (distribution nvidia-ml-py) or an object with the same functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from archkey.probe.device import Device
from archkey.probe.visible import choose
from archkey.target import Target

__all__ = ["FACTS", "SYSTEM", "find", "load"]

SYSTEM = ("nvmlInit", "nvmlSystemGetDriverVersion")
FACTS = (
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetMigMode",
)
"""What is asked of NVML, and of every GPU; a recording of a machine holds these answers."""

_CORES_PER_SM = {75: 64, 80: 64} | dict.fromkeys((86, 87, 89, 90, 100, 103, 110, 120, 121), 128)
"""FP32 cores of a streaming multiprocessor, by 10 * major + minor of the compute capability.

NVML states cores, not multiprocessors. CUDA C++ programming guide, table "Throughput of native
arithmetic instructions", row 32-bit floating-point add.
"""


def load() -> Any:
    """The module pynvml. OSError if the driver's library is not there.

    The library is looked for first, because importing pynvml costs 30 ms and a machine without
    an NVIDIA driver should not pay that.
    """
    import ctypes

    ctypes.CDLL("libnvidia-ml.so.1")
    return importlib.import_module("pynvml")


def find(environ: Mapping[str, str], nvml: Any = None) -> tuple[list[Device], list[str]]:
    """The visible GPUs in the order of NVML (PCI bus), and remarks, a failing driver among them."""
    try:
        nvml = load() if nvml is None else nvml
        nvml.nvmlInit()
    except ImportError:
        return [], ["the module pynvml is missing: pip install nvidia-ml-py"]
    except OSError as error:
        return [], [f"library not found ({error})"]
    except nvml.NVMLError as error:
        return [], [f"the driver does not answer: {error}"]
    try:
        return _visible(nvml, environ)
    except nvml.NVMLError as error:
        return [], [f"the driver stopped answering: {error}"]
    finally:
        _optional(nvml, nvml.nvmlShutdown)


def _visible(nvml: Any, environ: Mapping[str, str]) -> tuple[list[Device], list[str]]:
    """Read every GPU, then apply CUDA_VISIBLE_DEVICES. A GPU that fails keeps its number."""
    notes: list[str] = []
    gpus: list[Device | None] = []
    slices: list[Device] = []
    driver = _optional(nvml, nvml.nvmlSystemGetDriverVersion)
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu, parts = _read(nvml, number, driver)
        except nvml.NVMLError as error:
            gpus.append(None)
            notes.append(f"device {number}: {error}")
            continue
        gpus.append(parts[0] if parts else gpu)
        slices += parts
        if parts:
            notes.append(
                f"device {number} has {len(parts)} MIG instances, of which CUDA takes the first: "
                f"choose by CUDA_VISIBLE_DEVICES={' or '.join(str(p.uuid) for p in parts)}"
            )
    everything = [*gpus, *slices]
    names = [str(device.uuid) if device else "" for device in everything]
    value = environ.get("CUDA_VISIBLE_DEVICES")
    chosen, remark = choose("CUDA_VISIBLE_DEVICES", value, names, numbered=len(gpus))
    notes += [remark] if remark else []
    notes += _order_remark(environ, [gpu for gpu in gpus if gpu])
    found = [(index, everything[position]) for index, position in enumerate(chosen)]
    return [replace(device, index=index) for index, device in found if device], notes


def _read(nvml: Any, number: int, driver: str | None) -> tuple[Device, list[Device]]:
    """GPU `number`, and its MIG instances if it is partitioned."""
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    capability = 10 * major + minor
    target = Target("cuda", f"sm{capability}")
    cores = _optional(nvml, nvml.nvmlDeviceGetNumGpuCores, handle)
    per_sm = _CORES_PER_SM.get(capability)
    units = cores // per_sm if cores and per_sm and cores % per_sm == 0 else None
    gpu = _device(nvml, handle, target, number, driver, units)
    mode = _optional(nvml, nvml.nvmlDeviceGetMigMode, handle)
    parts = []
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if mode and mode[0] else 0):
        part = _optional(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if part is not None:
            attributes = _optional(nvml, nvml.nvmlDeviceGetAttributes_v2, part)
            units = attributes.multiprocessorCount if attributes else None
            parts.append(_device(nvml, part, target, number, driver, units))
    return gpu, parts


def _device(
    nvml: Any, handle: Any, target: Target, index: int, driver: str | None, units: int | None
) -> Device:
    name = nvml.nvmlDeviceGetName(handle)
    memory = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Device(
        target=target,
        index=index,
        name=name,
        source="nvml",
        compute_units=units,
        memory_bytes=memory.total if memory else None,
        partition=name.partition(" MIG ")[2],
        uuid=_optional(nvml, nvml.nvmlDeviceGetUUID, handle),
        driver=driver,
    )


def _optional(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this driver or GPU does not have it."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def _order_remark(environ: Mapping[str, str], gpus: list[Device]) -> list[str]:
    """CUDA's own order puts the fastest first, by a measure that it does not publish."""
    by_number = not environ.get("CUDA_VISIBLE_DEVICES", "0").lower().startswith(("gpu-", "mig-"))
    different = len({(gpu.target, gpu.name) for gpu in gpus}) > 1
    if different and by_number and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        advice = "set CUDA_DEVICE_ORDER=PCI_BUS_ID to make both agree"
        return [f"different GPUs, listed by PCI bus; CUDA may count fastest first: {advice}"]
    return []

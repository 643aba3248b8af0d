# SPDX-License-Identifier: Apache-2.0
"""What sysfs leaves open about an AMD GPU, from AMD's management library where it is installed.

`api` is the module amdsmi (it comes with ROCm) or an object with the same functions. It is
optional: sysfs finds the GPUs, and amdsmi is imported only if one of them lacks a fact. A fact of
sysfs is never replaced, and a GPU that only amdsmi knows is no device, because kernels run
through KFD. Releases differ, so each function may be missing or fail on its own.

API: ROCm/amdsmi, py-interface/amdsmi_interface.py, ROCm 5.7 and later.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from archkey.probe import kfd
from archkey.probe.device import Device

__all__ = ["FACTS", "complete", "handles", "load", "opened"]

_ASIC = "amdsmi_get_gpu_asic_info"
_DRIVER = "amdsmi_get_gpu_driver_info"
_MEMORY = "amdsmi_get_gpu_vram_info"
_MODES = ("amdsmi_get_gpu_compute_partition", "amdsmi_get_gpu_memory_partition")
FACTS = (_ASIC, _DRIVER, _MEMORY, *_MODES)
"""What may be asked of a GPU; a recording of a machine holds these answers by PCI address."""

_NOT_SUPPORTED = 2
"""AMDSMI_STATUS_NOT_SUPPORTED: the GPU does not have this fact, as a Radeon has no partitions."""

Ask = Callable[[str, Callable[[Any], Any]], Any]
"""(function, reader of its answer) -> what the reader finds for one GPU; None if nothing."""


def load() -> Any:
    """The module amdsmi. ModuleNotFoundError without it, anything else from a broken one."""
    # Without its library it prints so; standard output may be a command's JSON.
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module("amdsmi")


@contextlib.contextmanager
def opened(api: Any) -> Iterator[Any]:
    """amdsmi, initialised. It does not count its users, so whoever else has it open keeps it."""
    try:
        running = bool(api.amdsmi_get_processor_handles())
    except Exception:
        running = False
    if not running:
        api.amdsmi_init()
    try:
        yield api
    finally:
        if not running:
            with contextlib.suppress(Exception):
                api.amdsmi_shut_down()


def handles(api: Any) -> dict[str, Any]:
    """Handles by PCI address "0000:c1:00.0", the first one where partitions share an address.

    A GPU that does not tell its address is left out.
    """
    found: dict[str, Any] = {}
    for handle in api.amdsmi_get_processor_handles():
        with contextlib.suppress(Exception):
            found.setdefault(api.amdsmi_get_gpu_device_bdf(handle).lower(), handle)
    return found


def complete(
    gpus: Sequence[kfd.Gpu], known: Sequence[str], api: Any = None
) -> tuple[list[Device], list[str]]:
    """The devices of `gpus` with what sysfs left open, and remarks.

    `known` holds the PCI addresses of all nodes of KFD, those that a variable hides included.
    A device that got something has the source "kfd+amdsmi".
    """
    cards = Counter(map(_card, known))
    gaps = [_gaps(gpu.device, whole=cards[_card(gpu.address)] == 1) for gpu in gpus]
    devices = [gpu.device for gpu in gpus]
    if not any(gaps):
        return devices, []
    try:
        with opened(load() if api is None else api) as api:
            return _fill(api, gpus, gaps, cards)
    # A library from elsewhere may raise anything, and must not hide the GPUs of sysfs.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "amdsmi":
            return devices, []
        return devices, [f"it does not answer: {_said(error)}"]


def _fill(
    api: Any, gpus: Sequence[kfd.Gpu], gaps: Sequence[list[str]], cards: Counter[str]
) -> tuple[list[Device], list[str]]:
    """Ask for each gap of each GPU. A function leaves one remark, however often it fails."""
    found = handles(api)
    failures: dict[str, list[str]] = {}
    devices = []
    for gpu, fields in zip(gpus, gaps, strict=True):
        facts: dict[str, Any] = {}
        if gpu.address in found:
            ask = _asker(api, gpu.address, found[gpu.address], failures)
            facts = {field: value for field in fields if (value := _FILL[field](ask))}
        if facts:
            facts["source"] = "kfd+amdsmi"
        devices.append(replace(gpu.device, **facts))
    remarks = [
        f"{function} {first}" + (f" (and {len(more)} more)" if more else "")
        for function, (first, *more) in failures.items()
    ]
    asked = {gpu.address for gpu, fields in zip(gpus, gaps, strict=True) if fields}
    strangers = sorted(asked - found.keys())
    hidden = [address for address in found if _card(address) not in cards]
    if strangers:
        remarks.append(f"it does not list {', '.join(strangers)}")
    if hidden:
        remarks.append(f"left out, because KFD shows no node for it: {', '.join(hidden)}")
    return devices, remarks


def _asker(api: Any, address: str, handle: Any, failures: dict[str, list[str]]) -> Ask:
    """The questions to the GPU at `address`; what fails is put into `failures`, by function."""

    def ask(function: str, read: Callable[[Any], Any]) -> Any:
        call = getattr(api, function, None)
        if call is None:
            failures[function] = ["is not in this release of amdsmi"]
            return None
        try:
            return read(call(handle))
        except Exception as error:
            if getattr(error, "err_code", None) != _NOT_SUPPORTED:
                texts, text = (
                    failures.setdefault(function, []),
                    f"fails at {address}: {_said(error)}",
                )
                texts += [] if text in texts else [text]  # two fields may need one function
            return None

    return ask


def _gaps(device: Device, whole: bool) -> list[str]:
    """The fields that sysfs left open. Of a part of a card, amdsmi tells what all parts share."""
    whole = whole and device.partition[:3] in ("", "SPX")
    gaps = {
        "name": device.name.startswith(kfd.UNNAMED),
        "partition": not device.partition,
        "driver": device.driver is None,
        "memory_bytes": whole and device.memory_bytes is None,
        "uuid": whole and device.uuid is None,
    }
    return [field for field, open_ in gaps.items() if open_]


def _name(ask: Ask) -> str | None:
    """The market name; amdsmi puts the device id where it has none."""
    name = ask(_ASIC, lambda info: _word(info["market_name"]))
    return None if name and name.lower().startswith("0x") else name


def _partition(ask: Ask) -> str | None:
    """The modes for compute and memory as sysfs spells them, "CPX/NPS4"; None without any."""
    modes = [ask(function, _word) for function in _MODES]
    return "/".join(mode for mode in modes if mode) or None


def _driver(ask: Ask) -> str | None:
    """The version of the module; that of the kernel, if the module came with the kernel."""
    version: str | None = ask(_DRIVER, lambda info: _word(info["driver_version"]))
    return version


def _memory_bytes(ask: Ask) -> int | None:
    """The video memory of the card, which amdsmi counts in MiB; before ROCm 6.2 it says so."""
    mebibytes = ask(_MEMORY, lambda info: info.get("vram_size") or info["vram_size_mb"])
    return mebibytes * 2**20 if isinstance(mebibytes, int) else None


def _uuid(ask: Ask) -> str | None:
    """The serial number as ROCr spells it; amdsmi's own uuid is another number made of it.

    A release without DRM writes it in decimal and reads it as hexadecimal: too long to be one.
    """
    serial = ask(_ASIC, lambda info: int(_word(info["asic_serial"]) or "0", 16))
    return f"GPU-{serial:016x}" if serial and serial < 2**64 else None


_FILL: dict[str, Callable[[Ask], Any]] = {
    "name": _name,
    "partition": _partition,
    "driver": _driver,
    "memory_bytes": _memory_bytes,
    "uuid": _uuid,
}


def _card(address: str) -> str:
    """The address without the function, where drivers may put the number of a partition."""
    return address.rpartition(".")[0]


def _word(text: str) -> str | None:
    """The text; None for what amdsmi writes instead of nothing."""
    text = text.strip()
    return None if text.upper() in ("", "N/A", "UNKNOWN") else text


def _said(error: Exception) -> str:
    """The error on one line; those of amdsmi have two."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
